# SPDX-License-Identifier: GPL-2.0-or-later
"""Could aggressive swapping alone do it?"""

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

# Microseconds to read a page that nobody asked for before, and to write one in a long run.
DISKS = {
    "NVMe SSD": (70.0, 4.0),
    "SATA SSD": (150.0, 10.0),
    "network block device": (700.0, 30.0),
    "hard disk": (7000.0, 50.0),
}
DURATION_S = {True: 120.0, False: 600.0}
OPERATIONS_PER_S = 1000.0
# Of the operations, to any page: what no policy can foresee.
EXCURSIONS = 0.003
SWAP = {f"C{n}": ["compress", "swap"] if n == 4 else [] for n in range(1, 5)}
# What is out goes on to disk at the end of each sweep, all of it.
AT_ONCE = {"high_watermark": 0.011, "low_watermark": 0.01}
# Limits on faults are lifted: swapping is not to stop when pages come back.
LIMITS: dict[str, Any] = {"refault_limit": 10_000_000, "fault_limit": 2_000.0}
MIB = 1 << 20


def compare(values: simulating.Values, disks: dict[str, list[float]]) -> Result:
    """Ours, then swapping alone on each disk, held to what ours saved on average."""
    ours = simulating.run({**values, "engine": {**values["engine"], "policy": "default"}}, nonzero_only=True)
    saved = max(0.0, ours["saving"]["mean"])
    allocated_mib = ours["allocated_bytes"] / MIB
    swap_mib = int(allocated_mib * 1.2) + 8
    swapped = {name: swap_alone(values, saved, swap_mib, *disk) for name, disk in disks.items()}
    return {"ours": ours, "swapping": swapped}


def swap_alone(values: simulating.Values, saved: float, swap_mib: int, read_us: float, write_us: float) -> Result:
    """At most such a share of the pages is out, and what is out is on disk."""
    limits = {"evicted_share_limit": saved, "dense": False, **AT_ONCE, **LIMITS}
    engine = {**values["engine"], "policy": "swap-alone", **limits}
    machine = {"swap_mib": swap_mib, "swap_read_us": read_us, "swap_write_us": write_us}
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
        seconds = simulating.expected_seconds(simulating.bytes_of(images), duration_s) * (len(DISKS) + 1)
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
        others = ", ".join(f"{disk} {stalled_share(run):.2%}" for disk, run in result["swapping"].items())
        hard_disk = operations(result["swapping"]["hard disk"]) / operations(result["ours"])
        saved = {label: run["saving"]["mean"] for label, run in _runs(result).items()}
        parts.append(
            f"{name}: with all techniques, guests stand still {ours:.3%} of their time; with swapping alone, which "
            f"saved {saved['swapping, NVMe SSD']:.0%} against {saved['ours']:.0%}: {others}. On the hard disk they do "
            f"{hard_disk:.0%} of the operations."
        )
    worst = max(stalled_share(result["swapping"]["hard disk"]) for result in results.values())
    best = max(stalled_share(result["swapping"]["NVMe SSD"]) for result in results.values())
    parts.append(
        f"So it depends on the disk, and on how cold what goes out is: up to {worst:.1%} of the time is lost on a "
        f"hard disk, {best:.2%} on an NVMe disk, where a page comes back in some tens of microseconds. For pages that "
        "are cold for minutes swapping alone is a real alternative today that needs no cleverness. What speaks for "
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
        axis.margins(y=0.15)
        drawing.titles(axis, name, y="guests stand still (% of time)" if not number else "")
    return figure


EXPERIMENT = Experiment(
    name="swapping",
    title="Swapping alone",
    question="Could aggressive swapping replace all of this: same guests, same work, disks from NVMe to hard disk?",
    method="Two guests that hold only their images' non-zero pages, with a working set of a tenth of them and a "
    "thousand operations a second, 3 in 1,000 of them to any page. First with all techniques; then with neither "
    "sharing nor patching, and everything cold going to disk. That is held to what ours saved on average as the most "
    "it may have out, so its own mean is lower; its limits on faults are lifted. Disks are a time to read a page and "
    "one to write it, each served one after the other by a thread for each guest.",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
