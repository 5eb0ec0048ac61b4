# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine simulate` on scenarios written for a test, and what its report must add up to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import output_of
from diffengine.simulation import Where, as_json, load_scenario, simulate
from diffengine.simulation.report import saving_by_technique
from diffengine.simulation.run import Sample

PATIENCE_S = 300.0
FAST = "visit_interval_s = 0.1\nfault_limit = 100000\nrefault_limit = 10000000\n"


def run(folder: Path, text: str, *arguments: str | Path) -> dict[str, Any]:
    path = folder / "scenario.toml"
    path.write_text(text)
    report: dict[str, Any] = json.loads(output_of("simulate", path, "--json", *arguments))
    return report


def run_until(
    folder: Path, text: str, where: Where, reached: Callable[[Sample, dict[str, float]], bool]
) -> dict[str, Any]:
    """Runs it until a state is reached, of which `reached` is given a sample, and the savings by technique. However
    long that takes on this machine; never comes to an end if it is not reached in PATIENCE_S."""
    path = folder / "scenario.toml"
    path.write_text(f"duration_s = {PATIENCE_S}\n{text}")

    def enough(sample: Sample, allocated: int) -> bool:
        return reached(sample, saving_by_technique(sample, allocated))

    result = simulate(load_scenario(path), where=where, enough=enough)
    result.check()
    assert result.end.time_s < PATIENCE_S, f"not reached: {as_json(result)}"
    report: dict[str, Any] = json.loads(json.dumps(as_json(result)))
    return report


def check_accounting(report: dict[str, Any]) -> None:
    """Everything that is reported is what the machine, the store and the tables say."""
    used, machine = report["used_bytes"], report["machine"]
    assert used["guests"] == machine["used_frames"] * 4096 == machine["resident_bytes"]
    assert used["tables"] == sum(report["table_bytes"].values())
    expected = 1 - (used["guests"] + used["store"] + used["tables"]) / report["allocated_bytes"]
    assert report["saving"]["end"] == pytest.approx(expected)
    assert sum(report["saving"]["by_technique"].values()) == pytest.approx(expected)
