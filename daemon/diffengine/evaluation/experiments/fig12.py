# SPDX-License-Identifier: GPL-2.0-or-later
"""Figure 12: more guests in the same memory."""

from functools import partial
from pathlib import Path
from typing import Any

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
from diffengine.evaluation.texts import percent
from diffengine.images import PAGE_BYTES

# The paper: 2.8 GB for four guests of 650 MB each.
HOST_IN_GUESTS = 2800 / 650
# As many as fit without the engine, and as many as the paper's served best.
PAPERS_GUESTS, PAPERS_BEST = 4, 6
PAPERS_GAIN = paper.FIGURE_12[PAPERS_BEST] / paper.FIGURE_12[PAPERS_GUESTS]
COUNTS = {True: (4, 6, 8, 10), False: (4, 5, 6, 7, 8, 9, 10)}
DURATION_S = 40.0
# Guests are so large at most: the more pages, the more is asked for.
GUEST_MIB = 64
# A guest that serves requests uses more of its memory than an idle one, and all of that again within seconds.
WORKING_SET, ZIPF, WRITES = 0.6, 0.3, 0.3
PERIOD_S = 3.0
# Until memory is back below the limit, guests are not counted.
SETTLED_S = 0.5
# Memory in use, of what there is, that counts as fitting: the engine looks at it once in a sweep.
FITS = 1.03
# One hard disk for all guests: it serves one request after the other.
DISK_US, DISK_AT_ONCE = (7000.0, 50.0), 1
ENGINE: dict[str, Any] = {
    "policy": "default",
    "cpu_share": 1.0,
    "fault_limit": 100_000.0,
    "refault_limit": 10_000_000,
}
MIB = 1 << 20


def run(values: simulating.Values, host_in_guests: float, every: int) -> Result:
    """The engine is held to memory for so many of the guests, counted by their non-zero pages. every: guests have one
    content in so many of their images."""
    pages = [simulating.nonzero_pages(Path(domain["image"]), every) for domain in values["domain"]]
    sizes = [count * PAGE_BYTES for count in pages]
    rates = [round(count * WORKING_SET / PERIOD_S) for count in pages]
    domains = [{**each, "operations_per_s": rate} for each, rate in zip(values["domain"], rates, strict=True)]
    limit_bytes = host_in_guests * float(np.mean(sizes))
    # All guests are there at the start, and copies on write need a frame.
    memory_mib = -(-sum(sizes) // MIB) + 2 * len(sizes)
    limit = min(0.99, limit_bytes / (memory_mib * MIB))
    engine = {**values["engine"], "high_watermark": limit, "low_watermark": limit * 0.97}
    disk = {"swap_mib": memory_mib * 2, "swap_read_us": DISK_US[0], "swap_write_us": DISK_US[1]}
    disk["swap_at_once"] = DISK_AT_ONCE
    machine = {"memory_mib": memory_mib, **disk}
    values = {**values, "domain": domains, "machine": machine}
    found = simulating.run({**values, "engine": engine}, nonzero_only=True, every=every)
    found["limit_bytes"] = limit_bytes
    if settled(found)["used"] <= FITS:
        return found
    # What Clock leaves in memory does not fit: a host would have to take pages that are in use.
    found = simulating.run({**values, "engine": {**engine, "policy": "aggressive"}}, nonzero_only=True, every=every)
    return {**found, "limit_bytes": limit_bytes}


def plan(setting: Setting) -> list[Step]:
    alike = simulating.stand_ins(setting.guests)["homogeneous"]
    every = max(1, round(simulating.bytes_of(alike[:1]) / (GUEST_MIB * MIB)))
    program = {"working_set": WORKING_SET, "zipf": ZIPF, "write_fraction": WRITES}
    steps = []
    for count in COUNTS[setting.quick]:
        images = [alike[number % len(alike)] for number in range(count)]
        domains = [simulating.guest(image, number, "working-set", **program) for number, image in enumerate(images, 1)]
        arguments = {
            "values": simulating.scenario(setting.seed, DURATION_S, domains, **ENGINE),
            "host_in_guests": HOST_IN_GUESTS,
            "every": every,
        }
        seconds = simulating.expected_seconds(simulating.bytes_of(images) / every, DURATION_S) * 8
        steps.append(Step(f"{count}", run, arguments, seconds))
    return steps


def settled(result: Result) -> dict[str, float]:
    """Operations per second of all guests, and how much memory is in use, in the last part of the run."""
    series = result["series"]
    # The one before: while the engine waits for the disk, none is taken.
    first = int(np.searchsorted(series["time_s"], series["time_s"][-1] * SETTLED_S, side="right")) - 1
    seconds = series["time_s"][-1] - series["time_s"][first]
    used = 1 - np.array(series["saving"][first:])
    return {
        "operations_per_s": (series["operations"][-1] - series["operations"][first]) / seconds,
        "refaults_per_s": (series["refaults"][-1] - series["refaults"][first]) / seconds,
        "used": float(used.mean()) * result["allocated_bytes"] / result["limit_bytes"],
        "swap_mib": series["swap_bytes"][-1] / MIB,
    }


def conclude(results: Results) -> Outcome:
    found = {int(count): settled(result) for count, result in sorted(results.items(), key=lambda item: int(item[0]))}
    fitting = [count for count, each in found.items() if each["used"] <= FITS]
    most = max(fitting, key=lambda count: found[count]["operations_per_s"], default=None)
    return Outcome(
        tables=[_table(found)],
        pictures=[
            Picture(
                "fig12",
                "Operations per second of all guests together in the second half of the run, by how many guests share "
                "the same memory, as a share of what four do; hollow marks: the paper's requests. Right: memory in "
                "use, as a share of what there is.",
                partial(_draw, found),
            )
        ],
        targets=_targets(found, most),
        verdict=_verdict(found, most),
    )


def _table(found: dict[int, dict[str, float]]) -> Table:
    base = found[PAPERS_GUESTS]["operations_per_s"]
    printed = paper.FIGURE_12
    rows = [
        [
            count,
            each["operations_per_s"],
            each["operations_per_s"] / base * 100,
            printed[count] / printed[PAPERS_GUESTS] * 100 if count in printed else None,
            each["used"] * 100,
            each["swap_mib"],
            each["refaults_per_s"],
        ]
        for count, each in found.items()
    ]
    columns = [
        Column("guests", "d"),
        Column("operations/s", ",.0f"),
        Column("% of four guests'", ".0f"),
        Column("paper, %", ".0f"),
        Column("memory in use, % of the limit", ".0f"),
        Column("on disk, MiB", ",.1f"),
        Column("pages that come back per second", ",.1f"),
    ]
    return Table("Guests in memory for 4.3 of them", columns, rows)


def _targets(found: dict[int, dict[str, float]], most: int | None) -> list[Target]:
    """most: which of the numbers of guests that fit does most work."""
    base = found[PAPERS_GUESTS]["operations_per_s"]
    none = "none that was tried fits"
    gain = found[most]["operations_per_s"] / base if most is not None else None
    return [
        Target(
            "more guests in the same memory do more work, at least up to the paper's six",
            none if most is None else f"best with {most}, of those that fit",
            most is not None and most >= PAPERS_BEST,
        ),
        Target(
            f"and at least the paper's {PAPERS_GAIN:.2f} times the work of four",
            none if gain is None else f"{gain:.2f} times",
            gain is not None and gain >= PAPERS_GAIN,
        ),
    ]


def _verdict(found: dict[int, dict[str, float]], most: int | None) -> list[str]:
    modelled = (
        "How a guest's work is modelled decides where the limit is (60 % of the non-zero pages are in use, each again "
        "after some seconds; a hard disk)."
    )
    if most is None:
        return ["None of the numbers of guests that were tried fits into the memory.", modelled]
    gain, last = found[most]["operations_per_s"] / found[PAPERS_GUESTS]["operations_per_s"], max(found)
    beyond = found[last]["operations_per_s"] / found[most]["operations_per_s"]
    parts = [
        f"Memory that holds 4.3 guests as they are serves {most} best, of those that fit, with "
        f"{gain:.2f} times the work of four (the paper: six, {PAPERS_GAIN:.2f} times)."
    ]
    if last > most:
        parts.append(
            f"With {last}, guests together do {percent(beyond)} of that, in {percent(found[last]['used'])} of the "
            f"memory: {found[last]['swap_mib']:,.0f} MiB are on disk, and "
            f"{found[last]['refaults_per_s']:,.0f} pages a second come back."
        )
        if beyond < 1:
            parts.append(
                "That is the limit the paper shows: what does not fit any more goes to disk, and soon it is what is "
                "needed next."
            )
    else:
        parts.append(f"The limit was not found: with {last} guests, the most that were tried, work still rises.")
    return [*parts, modelled]


def _draw(found: dict[int, dict[str, float]]) -> Figure:
    figure, (work, memory) = drawing.figure(columns=2)
    counts = list(found)
    base = found[PAPERS_GUESTS]["operations_per_s"]
    work.plot(
        counts,
        [each["operations_per_s"] / base * 100 for each in found.values()],
        "o-",
        color=drawing.BLUE,
        label="ours",
    )
    printed = {count: requests / paper.FIGURE_12[PAPERS_GUESTS] * 100 for count, requests in paper.FIGURE_12.items()}
    drawing.draw_paper(work, list(printed), list(printed.values()))
    work.plot(
        counts,
        [count / PAPERS_GUESTS * 100 for count in counts],
        ":",
        color=drawing.GREY,
        label="if memory were no limit",
    )
    work.set_ylim(bottom=0)
    drawing.titles(work, "Work of all guests", "guests", "% of what four do")
    drawing.legend(work)
    memory.plot(
        counts, [each["used"] * 100 for each in found.values()], "o-", color=drawing.ORANGE, label="memory in use"
    )
    memory.axhline(100, color="black", linewidth=0.8, linestyle="--", label="all there is")
    memory.set_ylim(bottom=0)
    for axis in (work, memory):
        axis.set_xticks(range(min(counts), max(counts) + 1))
    drawing.titles(memory, "Memory", "guests", "% of the host's memory")
    drawing.legend(memory, loc="lower right")
    return figure


EXPERIMENT = Experiment(
    name="fig12",
    title="Figure 12: more guests in the same memory",
    question="Does aggregate throughput rise as guests are added to the same memory, up to what limit, and why does it "
    "fall then?",
    method="Guests of one release that hold only their images' non-zero pages (of large images one content in so many, "
    "as if a guest had 64 MiB), each with a working set of 60 % of them, hardly more popular one than the other. In "
    "three seconds it asks for as many pages as the working set has, 30 % of them to write (for fewer if it stands "
    "still). The engine is held to memory for 4.3 guests, as in the paper: what is above goes to a hard disk. All "
    "guests are there from the start, in memory that is taken away as the engine frees it; only the second half of "
    "the run counts. Where what the default policy keeps does not fit, pages in use have to go, too (policy "
    f"aggressive). {simulating.FEW_IMAGES}",
    basis=Basis.VIRTUAL,
    plan=plan,
    conclude=conclude,
)
