# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets for whole simulations, minutes each: stalls in `steady`, savings in the paper's figures 5 to 7."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.targets import Row

Report = dict[str, Any]

TECHNIQUES = ("sharing", "patching", "compression")
CONTENTS = {"figure5": "identical", "figure6": "random", "figure7": "95 % similar"}
# Percent of memory that the paper saves, by content and technique, at best.
PAPER_PERCENT = {
    "figure5": {"sharing": 77.8, "patching": 81.0, "compression": 84.5},
    "figure6": {"sharing": 3.6, "patching": 7.9, "compression": 10.7},
    "figure7": {"sharing": 3.5, "patching": 47.1, "compression": 11.7},
}
# Where the generator's pages can be saved, that must be reached. Elsewhere there is nothing to save (the
# paper's guests had memory besides), and trying must cost next to nothing.
TO_REACH = {("figure5", technique): PAPER_PERCENT["figure5"][technique] for technique in TECHNIQUES}
TO_REACH["figure7", "patching"] = 47.0
MOST_COST_PERCENT = 1.0
# A plateau is a saving held for so many samples, which are a second apart.
PLATEAU_SAMPLES = 3
READING = 1
COLLAPSED_PERCENT = 5.0


def simulate(command: Path, scenario: str) -> Report:
    """Raises CalledProcessError, also if a guest read a wrong byte."""
    run = subprocess.run([str(command), "simulate", scenario, "--json"], check=True, stdout=subprocess.PIPE)
    report: Report = json.loads(run.stdout)
    return report


def _savings(report: Report) -> list[float]:
    return [100 * float(sample["saving"]) for sample in report["series"]]


def plateau_percent(report: Report) -> float:
    savings = _savings(report)
    windows = zip(*(savings[start:] for start in range(PLATEAU_SAMPLES)), strict=False)
    plateau: float = max(map(min, windows))
    return plateau


def cost_percent(report: Report) -> float:
    """What trying takes at the worst moment, of the guest's memory; 0 if it never takes more than it gives."""
    return max(0.0, -min(_savings(report)))


def left_while_reading_percent(report: Report) -> float:
    """The lowest saving between two samples that are both of the phase in which the guest reads everything."""
    pairs = pairwise(report["series"])
    reading = [float(after["saving"]) for before, after in pairs if before["phases"] == after["phases"] == [READING]]
    return 100 * min(reading)


def figure_rows(figure: str, technique: str, report: Report) -> list[Row]:
    name = f"{CONTENTS[figure]} pages, {technique} alone"
    paper = f"the paper {PAPER_PERCENT[figure][technique]:.1f} %"
    plateau = plateau_percent(report)
    if (figure, technique) not in TO_REACH:
        note = f"plateau {plateau:.1f} %, {paper}"
        return [Row(f"{name}: cost", MOST_COST_PERCENT, (cost_percent(report),), " %", note=note)]
    rows = [Row(f"{name}: plateau", TO_REACH[figure, technique], (plateau,), " %", at_least=True, note=paper)]
    if technique != "sharing":
        left = left_while_reading_percent(report)
        note = "evicted pages come back when they are read"
        rows.append(Row(f"{name}: left while all is read", COLLAPSED_PERCENT, (left,), " %", note=note))
    return rows


def steady_rows(report: Report) -> list[Row]:
    guest, seconds = report["guest"], report["duration_s"]
    first, last = guest["stall_us_per_s_after_first_cycle"], guest["stall_us_per_s_last_60_s"]
    note = f"{seconds:.0f} s; {report['refaults']} refaults; saved {report['saving']['end']:.1%} at the end"
    return [
        Row("steady: worst vCPU's stall after the first cycle", 5000, (first,), " us/s", note=note),
        Row("steady: worst vCPU's stall, last 60 s", 500, (last,), " us/s"),
    ]


def measure(command: Path, say: Callable[[str], None]) -> list[Row]:
    """About a quarter of an hour."""
    say("simulating steady")
    rows = steady_rows(simulate(command, "steady"))
    for figure in CONTENTS:
        for technique in TECHNIQUES:
            scenario = f"{figure}-{technique}-alone"
            say(f"simulating {scenario}")
            rows += figure_rows(figure, technique, simulate(command, scenario))
    return rows
