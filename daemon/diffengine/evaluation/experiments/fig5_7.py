# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures 5 to 7: each technique alone on pages of one kind."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, paper, simulating
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
    Target,
)
from diffengine.evaluation.setting import Setting

TECHNIQUES = {
    "sharing": {state: ["share"] for state in ("C2", "C3", "C4")},
    "patching": {state: ["reference", "patch"] for state in ("C3", "C4")},
    "compression": {"C4": ["compress"]},
}
# Kinds of pages, and how similar pages are that are similar.
KINDS = {"identical": 0, "random": 0, "similar": 95, "90 % similar": 90, "80 % similar": 80, "50 % similar": 50}
QUICK_KINDS = ("identical", "random", "similar", "80 % similar")
MEMORY_MIB = {True: 12, False: 64}
PHASE_S = 20.0
TO_REACH = (("identical", "sharing"), ("identical", "patching"), ("identical", "compression"), ("similar", "patching"))
PHASES = ("allocate", "read", "write", "free")
# The plateau: the highest saving that holds for so long.
HOLDS_S = 3.0


def plan(setting: Setting) -> list[Step]:
    memory_mib = MEMORY_MIB[setting.quick]
    steps = []
    for kind, percent in KINDS.items():
        if setting.quick and kind not in QUICK_KINDS:
            continue
        for technique, allowed in TECHNIQUES.items():
            domain = {"memory_mib": memory_mib, "program": "phases", "phase_s": PHASE_S}
            domain["pages"] = kind if not percent else "similar"
            if percent:
                domain["similar_percent"] = percent
            values = simulating.scenario(
                setting.seed,
                PHASE_S * len(PHASES),
                [domain],
                policy="alone",
                visit_interval_s=1.0,
                cpu_share=1.0,
                fault_limit=100_000.0,
                refault_limit=10_000_000,
                evicted_share_limit=1.0,
            )
            values["policies"] = {"alone": allowed}
            name = f"{kind.replace(' % ', '-percent-')}-{technique}"
            steps.append(Step(name, simulating.run, {"values": values}, 1 + memory_mib / 12))
    return steps


def plateau(result: Result) -> float:
    """The highest saving that held for HOLDS_S."""
    times, savings = np.array(result["series"]["time_s"]), np.array(result["series"]["saving"])
    best = -1.0
    for start, time_s in enumerate(times):
        end = int(np.searchsorted(times, time_s + HOLDS_S))
        if end < len(times):
            best = max(best, float(savings[start : end + 1].min()))
    return best


def _cells(results: Results) -> dict[str, dict[str, Result]]:
    """By kind and technique, of kinds that every technique was tried on."""
    cells: dict[str, dict[str, Result]] = {}
    for kind in KINDS:
        prefix = kind.replace(" % ", "-percent-")
        found = {t: results[f"{prefix}-{t}"] for t in TECHNIQUES if f"{prefix}-{t}" in results}
        if len(found) == len(TECHNIQUES):
            cells[kind] = found
    return cells


def conclude(results: Results) -> Outcome:
    cells = _cells(results)
    plateaus = {kind: {t: plateau(r) * 100 for t, r in row.items()} for kind, row in cells.items()}
    return Outcome(
        tables=[_table(cells, plateaus)],
        pictures=[
            Picture(
                "fig5_7",
                "Plateau of each technique alone, by kind of page; hollow marks: the paper's. A fifth of the paper's "
                "saving of identical pages is the guest's own free memory.",
                partial(_draw, plateaus),
            ),
            Picture(
                "fig5_7-time",
                "The same over time: pages are allocated, read, written at 16 places each, and freed (shaded).",
                partial(_draw_time, cells),
            ),
        ],
        targets=_targets(plateaus),
        verdict=_verdict(plateaus),
    )


def _table(cells: dict[str, dict[str, Result]], plateaus: dict[str, dict[str, float]]) -> Table:
    rows = []
    for kind, row in cells.items():
        for technique, result in row.items():
            printed = paper.FIGURES_5_TO_7.get(kind, {}).get(technique)
            cost = max(0.0, -min(result["series"]["saving"])) * 100
            rows.append([shown(kind), technique, plateaus[kind][technique], printed, cost, result["refaults"]])
    columns = [
        Column("pages"),
        Column("technique alone"),
        Column("plateau, %", ".1f"),
        Column("paper, %", ".1f"),
        Column("highest cost, %", ".2f"),
        Column("pages that came back", ",d"),
    ]
    return Table("What each technique saves alone", columns, rows)


def _targets(plateaus: dict[str, dict[str, float]]) -> list[Target]:
    targets = []
    for kind, technique in TO_REACH:
        if kind in plateaus:
            printed, found = paper.FIGURES_5_TO_7[kind][technique], plateaus[kind][technique]
            claim = f"{shown(kind)} pages, {technique} alone: at least the paper's {printed} %"
            targets.append(Target(claim, f"{found:.1f} %", found >= printed))
    return targets


def shown(kind: str) -> str:
    return "95 % similar" if kind == "similar" else kind


def _verdict(plateaus: dict[str, dict[str, float]]) -> list[str]:
    def of(kind: str) -> str:
        return ", ".join(f"{t} {value:.0f} %" for t, value in plateaus[kind].items())

    parts = [f"{shown(kind)} pages: {of(kind)}." for kind in plateaus]
    parts.append(
        "Identical pages are saved by any technique, random ones by none, similar ones by patching alone: what each "
        "is for. Reading costs sharing nothing and brings back whatever was patched or compressed; writing 16 places "
        "breaks sharing, and similar pages that were written are still similar. The paper compares techniques on "
        "pages made for one of them; real pages are a mixture (see hypothesis)."
    )
    return parts


def _draw(plateaus: dict[str, dict[str, float]]) -> Figure:
    figure, (axis,) = drawing.figure()
    kinds = list(plateaus)
    series = {t: [max(0.0, plateaus[kind][t]) for kind in kinds] for t in TECHNIQUES}
    printed = {t: [paper.FIGURES_5_TO_7.get(kind, {}).get(t) for kind in kinds] for t in TECHNIQUES}
    colours = [drawing.TECHNIQUES[t] for t in TECHNIQUES]
    labels = [shown(kind) for kind in kinds]
    drawing.grouped_bars(axis, labels, series, colours, ".0f", printed)
    drawing.titles(axis, "One technique at a time", y="plateau saving (% of the guest's memory)")
    drawing.legend(axis)
    return figure


def _draw_time(cells: dict[str, dict[str, Result]]) -> Figure:
    columns = 2
    figure, axes = drawing.figure(columns, -(-len(cells) // columns), height=2.6)
    for axis in axes[len(cells) :]:
        axis.set_visible(False)
    for axis, (kind, row) in zip(axes, cells.items(), strict=False):
        for technique, result in row.items():
            savings = np.array(result["series"]["saving"]) * 100
            axis.plot(result["series"]["time_s"], savings, color=drawing.TECHNIQUES[technique], label=technique)
        for number, phase in enumerate(PHASES):
            if number % 2:
                axis.axvspan(number * PHASE_S, (number + 1) * PHASE_S, color="#f1f3f5", zorder=0)
            axis.text((number + 0.5) * PHASE_S, 103, phase, ha="center", fontsize=7.5, color="#5a646e")
        axis.set_ylim(-3, 112)
        drawing.titles(axis, shown(kind), "time (s)", "saved (%)")
    drawing.legend(axes[min(1, len(cells) - 1)], loc="center right")
    return figure


EXPERIMENT = Experiment(
    name="fig5_7",
    title="Figures 5 to 7: one technique at a time",
    question="What does each technique save alone on identical, random and similar pages, and what happens when they "
    "are read, written and freed?",
    method="The paper's generator: a guest allocates its whole memory, reads it, writes one byte at each of 16 fixed "
    "offsets of every page, frees it; phases 20 s apart with a visit a second, where the paper had 80 s and four.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
