# SPDX-License-Identifier: GPL-2.0-or-later
"""Today's peers on the same images in the same run: KSM, zram, and other ways to encode a page against another."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from matplotlib.figure import Figure

from diffengine.evaluation import drawing, ksm, simulating, zram
from diffengine.evaluation.carrying_out import trial
from diffengine.evaluation.experiment import (
    MISSING,
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
    UnavailableError,
)
from diffengine.evaluation.pipelines import OURS, SHARING
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent
from diffengine.images import PAGE_BYTES
from diffengine.native import NONE
from diffengine.simulation import Sample, Where, simulate
from diffengine.simulation.scenario import read_scenario

MIB = 1 << 20
# struct ksm_rmap_item of Linux on 64 bits: one for each page that is scanned.
KSM_METADATA_BYTES = 64
# An entry of zram's table.
ZRAM_METADATA_BYTES = 16
# A scan ends when it has freed as much as KSM did; so long at most. Samples are taken 50 times in that, or each second.
SHORTEST_SCAN_S, SCAN_S_PER_GIB = 6.0, 120.0
# A frame has at most 256 sharers, so zero pages take a few frames where KSM's take none.
ALL = 0.99
XDELTA_PAIRS = {True: 60, False: 300}
ENCODED_PAGES = {True: 2000, False: 30000}


def run_ours(paths: list[str], seed: int, jobs: int) -> Result:
    start_s = time.monotonic()
    with trial(paths, seed, jobs) as images:
        found = {name: images.run(p, timed=True) for name, p in (("ours", OURS), ("sharing only", SHARING))}
        pages = images.pages
    return {"pages": pages, **found, TIMINGS: {"wall_s": time.monotonic() - start_s}}


def run_ksm_and_scan(paths: list[str], seed: int, turns: int) -> Result:
    """KSM and our own scan take turns, so that a busy machine weighs on both. Raises UnavailableError without KSM."""
    with trial(paths, seed, 1) as images:
        kept = images.pages["shared"]
    both = []
    for _ in range(turns):
        merged = run_ksm(paths)
        # KSM counts every page that points at a merged one; one of each content stays.
        both.append({"ksm": merged, "scan": scan(paths, seed, (merged["merged"] - kept) * PAGE_BYTES)})
    return {TIMINGS: {"turns": both}}


def run_ksm(paths: list[str]) -> dict[str, Any]:
    """In a process of its own: its memory is merged and gone."""
    done = subprocess.run([sys.executable, ksm.__file__, *paths], capture_output=True, text=True)
    if done.returncode == ksm.UNAVAILABLE:
        raise UnavailableError(f"KSM: {json.loads(done.stdout)['unavailable']}")
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def scan(paths: list[str], seed: int, wanted_bytes: int) -> dict[str, float]:
    """The engine with sharing alone and no wait between visits, in real time, until it has freed what KSM did."""
    domains = [
        {"name": f"guest{n}", "image": path, "program": "idle", "trust_group": "all"} for n, path in enumerate(paths)
    ]
    engine: dict[str, Any] = {"policy": "sharing-only", "visit_interval_s": 0.001, "cpu_share": 1.0}
    values = simulating.scenario(seed, longest_scan_s(paths), domains, **engine)
    course: dict[str, float] = {}

    def all_is_freed(sample: Sample, allocated: int) -> bool:
        freed = allocated - sample.guest_bytes
        for name, share in (("to_most", ksm.MOST), ("to_all", ALL)):
            if freed >= share * wanted_bytes and f"{name}_s" not in course:
                course.update({f"{name}_s": sample.time_s, f"{name}_cpu_s": sample.engine.cpu_s})
        return "to_all_s" in course

    scenario = read_scenario("evaluate", values, "scan", [Path()])
    found = simulate(scenario, where=Where.THREADS, enough=all_is_freed)
    found.check()
    return {"freed_bytes": float(found.allocated_bytes - found.end.guest_bytes), **course}


def longest_scan_s(paths: Sequence[str]) -> float:
    gib = sum(Path(path).stat().st_size for path in paths) / (1 << 30)
    return max(SHORTEST_SCAN_S, gib * SCAN_S_PER_GIB)


def run_zram(paths: list[str], codec: str) -> Result:
    kept = zram.measure([Path(path) for path in paths], codec)
    found = {"compressed_bytes": kept.compressed_bytes, "memory_bytes": kept.memory_bytes}
    return {**found, TIMINGS: {"cpu_s": kept.cpu_s}}


def run_encoders(paths: list[str], seed: int, pages: int, xdelta_pairs: int) -> Result:
    """Pages alone, and against the reference that our detector found, by other programs' libraries."""
    with trial(paths, seed, 1) as images:
        chosen, references = images.references(OURS)
        picked = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:pages])
        pairs = [
            (images.content(int(chosen[n])), images.content(int(references[n])) if has else None)
            for n, has in ((int(n), references[n] != NONE) for n in picked)
        ]
    encoders: dict[str, Callable[[bytes, bytes | None], int]] = {
        "zstd -1": lambda page, _: len(alone.compress(page)),
        "zstd -1 --patch-from": zstd_patch,
    }
    alone = zstandard.ZstdCompressor(level=1)
    missing = []
    try:
        from lz4 import block

        encoders["LZ4"] = lambda page, _: len(block.compress(page, store_size=False))
        encoders["LZ4 with dictionary"] = lambda page, reference: len(
            block.compress(page, store_size=False, **({"dict": reference} if reference else {}))
        )
    except ImportError:
        missing.append("LZ4, with a dictionary: no such Python module; install the package python3-lz4")
    found: Result = {"pages": len(pairs), "with_reference": sum(r is not None for _, r in pairs), "encoders": {}}
    for name, encode in encoders.items():
        start_s = time.process_time()
        sizes = [min(PAGE_BYTES, encode(page, reference)) for page, reference in pairs]
        found["encoders"][name] = {"bytes": sum(sizes), TIMINGS: {"cpu_s": time.process_time() - start_s}}
    similar = [(page, reference) for page, reference in pairs if reference is not None][:xdelta_pairs]
    try:
        found["xdelta3"] = xdelta3(similar, alone)
    except FileNotFoundError:
        missing.append("xdelta3: no such program; install the package xdelta3")
    found[MISSING] = missing
    return found


def zstd_patch(page: bytes, reference: bytes | None) -> int:
    if reference is None:
        return len(zstandard.ZstdCompressor(level=1).compress(page))
    dictionary = zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(level=1, dict_data=dictionary).compress(page))


def xdelta3(pairs: list[tuple[bytes, bytes]], alone: zstandard.ZstdCompressor) -> dict[str, Any]:
    """The program on pairs of pages, one process each: sizes count, times would be those of starting it."""
    sizes = []
    with tempfile.TemporaryDirectory(prefix="diffengine-") as folder:
        source, target, patch = (Path(folder) / name for name in ("source", "target", "patch"))
        for page, reference in pairs:
            source.write_bytes(reference)
            target.write_bytes(page)
            options = ["-e", "-f", "-1", "-A", "-n", "-S", "none"]
            command = ["xdelta3", *options, "-s", str(source), str(target), str(patch)]
            subprocess.run(command, check=True, capture_output=True)
            sizes.append(patch.stat().st_size)
    return {
        "pairs": len(pairs),
        "mean_bytes": float(np.mean(sizes)) if sizes else 0.0,
        "zstd_patch_mean_bytes": float(np.mean([zstd_patch(p, r) for p, r in pairs])) if pairs else 0.0,
        "zstd_alone_mean_bytes": float(np.mean([len(alone.compress(p)) for p, _ in pairs])) if pairs else 0.0,
    }


def plan(setting: Setting) -> list[Step]:
    subset = setting.images.need_subsets()[0]
    gib = simulating.bytes_of(subset.images) / (1 << 30)
    paths = [str(image.path.resolve()) for image in subset.images]
    seeded = {"paths": paths, "seed": setting.seed}
    steps = [
        Step("ours", run_ours, {**seeded, "jobs": setting.jobs}, 2 + 15 * gib, alone=True),
        Step("ksm", run_ksm_and_scan, {**seeded, "turns": 1 if setting.quick else 3}, 8 + 60 * gib, alone=True),
    ]
    try:
        names = zram.codecs()
    except UnavailableError:
        names = ["lz4"]  # its step says why there is none
    steps += [Step(f"zram-{n}", run_zram, {"paths": paths, "codec": n}, 1 + 10 * gib, alone=True) for n in names]
    quick = setting.quick
    encoders = {"pages": ENCODED_PAGES[quick], "xdelta_pairs": XDELTA_PAIRS[quick]}
    return [*steps, Step("encoders", run_encoders, {**seeded, **encoders}, 5 + 20 * gib, alone=True)]


def conclude(results: Results) -> Outcome:
    tables, targets, verdict = [_left_table(results)], _targets(results), _verdict(results)
    if "encoders" in results:
        tables.append(_encoder_table(results["encoders"]))
    return Outcome(
        tables=tables,
        pictures=[
            Picture(
                "peers",
                "Memory left of the same images by what the kernel has today, and by ours: everything that each of "
                "them takes, its own metadata included.",
                partial(_draw, results),
            )
        ],
        targets=targets,
        verdict=verdict,
    )


def _left(results: Results) -> dict[str, tuple[float, float | None, float | None]]:
    """Bytes left, CPU seconds, seconds until 90 % of its saving."""
    ours = results["ours"]
    total = ours["pages"]["total"]
    rows: dict[str, tuple[float, float | None, float | None]] = {}
    if "ksm" in results:
        turn = _median_turn(results["ksm"])
        kept = total - turn["ksm"]["merged"] + _kept_copies(ours)
        left = kept * PAGE_BYTES + total * KSM_METADATA_BYTES
        rows["KSM"] = (left, turn["ksm"]["own_cpu_s"], turn["ksm"]["to_most_s"])
    for name, result in results.items():
        if name.startswith("zram-"):
            left = result["memory_bytes"] + total * ZRAM_METADATA_BYTES
            rows[name.replace("-", ", ", 1)] = (left, result[TIMINGS]["cpu_s"], None)
    sharing = ours["sharing only"]
    scan_cpu = scan_s = None
    if "ksm" in results:
        scan_found = _median_turn(results["ksm"])["scan"]
        scan_cpu, scan_s = scan_found.get("to_all_cpu_s"), scan_found.get("to_most_s")
    rows["ours, sharing only"] = (sharing["bytes_left"], scan_cpu, scan_s)
    rows["ours"] = (ours["ours"]["bytes_left"], ours["ours"][TIMINGS]["cpu_s"], None)
    return rows


def _kept_copies(ours: Result) -> int:
    """KSM counts every page that points at a merged one; one page of each content stays."""
    return int(ours["pages"]["shared"])


def _median_turn(result: Result) -> dict[str, Any]:
    turns: list[dict[str, Any]] = sorted(result[TIMINGS]["turns"], key=lambda turn: turn["ksm"]["own_cpu_s"])
    return turns[len(turns) // 2]


def _left_table(results: Results) -> Table:
    total = results["ours"]["pages"]["total"] * PAGE_BYTES
    metadata = {"KSM": KSM_METADATA_BYTES, "ours": results["ours"]["ours"]["metadata_bytes"] / (total / PAGE_BYTES)}
    metadata["ours, sharing only"] = results["ours"]["sharing only"]["metadata_bytes"] / (total / PAGE_BYTES)
    rows = [
        [name, left / MIB, (1 - left / total) * 100, cpu_s, most_s, metadata.get(name, ZRAM_METADATA_BYTES)]
        for name, (left, cpu_s, most_s) in _left(results).items()
    ]
    columns = [
        Column("what"),
        Column("memory left, MiB", ",.1f"),
        Column("saved, %", ".1f"),
        Column("CPU, s", ".2f"),
        Column("90 % of KSM's saving after, s", ".2f"),
        Column("metadata per page, B", ".1f"),
    ]
    return Table(f"{total / MIB:,.0f} MiB of images, each peer once to its end", columns, rows)


def _encoder_table(found: Result) -> Table:
    rows: list[list[Any]] = [
        [name, each["bytes"] / found["pages"], each[TIMINGS]["cpu_s"] / found["pages"] * 1e6]
        for name, each in found["encoders"].items()
    ]
    if "xdelta3" in found:
        each = found["xdelta3"]
        rows.append([f"xdelta3 -1, {each['pairs']} pairs with a reference", each["mean_bytes"], None])
        rows.append(["zstd -1 --patch-from, the same pairs", each["zstd_patch_mean_bytes"], None])
        rows.append(["zstd -1, the same pages alone", each["zstd_alone_mean_bytes"], None])
    columns = [
        Column("encoder"),
        Column("bytes per page", ",.0f"),
        Column("encode, µs of CPU, Python's own included", ".1f"),
    ]
    counts = f"{found['pages']:,} different pages, {found['with_reference']:,} with a reference by our detector"
    title = f"Other encoders on {counts}"
    return Table(title, columns, rows)


def _targets(results: Results) -> list[Target]:
    if "ksm" not in results:
        return [Target("KSM is beaten in bytes saved, in CPU per byte and in time", "KSM is not there", None)]
    left = _left(results)
    total = results["ours"]["pages"]["total"] * PAGE_BYTES
    saved = {name: total - each[0] for name, each in left.items()}
    targets = [
        Target(
            "KSM is beaten in bytes saved, by the whole pipeline",
            f"{saved['ours'] / MIB:,.1f} MiB against {saved['KSM'] / MIB:,.1f}",
            saved["ours"] > saved["KSM"],
        )
    ]
    turns = results["ksm"][TIMINGS]["turns"]
    complete = [turn for turn in turns if "to_all_cpu_s" in turn["scan"] and "to_most_s" in turn["scan"]]
    if not complete:
        freed = max(turn["scan"]["freed_bytes"] for turn in turns) / MIB
        measured = f"sharing alone had freed {freed:,.0f} MiB when its time was over, not what KSM did"
        return [*targets, Target("sharing alone takes less CPU per byte, and less time, than KSM", measured, False)]
    cpu = float(np.median([t["scan"]["to_all_cpu_s"] / t["ksm"]["own_cpu_s"] for t in complete]))
    times = float(np.median([t["scan"]["to_most_s"] / t["ksm"]["to_most_s"] for t in complete]))
    return [
        *targets,
        Target("sharing alone, no wait between visits: less CPU per byte than KSM", f"{cpu:.2f} of KSM's", cpu < 1),
        Target("and less time to 90 % of KSM's own saving", f"{times:.2f} of KSM's", times < 1),
    ]


def _verdict(results: Results) -> list[str]:
    left = _left(results)
    total = results["ours"]["pages"]["total"] * PAGE_BYTES
    sizes = ", ".join(f"{name} {each[0] / MIB:,.0f} MiB" for name, each in left.items())
    parts = [f"Of the same images are left: {sizes}."]
    zrams = {name: each[0] for name, each in left.items() if name.startswith("zram")}
    if zrams:
        best = min(zrams, key=lambda name: zrams[name])
        parts.append(
            f"zram finds no copies, and never sees what is similar: at its best ({best}) it leaves "
            f"{zrams[best] / left['ours'][0]:.2f} times as much as ours. It takes no time of its own to find anything."
        )
    if "KSM" in left:
        parts.append(
            "KSM finds exactly the identical pages, and goes on scanning at the same price for ever; it compresses "
            f"nothing. It saves {percent(1 - left['KSM'][0] / total)} of this memory, ours "
            f"{percent(1 - left['ours'][0] / total)}."
        )
    return parts


def _draw(results: Results) -> Figure:
    figure, (axis,) = drawing.figure(height=3.6)
    left = _left(results)
    sizes = [each[0] / MIB for each in left.values()]
    colours = [drawing.BLUE if "ours" in name else drawing.GREY for name in left]
    total = results["ours"]["pages"]["total"] * PAGE_BYTES / MIB
    texts = [f"{size:,.1f} MiB ({percent(size / total)})" for size in sizes]
    drawing.horizontal_bars(axis, list(left), sizes, texts, colours)
    axis.set_xlim(0, max(sizes) * 1.25)
    drawing.titles(axis, f"Memory left of {total:,.0f} MiB", "MiB")
    return figure


EXPERIMENT = Experiment(
    name="peers",
    title="Today's peers",
    question="How do the kernel's KSM and zram, xdelta3, zstd --patch-from and LZ4 with a dictionary compare on the "
    "same images, in the same run?",
    method="KSM: anonymous memory filled with the images, ksmd at full speed until a scan merges nothing more; our "
    "share of its CPU time counts. Ours, sharing alone: the engine on the embedded machine in real time, no wait "
    "between visits. zram: the images written to a device of each codec that the kernel has. Other encoders: each "
    "page against the reference that our detector found. Ours: all pages cold.",
    basis=Basis.MEASURED,
    plan=plan,
    conclude=conclude,
)
