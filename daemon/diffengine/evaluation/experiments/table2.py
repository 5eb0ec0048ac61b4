# SPDX-License-Identifier: GPL-2.0-or-later
"""Table 2: microseconds per operation, alone and with all that is around it."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import isnan, nan
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from diffengine._native import ffi, lib
from diffengine.analysis.pipelines import Codec, Detector, Pipeline
from diffengine.evaluation import drawing, paper
from diffengine.evaluation.carrying_out import Trial, trial
from diffengine.evaluation.experiment import (
    TIMINGS,
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
from diffengine.evaluation.pipelines import OURS, PAPERS_PATCH_LIMIT, SHARING_LZ4
from diffengine.evaluation.setting import Setting
from diffengine.hypervisor.embedded import Machine, Pager, Swap
from diffengine.hypervisor.machine import check_errno
from diffengine.hypervisor.protocol import Outcome as Done
from diffengine.images import PAGE_BYTES
from diffengine.native import PageNumbers, Store

MIB = 1 << 20
ALONE, AROUND = "alone", "with all around it"
BATCH = 64
ROUNDS = {True: 15, False: 40}
FAST = Pipeline("fast", True, Codec.LZ4, Detector.SHIFT, patch_limit=PAPERS_PATCH_LIMIT)
# The paper's operation, and ours beside it.
PAPERS = {
    "share": "share",
    "copy on write": "copy on write",
    "compress": "compress (LZ4)",
    "decompress": "decompress (LZ4)",
    "patch": "patch (fast form)",
    "unpatch": "unpatch (fast form)",
    "swap out": "swap out",
    "swap in": "swap in",
}


def run(paths: list[str], seed: int, rounds: int) -> Result:
    times: dict[str, dict[str, float]] = {}
    with trial(paths, seed, 1) as images:
        times |= _codecs(images)
        for name, found in _on_machine(images, rounds).items():
            times[name] = times.get(name, {}) | found
    return {TIMINGS: known(times)}


def known(times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Without those of which these images have no pages."""
    found = {name: {kind: us for kind, us in each.items() if not isnan(us)} for name, each in times.items()}
    return {name: each for name, each in found.items() if each}


def _codecs(images: Trial) -> dict[str, dict[str, float]]:
    """Encoding and decoding alone, on one thread, caches as they are."""
    times = {}
    for name, pipeline in (("LZ4", SHARING_LZ4), ("fast form", FAST), ("dense", OURS)):
        found = images.run(pipeline, timed=True)
        rebuilt = found[TIMINGS]
        if name == "LZ4":
            times["decompress (LZ4)"] = {ALONE: rebuilt.get("rebuild_alone_us", nan)}
            times["compress (LZ4)"] = {ALONE: images.encode_us(pipeline, patched=False)}
        elif name == "fast form":
            times["unpatch (fast form)"] = {ALONE: rebuilt.get("rebuild_patched_us", nan)}
            times["patch (fast form)"] = {ALONE: images.encode_us(pipeline, patched=True)}
        else:
            times["decompress (dense)"] = {ALONE: rebuilt.get("rebuild_alone_us", nan)}
            times["compress (dense)"] = {ALONE: images.encode_us(pipeline, patched=False)}
    return times


def _on_machine(images: Trial, rounds: int) -> dict[str, dict[str, float]]:
    """The same pages on the embedded machine: calls of the pager, which take its locks and call the machine; and what a
    guest waits, its wake-up included."""
    numbers = np.arange(images.pages["total"], dtype=np.uint32)
    content = images.addresses()
    machine = Machine(len(numbers) + rounds * BATCH + 1024)
    times: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="diffengine-") as folder, Store(len(numbers) * 2 * PAGE_BYTES) as store:
        swap = Swap(Path(folder) / "swap", max(8, rounds * BATCH * PAGE_BYTES * 2 // MIB) * MIB)
        domid = machine.create_domain(content)
        pager = Pager(machine, store, swap)
        host = _Host(machine, pager, domid)
        try:
            pager.add_domain(domid, len(numbers))
            leaders, followers = images.copies()
            count = rounds * BATCH
            times["share"] = {AROUND: host.share_us(leaders[:count], followers[:count])}
            times["copy on write"] = {AROUND: host.write_us(followers[:count])}
            alone = np.setdiff1d(images.unique(), np.concatenate([leaders, followers]))[: 3 * count]
            ids = images.put(SHARING_LZ4, store, alone)
            for name, pages in (("LZ4", alone[:count]), ("swapped", alone[count : 2 * count])):
                evict_us, gone = host.evict(pages, ids[pages])
                if not len(gone):
                    continue
                if name == "LZ4":
                    times["evict: verify, hypercalls"] = {AROUND: evict_us}
                    times["decompress (LZ4)"] = {AROUND: host.read_us(gone)}
                else:
                    times["swap out"] = {AROUND: host.swap_out_us(ids[gone])}
                    times["swap in"] = {AROUND: host.read_us(gone)}
        finally:
            host.close()
            pager.close()
            swap.close()
    machine.close()
    return times


class _Host:
    """One domain on the embedded machine."""

    def __init__(self, machine: Machine, pager: Pager, domid: int) -> None:
        self._pager, self._domid = pager, domid
        result = ffi.new("struct de_vcpu **")
        check_errno(lib.de_vcpu_create(machine.handle, domid, result), "making a vCPU")
        self._vcpu = result[0]

    def share_us(self, leaders: PageNumbers, followers: PageNumbers) -> float:
        """Median over batches, of microseconds per page."""
        spent = []
        for start in range(0, len(leaders), BATCH):
            sources, clients = (np.ascontiguousarray(pages[start : start + BATCH]) for pages in (leaders, followers))
            domids = np.full(len(sources), self._domid, dtype=np.uint16)
            begin = time.perf_counter()
            self._pager.share(domids, sources, domids, clients)
            spent.append((time.perf_counter() - begin) / len(sources) * 1e6)
        return float(np.median(spent)) if spent else nan

    def evict(self, pages: PageNumbers, ids: PageNumbers) -> tuple[float, PageNumbers]:
        """Microseconds per page, and those that went."""
        spent, gone = [], []
        for start in range(0, len(pages), BATCH):
            part = np.ascontiguousarray(pages[start : start + BATCH])
            domids = np.full(len(part), self._domid, dtype=np.uint16)
            begin = time.perf_counter()
            results = self._pager.evict(domids, part, np.ascontiguousarray(ids[start : start + BATCH]))
            spent.append((time.perf_counter() - begin) / len(part) * 1e6)
            gone.append(part[results == Done.DONE])
        return (float(np.median(spent)), np.concatenate(gone)) if spent else (nan, pages[:0])

    def swap_out_us(self, ids: PageNumbers) -> float:
        spent = []
        for start in range(0, len(ids), BATCH):
            part = np.ascontiguousarray(ids[start : start + BATCH])
            begin = time.perf_counter()
            self._pager.swap_out(part)
            spent.append((time.perf_counter() - begin) / len(part) * 1e6)
        return float(np.median(spent))

    def read_us(self, pages: PageNumbers) -> float:
        """What a guest waits that reads one byte of such a page: the median, of one vCPU that does nothing else."""
        buffer = ffi.new("uint8_t[1]")
        return self._median_us(lambda page: lib.de_machine_guest_read(self._vcpu, page, 0, buffer, 1), pages)

    def write_us(self, pages: PageNumbers) -> float:
        """The same for a write."""
        buffer = ffi.new("uint8_t[1]")
        return self._median_us(lambda page: lib.de_machine_guest_write(self._vcpu, page, 0, buffer, 1), pages)

    @staticmethod
    def _median_us(access: Callable[[int], int], pages: PageNumbers) -> float:
        spent = []
        for page in pages.tolist():
            begin = time.perf_counter()
            check_errno(access(page), "a guest's access")
            spent.append((time.perf_counter() - begin) * 1e6)
        return float(np.median(spent)) if spent else nan

    def close(self) -> None:
        lib.de_vcpu_free(self._vcpu)


def plan(setting: Setting) -> list[Step]:
    subset = setting.images.need_subsets()[0]
    arguments = {"paths": subset.paths, "seed": setting.seed, "rounds": ROUNDS[setting.quick]}
    size = sum(image.path.stat().st_size for image in subset.images)
    return [Step("operations", run, arguments, 3 + size / (1 << 30) * 25, alone=True)]


def conclude(results: Results) -> Outcome:
    times = results["operations"][TIMINGS]
    return Outcome(
        tables=[_table(times)],
        pictures=[
            Picture(
                "table2",
                "Microseconds per page (logarithmic): the operation alone, and with locks, hypercalls and, where a "
                "guest waits, its wake-up. Hollow marks: the paper's.",
                partial(_draw, times),
            )
        ],
        targets=_targets(times),
        verdict=_verdict(times),
    )


def _of(times: dict[str, dict[str, float]], operation: str) -> tuple[float | None, float | None]:
    found = times.get(operation, {})
    return found.get(ALONE), found.get(AROUND)


def _table(times: dict[str, dict[str, float]]) -> Table:
    papers = {ours: paper.TABLE_2_US[name] for name, ours in PAPERS.items()}
    names = list(dict.fromkeys([*PAPERS.values(), *times]))
    rows = [[name, papers.get(name), *_of(times, name)] for name in names]
    columns = [
        Column("operation"),
        Column("paper, µs", ",.1f"),
        Column("alone, µs", ",.2f"),
        Column("with all around it, µs", ",.2f"),
    ]
    return Table("Microseconds per page, medians", columns, rows)


def _targets(times: dict[str, dict[str, float]]) -> list[Target]:
    """Our own work, where it can be told apart, else with all around it."""
    targets = []
    for name, ours in PAPERS.items():
        alone, around = _of(times, ours)
        found = alone if alone is not None else around
        claim = f"{name}: at most the paper's {paper.TABLE_2_US[name]:,} µs"
        if found is None:
            targets.append(Target(claim, "no such pages in these images", None))
        else:
            targets.append(Target(claim, f"{found:,.2f} µs", found <= paper.TABLE_2_US[name]))
    return targets


def _verdict(times: dict[str, dict[str, float]]) -> list[str]:
    decompress, swap_in = _of(times, "decompress (LZ4)"), _of(times, "swap in")
    parts = []
    if decompress[0] is not None and decompress[1] is not None:
        parts.append(
            f"To decompress a page takes {decompress[0]:.1f} µs, but a guest that touches it waits "
            f"{decompress[1]:.0f} µs: fault, wake-up, a frame, the rebuilt page's check, wake-up. The paper's table "
            "has the first alone; the second is what an application feels, and the table does not show it."
        )
    if swap_in[1] is not None:
        parts.append(f"From swap it waits {swap_in[1]:.0f} µs here, from the disk that temporary files are on.")
    parts.append("Medians of one run, on a machine that others may be using; the table says nothing of the tail.")
    return parts


def _draw(times: dict[str, dict[str, float]]) -> Figure:
    figure, (axis,) = drawing.figure(height=3.8)
    names = list(dict.fromkeys([*PAPERS.values(), *times]))
    places = np.arange(len(names))
    for offset, kind, colour in ((-0.2, ALONE, drawing.SKY), (0.2, AROUND, drawing.BLUE)):
        values = [times.get(name, {}).get(kind, np.nan) for name in names]
        axis.bar(places + offset, values, 0.38, color=colour, label=kind)
    printed = [(names.index(ours), paper.TABLE_2_US[name]) for name, ours in PAPERS.items()]
    drawing.draw_paper(axis, [place for place, _ in printed], [value for _, value in printed])
    axis.set_yscale("log")
    drawing.plain_numbers(axis.yaxis)
    labels = [name.replace(" (", "\n(").replace(": ", ":\n").replace(", ", ",\n") for name in names]
    axis.set_xticks(places, labels, fontsize=7.5)
    drawing.titles(axis, "An operation on a page", y="µs")
    drawing.legend(axis)
    return figure


EXPERIMENT = Experiment(
    name="table2",
    title="Table 2: what an operation takes",
    question="How many microseconds does each operation take, by itself, and with locks, hypercalls and the "
    "guest's fault?",
    method="On pages of real images. Alone: the codec, on one thread. With all around it: the pager's call, which "
    "takes its locks, verifies, and calls the embedded machine (whose hypercalls cost other than Xen's); for what a "
    "guest waits for, one vCPU that touches such pages one after the other, wake-ups included. Swap is a real file, "
    "read past the page cache.",
    basis=Basis.MEASURED,
    plan=plan,
    conclude=conclude,
)
