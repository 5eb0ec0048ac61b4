# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine simulate` on scenarios written for a test, and what its report must add up to."""

import json
from pathlib import Path
from typing import Any

import pytest

from command import output_of

FAST = "visit_interval_s = 0.1\nfault_limit = 100000\nrefault_limit = 10000000\n"


def run(folder: Path, text: str, *arguments: str | Path) -> dict[str, Any]:
    path = folder / "scenario.toml"
    path.write_text(text)
    report: dict[str, Any] = json.loads(output_of("simulate", path, "--json", *arguments))
    return report


def check_accounting(report: dict[str, Any]) -> None:
    """Everything that is reported is what the machine, the store and the tables say."""
    used, machine = report["used_bytes"], report["machine"]
    assert used["guests"] == machine["used_frames"] * 4096 == machine["resident_bytes"]
    assert used["tables"] == sum(report["table_bytes"].values())
    expected = 1 - (used["guests"] + used["store"] + used["tables"]) / report["allocated_bytes"]
    assert report["saving"]["end"] == pytest.approx(expected)
    assert sum(report["saving"]["by_technique"].values()) == pytest.approx(expected)
