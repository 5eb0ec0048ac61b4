# SPDX-License-Identifier: GPL-2.0-or-later
"""Could aggressive swapping alone do it?"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, simulating
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
)
from diffengine.evaluation.setting import GuestImage, Setting
from diffengine.evaluation.texts import percent

FASTEST, SLOWEST = "NVMe SSD", "hard disk"
# Microseconds to read a page that nobody asked for before, and to write one in a long run; requests served at once.
DISKS = {
    FASTEST: (70.0, 4.0, 64),
    "SATA SSD": (150.0, 10.0, 32),
    "network block device": (700.0, 30.0, 32),
    SLOWEST: (7000.0, 50.0, 1),
}
DURATION_S = {True: 120.0, False: 240.0}
OPERATIONS_PER_S = 1000.0
# Of the operations, to any page: what no policy can foresee.
EXCURSIONS = 0.003
SWAP = {f"C{n}": ["compress", "swap"] if n == 4 else [] for n in range(1, 5)}
# What is out goes on to disk at the end of each sweep, all of it.
AT_ONCE = {"high_watermark": 0.011, "low_watermark": 0.01}
# Mean savings that are counted as equal, and how often to try for them.
EQUAL = 0.01
TRIES = 4
MOST_OUT = 0.98
# Limits on faults are lifted: swapping is not to stop when pages come back.
LIMITS: dict[str, Any] = {"refault_limit": 10_000_000, "fault_limit": 2_000.0}
MIB = 1 << 20


def compare(values: simulating.Values, disks: dict[str, list[float]]) -> Result:
    """Ours, then swapping alone on each disk, so much of it that as much is saved on average as ours did."""
    ours = simulating.run({**values, "engine": {**values["engine"], "policy": "default"}}, nonzero_only=True)
    swap_mib = int(ours["allocated_bytes"] / MIB * 1.2) + 8
    wanted = max(0.0, ours["saving"]["mean"])
    most_out, found = as_much_by_swapping(wanted, lambda share: swap_alone(values, share, swap_mib, disks[FASTEST]))
    others = {name: swap_alone(values, most_out, swap_mib, disk) for name, disk in disks.items() if name != FASTEST}
    return {"ours": ours, "most_out": most_out, "swapping": {FASTEST: found, **others}}


def as_much_by_swapping(wanted: float, run: Callable[[float], Result]) -> tuple[float, Result]:
    """The share of pages that may be out for this mean saving, or as near as it gets, and that run. A mean over a run
    is less than that share, in proportion: nothing is out at its start."""
    share = wanted
    for _ in range(TRIES):
        found = run(share)
        mean = found["saving"]["mean"]
        if abs(mean - wanted) <= EQUAL or mean <= 0 or (mean < wanted and share >= MOST_OUT):
            break
        share = min(MOST_OUT, share * wanted / mean)
    return share, found


def swap_alone(values: simulating.Values, most_out: float, swap_mib: int, disk: Sequence[float]) -> Result:
    """At most such a share of the pages is out, and what is out is on disk."""
    limits = {"evicted_share_limit": most_out, "dense": False, **AT_ONCE, **LIMITS}
    engine = {**values["engine"], "policy": "swap-alone", **limits}
    read_us, write_us, at_once = disk
    machine = {"swap_mib": swap_mib, "swap_read_us": read_us, "swap_write_us": write_us, "swap_at_once": int(at_once)}
    changed = {"engine": engine, "machine": machine, "policies": {"swap-alone": SWAP}}
    return simulating.run({**values, **changed}, nonzero_only=True)


def _images(setting: Setting) -> dict[str, list[GuestImage]]:
    mixes = simulating.stand_ins(setting.guests)
    return {name: mixes[name][:2] for name in ("homogeneous", "MIXED-1") if name in mixes}


def plan(setting: Setting) -> list[Step]:
    duration_s = DURATION_S[setting.quick]
    steps = []
    for name, images in _images(setting).items():
        domains = [
            simulating.guest(
                image, number, "working-set", operations_per_s=OPERATIONS_PER_S, excursion_fraction=EXCURSIONS
            )
            for number, image in enumerate(images, 1)
        ]
        arguments = {
            "values": simulating.scenario(setting.seed, duration_s, domains),
            "disks": {disk: list(times) for disk, times in DISKS.items()},
        }
        seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s) * (len(DISKS) + 3)
        steps.append(Step(name, compare, arguments, seconds))
    return steps


def _runs(result: Result) -> dict[str, Result]:
    return {"ours": result["ours"], **{f"swapping, {disk}": run for disk, run in result["swapping"].items()}}


def operations(result: Result) -> int:
    return int(result["guest"]["reads"] + result["guest"]["writes"])


def stalled_share(result: Result) -> float:
    """Of the guests' time, what they stood still."""
    return float(np.mean([domain["stall_us_per_s"] for domain in result["domains"]]) / 1e6)


def conclude(results: Results) -> Outcome:
    return Outcome(
        tables=[_table(name, result) for name, result in results.items()],
        pictures=[
            Picture(
                "swapping",
                "How much of their time guests stand still (logarithmic), with all techniques in memory and with "
                "swapping alone on different disks.",
                partial(_draw, results),
            )
        ],
        verdict=_verdict(results),
    )


def _table(name: str, result: Result) -> Table:
    base = operations(result["ours"])
    rows = [
        [
            label,
            run["saving"]["mean"] * 100,
            run["saving"]["end"] * 100,
            run["refaults"],
            stalled_share(run) * 100,
            operations(run) / base * 100,
            run["latency_us"]["guest_wait"]["p50"],
            run["latency_us"]["guest_wait"]["p99"],
        ]
        for label, run in _runs(result).items()
    ]
    columns = [
        Column("memory by"),
        Column("saved, mean, %", ".1f"),
        Column("end, %", ".1f"),
        Column("pages that came back", ",d"),
        Column("guests stand still, % of time", ".3f"),
        Column("operations, % of ours", ".1f"),
        Column("a fault, p50, µs (model)", ",.0f"),
        Column("p99, µs (model)", ",.0f"),
    ]
    return Table(f"{name}: the same guests and work", columns, rows)


def _verdict(results: Results) -> list[str]:
    parts = []
    for name, result in results.items():
        ours = stalled_share(result["ours"])
        others = ", ".join(f"{disk} {percent(stalled_share(run), 2)}" for disk, run in result["swapping"].items())
        hard_disk = operations(result["swapping"][SLOWEST]) / operations(result["ours"])
        saved = {label: run["saving"]["mean"] for label, run in _runs(result).items()}
        parts.append(
            f"{name}: with all techniques, guests stand still {percent(ours, 3)} of their time; with swapping "
            f"alone, which saved {percent(saved[f'swapping, {FASTEST}'])} against {percent(saved['ours'])}: {others}. "
            f"On the hard disk they do {percent(hard_disk)} of the operations."
        )
    worst = max(stalled_share(result["swapping"][SLOWEST]) for result in results.values())
    best = max(stalled_share(result["swapping"][FASTEST]) for result in results.values())
    parts.append(
        f"So it depends on the disk, and on how cold what goes out is: up to {percent(worst, 1)} of the time is "
        f"lost on a hard disk, {percent(best, 2)} on an NVMe disk, where a page comes back in some tens of "
        "microseconds. For pages that are "
        "cold for minutes swapping alone is a real alternative today that needs no cleverness. What speaks for "
        "the machinery: sharing costs a reader nothing, faults are shorter by the disk's latency, and memory has no "
        "queue and does not wear out."
    )
    return parts


def _draw(results: Results) -> Figure:
    figure, axes = drawing.figure(columns=len(results), height=3.4, same_y=True)
    for number, (axis, (name, result)) in enumerate(zip(axes, results.items(), strict=True)):
        runs = _runs(result)
        shares = [max(1e-4, stalled_share(run) * 100) for run in runs.values()]
        labels = [label.replace("swapping, ", "swap:\n").replace(" block", "\nblock") for label in runs]
        axis.bar(range(len(runs)), shares, 0.62, color=[drawing.BLUE] + [drawing.GREY] * (len(runs) - 1))
        drawing.note_bars(axis, shares, [f"{share:.3g}" for share in shares])
        axis.set_xticks(range(len(runs)), labels, fontsize=8)
        axis.set_yscale("log")
        drawing.plain_numbers(axis.yaxis)
        axis.margins(y=0.15)
        drawing.titles(axis, name, y="guests stand still (% of time)" if not number else "")
    return figure


EXPERIMENT = Experiment(
    name="swapping",
    title="Swapping alone",
    question="Could aggressive swapping replace all of this: same guests, same work, disks from NVMe to hard disk?",
    method="Two guests that hold only their images' non-zero pages, with a working set of a tenth of them and a "
    "thousand operations a second, 3 in 1,000 of them to any page. First with all techniques; then with neither "
    "sharing nor patching, and everything cold going to disk, so much of it that as much is saved on average (found by "
    "trying, to a point, on the fastest disk); its limits on faults are lifted. Disks are a time to read a page, "
    "one to write it, and how many requests are served at once: one by a hard disk.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
