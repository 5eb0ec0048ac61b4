# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes real guests on a real Xen: results that the rig has left, or "not run"."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffengine.evaluation import drawing, paper
from diffengine.evaluation.experiment import (
    Basis,
    Column,
    Experiment,
    Outcome,
    Picture,
    Result,
    Results,
    Step,
    Table,
    UnavailableError,
)
from diffengine.evaluation.setting import Setting

# Where results of applications on the rig are looked for. Nothing in tests/xen writes them yet.
RIG_RESULTS = Path("build/xen/share/results/applications.json")


def read(path: str) -> Result:
    """{"workloads": [{"name", "unit", "baseline", "with_engine", "saved"}]}, or UnavailableError if there is none."""
    try:
        untrusted_found: Any = json.loads(Path(path).read_text())
        workloads = [
            {
                "name": str(each["name"]),
                "unit": str(each["unit"]),
                "baseline": float(each["baseline"]),
                "with_engine": float(each["with_engine"]),
                "saved": float(each["saved"]),
            }
            for each in untrusted_found["workloads"]
        ]
    except OSError as error:
        raise UnavailableError(f"not run: the rig has left no {path}; see docs/evaluate.md") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"{path} is not what the rig writes ({error}); run it again") from error
    if not workloads:
        raise UnavailableError(f"not run: {path} has no workloads")
    return {"workloads": workloads}


def plan(setting: Setting) -> list[Step]:
    stamp = RIG_RESULTS.stat().st_mtime_ns if RIG_RESULTS.exists() else 0
    read(str(RIG_RESULTS))
    return [Step(f"applications-{stamp}", read, {"path": str(RIG_RESULTS.resolve())}, 0.5)]


def overhead(workload: dict[str, Any]) -> float:
    """In %: of time, or of what was not done."""
    ratio = workload["with_engine"] / workload["baseline"]
    return float((ratio - 1 if workload["unit"] == "s" else 1 - ratio) * 100)


def conclude(results: Results) -> Outcome:
    workloads = next(iter(results.values()))["workloads"]
    printed = {
        name: (with_it / base - 1) * 100 if name.endswith(", s") else (1 - with_it / base) * 100
        for name, (base, with_it) in paper.TABLE_3.items()
    }
    rows: list[list[Any]] = [[f"paper: {name}", *paper.TABLE_3[name], value, None] for name, value in printed.items()]
    rows += [
        [f"{w['name']}, {w['unit']}", w["baseline"], w["with_engine"], overhead(w), w["saved"] * 100] for w in workloads
    ]
    columns = [
        Column("workload"),
        Column("without", ",.1f"),
        Column("with", ",.1f"),
        Column("overhead, %", ".1f"),
        Column("saved meanwhile, %", ".1f"),
    ]
    bars = {
        **{f"paper:\n{name}": value for name, value in printed.items()},
        **{w["name"]: overhead(w) for w in workloads},
    }
    text = "Overhead of applications: the paper's three, and those run on the rig."
    worst = max(overhead(each) for each in workloads)
    return Outcome(
        tables=[Table("Applications with and without the engine", columns, rows)],
        pictures=[Picture("table3", text, partial(_draw, bars))],
        verdict=[
            f"The rig's worst overhead is {worst:.1f} % (the paper's: 13.2 %). The rig is an emulator: ratios "
            "count, seconds do not.",
            "The paper's table shows means of one application each. It shows neither spread nor the tail of response "
            "times, nor what overhead is while memory is short, nor another system's on the same work.",
        ],
    )


def _draw(bars: dict[str, float]) -> Figure:
    figure, (axis,) = drawing.figure(height=3.2)
    colours = [drawing.GREY if name.startswith("paper") else drawing.BLUE for name in bars]
    axis.bar(range(len(bars)), list(bars.values()), 0.62, color=colours)
    axis.set_xticks(range(len(bars)), list(bars))
    drawing.titles(axis, "Overhead", y="%")
    return figure


EXPERIMENT = Experiment(
    name="table3",
    title="Table 3: overhead of applications",
    question="How much slower are applications with the engine at work?",
    method="Real guests on a real Xen in an emulator: the rig's own run, whose last result is read; it is not started "
    "from here.",
    basis=Basis.RIG,
    plan=plan,
    conclude=conclude,
)
