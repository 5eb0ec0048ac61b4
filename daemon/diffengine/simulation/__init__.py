# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests, engine and pager run from a scenario file, and what came of it."""

from diffengine.simulation.hosts import Where
from diffengine.simulation.report import as_json, as_tables
from diffengine.simulation.run import Observed, Observer, Sample, SimulationResult, simulate
from diffengine.simulation.scenario import Scenario, ScenarioError, load_scenario

__all__ = [
    "Observed",
    "Observer",
    "Sample",
    "Scenario",
    "ScenarioError",
    "SimulationResult",
    "Where",
    "as_json",
    "as_tables",
    "load_scenario",
    "simulate",
]
