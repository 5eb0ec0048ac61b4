# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, once from start to end: guests on the embedded machine, their memory saved and given back."""

from diffengine.demo.run import Demo, DemoResult, Memory, Step, check_result, demo_on

__all__ = ["Demo", "DemoResult", "Memory", "Step", "check_result", "demo_on"]
