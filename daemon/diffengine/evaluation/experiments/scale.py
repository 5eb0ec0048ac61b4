# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost against guest memory, number of domains and dirty rate."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
from diffengine.evaluation.experiment import Basis, Column, Experiment, Outcome, Picture, Result, Results, Step, Table
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent

DURATION_S = {True: 80.0, False: 100.0}
MEMORY_MIB = {True: (64, 128, 256), False: (64, 128, 256, 512, 1024, 2048, 4096, 8192)}
# Of this machine's memory: the guests' own is there three times (image, host, store and tables), and others run, too.
MOST_OF_MEMORY = 1 / 5
# Two guests, divided into so many each.
PARTS = {True: (1, 4, 16), False: (1, 2, 4, 8, 16)}
# Writes per second; a page each.
DIRTY = {True: (0, 200, 2000), False: (0, 50, 200, 1000, 5000)}
EXTRAPOLATED_GIB = (16, 64, 256)
MIB = 1 << 20


def plan(setting: Setting) -> list[Step]:
    images = simulating.stand_ins(setting.guests)["homogeneous"]
    size_mib = max(1, -(-simulating.bytes_of(images[:1]) // MIB))
    duration_s = DURATION_S[setting.quick]
    steps = []

    def add(name: str, count: int = 2, every: int = 1, parts: int = 1, **keys: Any) -> None:
        domains = [
            simulating.guest(images[number % len(images)], number, "working-set", **keys)
            for number in range(1, count + 1)
        ]
        values = simulating.scenario(setting.seed, duration_s, domains, cpu_share=1.0)
        seconds = simulating.expected_seconds(count * size_mib * MIB / every, duration_s)
        steps.append(Step(name, simulating.run_resized, {"values": values, "every": every, "parts": parts}, seconds))

    for memory_mib in MEMORY_MIB[setting.quick]:
        if memory_mib < 2 * size_mib:
            add(f"memory-{memory_mib}", every=round(2 * size_mib / memory_mib), operations_per_s=100.0)
        elif memory_mib * MIB <= total_memory_bytes() * MOST_OF_MEMORY:
            add(f"memory-{memory_mib}", round(memory_mib / size_mib), operations_per_s=100.0)
    for parts in PARTS[setting.quick]:
        add(f"domains-{2 * parts}", parts=parts, operations_per_s=100.0)
    for per_s in DIRTY[setting.quick]:
        add(f"dirty-{per_s}", operations_per_s=float(max(1, per_s)), write_fraction=1.0 if per_s else 0.0)
    return steps


def total_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of(results: Results, kind: str) -> dict[int, Result]:
    found = {int(name.split("-")[1]): r for name, r in results.items() if name.startswith(f"{kind}-")}
    return dict(sorted(found.items()))


def scan_us_per_page(result: Result) -> float:
    """The engine's time per page and sweep."""
    pages = result["allocated_bytes"] / 4096
    return float(result["cpu_s"]["scan"] / max(1, result["sweeps"]) / pages * 1e6)


def conclude(results: Results) -> Outcome:
    return Outcome(
        tables=[_table(results), _extrapolation(results)],
        pictures=[
            Picture(
                "scale",
                "The engine's CPU time (by the model) as a share of one core, against the guests' memory, their "
                "number and how much they write.",
                partial(_draw, results),
            )
        ],
        verdict=_verdict(results),
    )


LABELS = {
    "memory": "guests' memory, MiB",
    "domains": "domains, of the same memory",
    "dirty": "writes per second and guest",
}


def _share(result: Result) -> float:
    """In % of a core."""
    return float(result["cpu_s"]["scan"] / result["duration_s"] * 100)


def later_share(result: Result) -> float:
    """In the second half of the run, when most is encoded."""
    times, spent_s = (np.array(result["series"][name]) for name in ("time_s", "scan_cpu_s"))
    middle = int(np.searchsorted(times, times[-1] / 2))
    return float((spent_s[-1] - spent_s[middle]) / (times[-1] - times[middle]) * 100)


def _table(results: Results) -> Table:
    rows = [
        [
            LABELS[kind],
            value,
            result["allocated_bytes"] / MIB,
            _share(result),
            later_share(result),
            scan_us_per_page(result),
            result["table_bytes"]["engine"] / (result["allocated_bytes"] / 4096),
            result["saving"]["end"] * 100,
        ]
        for kind in LABELS
        for value, result in _of(results, kind).items()
    ]
    columns = [
        Column("what changes"),
        Column("value", ",d"),
        Column("memory, MiB", ",.0f"),
        Column("engine's CPU, % of a core (model)", ".2f"),
        Column("in the run's second half", ".2f"),
        Column("µs per page and sweep (model)", ".2f"),
        Column("engine's tables, B per page", ".1f"),
        Column("saved at the end, %", ".1f"),
    ]
    return Table("Cost by size", columns, rows)


def _fit(results: Results, share: Callable[[Result], float]) -> tuple[float, float]:
    """Fixed and per-GiB CPU share, in % of a core, of a straight line through the runs by memory."""
    runs = _of(results, "memory")
    gib = np.array([result["allocated_bytes"] / (1 << 30) for result in runs.values()])
    shares = np.array([share(result) for result in runs.values()])
    if len(gib) < 2:
        return 0.0, float(shares[0] / gib[0]) if len(gib) else 0.0
    slope, fixed = np.polyfit(gib, shares, 1)
    return float(fixed), float(slope)


def _extrapolation(results: Results) -> Table:
    lines = [_fit(results, share) for share in (_share, later_share)]
    rows = [[gib, *(max(0.0, fixed + slope * gib) for fixed, slope in lines)] for gib in EXTRAPOLATED_GIB]
    columns = [
        Column("guests' memory, GiB", ",d"),
        Column("engine's CPU, % of a core, if all could go as at first", ",.0f"),
        Column("as in the runs' second half", ",.0f"),
    ]
    return Table("Extrapolated by straight lines through the runs above, not measured", columns, rows)


def _verdict(results: Results) -> list[str]:
    memory = _of(results, "memory")
    parts = []
    if len(memory) > 1:
        first, last = list(memory.values())[0], list(memory.values())[-1]
        parts.append(
            f"Per page and sweep the engine takes {scan_us_per_page(first):.2f} µs with "
            f"{first['allocated_bytes'] / MIB:,.0f} MiB and {scan_us_per_page(last):.2f} µs with "
            f"{last['allocated_bytes'] / MIB:,.0f}."
        )
    dirty = _of(results, "dirty")
    if len(dirty) > 1:
        quiet, busy = list(dirty.items())[0], list(dirty.items())[-1]
        parts.append(
            f"Guests that write nothing cost {_share(quiet[1]):.2f} % of a core and are saved to "
            f"{percent(quiet[1]['saving']['end'])}; with {busy[0]:,} writes a second each, {_share(busy[1]):.2f} % and "
            f"{percent(busy[1]['saving']['end'])}."
        )
    domains = _of(results, "domains")
    if len(domains) > 1:
        few, many = list(domains.items())[0], list(domains.items())[-1]
        parts.append(
            f"The same memory in {few[0]} domains costs {_share(few[1]):.2f} % of a core, in {many[0]} "
            f"{_share(many[1]):.2f} %."
        )
    slopes = [_fit(results, share)[1] for share in (_share, later_share)]
    parts.append(
        f"A straight line through the runs gives {slopes[0]:.1f} % of a core for each GiB over the whole run, in which "
        f"everything is encoded for the first time, and {slopes[1]:.1f} in its second half. The engine has half a core "
        "by default, and takes longer for a sweep where that is too little. What larger hosts take is extrapolated: "
        "caches, memory bandwidth and more than one socket are not in it."
    )
    return parts


def _draw(results: Results) -> Figure:
    figure, axes = drawing.figure(columns=3, height=3.3)
    for axis, (kind, label) in zip(axes, LABELS.items(), strict=True):
        runs = _of(results, kind)
        shares = [_share(result) for result in runs.values()]
        axis.plot(list(runs), shares, "o-", color=drawing.BLUE)
        axis.set_ylim(0, max(shares, default=1.0) * 1.15)
        drawing.titles(axis, "", label, "% of a core" if kind == "memory" else "")
    return figure


EXPERIMENT = Experiment(
    name="scale",
    title="Scale",
    question="How does cost grow with the guests' memory, their number, and how much they write?",
    method="Guests of one release, with a working set of a tenth and few operations: more memory (two with every "
    "so many-th page of their images, then more and more whole ones, up to a fifth of this machine's memory), the same "
    "memory in more domains, or more writes. CPU time is that of the model, whose figures are measured ones; see "
    "docs/simulate.md.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
