# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine on a host that was there before it, with guests that run and pages that are out; and how it is told."""

from diffengine.service.attached import AttachedEngine, DomainTerms, own_terms
from diffengine.service.daemon import Settings, run_daemon, settings_from
from diffengine.service.host import HostChoice, connect

__all__ = [
    "AttachedEngine",
    "DomainTerms",
    "HostChoice",
    "Settings",
    "connect",
    "own_terms",
    "run_daemon",
    "settings_from",
]
