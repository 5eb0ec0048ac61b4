# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine: which pages are saved, how and when. It knows its host only through diffengine.hypervisor.protocol."""

from diffengine.engine.engine import Engine
from diffengine.engine.options import EngineOptions
from diffengine.engine.policy import BUILT_IN_POLICIES, Policy, State, Technique
from diffengine.engine.report import EngineReport

__all__ = ["BUILT_IN_POLICIES", "Engine", "EngineOptions", "EngineReport", "Policy", "State", "Technique"]
