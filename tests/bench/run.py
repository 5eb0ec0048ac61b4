# SPDX-License-Identifier: GPL-2.0-or-later
"""All benchmarks against their targets, one after the other, as one table: `make bench`.

Times of single steps are ratios to a peer that takes its turn in the same run, so that a busy machine weighs on both.
What was measured, how, and against what is in README.md beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import device_models, footprint, live, simulations, targets, yardstick
from bench.targets import Row, Verdict, values
from diffengine.evaluation import ksm

MIB = 1 << 20
PAGE_BYTES = 4096
# A sample's pages were chosen by content (tests/images/README.md); a guest with less memory than this is none.
WHOLE_IMAGE_BYTES = 128 * MIB
# The stated time is for two images of 512 MiB.
TIMED_BYTES = 1024 * MIB
JOBS = 2
SEED = 1
PARTS = ("images", "live", "long")


@dataclass(frozen=True)
class Setting:
    """programs: where the C benchmarks are. runs: how often each of them is repeated."""

    images: tuple[Path, ...]
    programs: Path
    command: Path
    runs: int

    @property
    def bytes(self) -> int:
        return sum(image.stat().st_size for image in self.images)

    @property
    def whole(self) -> bool:
        return all(image.stat().st_size >= WHOLE_IMAGE_BYTES for image in self.images)


def say(text: str) -> None:
    """Progress, with what else the machine is doing: a figure is worth as much as the machine was quiet."""
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"{time.strftime('%H:%M:%S')} {text} (load average {load})", file=sys.stderr, flush=True)


def run_program(setting: Setting, name: str, inputs: Sequence[Path], *options: str) -> list[dict[str, Any]]:
    """A C benchmark's JSON of each run. Raises CalledProcessError if it fails."""
    results = []
    for turn in range(setting.runs):
        say(f"{name}, run {turn + 1} of {setting.runs}")
        results.append(run_json([str(setting.programs / name), *options, *map(str, inputs)]))
    return results


def run_json(command: Sequence[str], allowed: Sequence[int] = (0,)) -> dict[str, Any]:
    """Raises CalledProcessError if the exit status is none of those allowed."""
    run = subprocess.run(command, stdout=subprocess.PIPE)
    if run.returncode not in allowed:
        raise subprocess.CalledProcessError(run.returncode, command)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def digest_rows(runs: Sequence[dict[str, Any]], whole: bool) -> list[Row]:
    rows = []
    for part, where in (("images", "the images"), ("nonzero_anonymous", "non-zero pages")):
        speeds = values(runs, part, "threads_1", "digest_gbps")
        note = f"digest {max(speeds):.1f} GB/s, read loop {max(values(runs, part, 'threads_1', 'read_gbps')):.1f}"
        speed = values(runs, part, "threads_1", "ratio")
        scaling = values(runs, part, "scaling_ratio")
        rows += [
            Row(f"digest / read loop, {where}", 0.70, speed, at_least=True, judged=whole, note=note),
            Row(f"its scaling to 2 threads / the loop's, {where}", 0.85, scaling, at_least=True, judged=whole),
        ]
    return rows


def patch_rows(runs: Sequence[dict[str, Any]], whole: bool) -> list[Row]:
    first = runs[0]
    times = "; ".join(
        f"{name} {first[name]['encode_ns'] / 1000:.2f}/{first[name]['decode_ns'] / 1000:.2f} us"
        for name in ("patch", "lz4", "xdelta3")
        if name in first
    )
    missing = "" if "xdelta3" in first else "xdelta3's source is not there: see tests/bench/README.md"
    sizes = f"{first['pairs']} pairs; {first['patch']['mean_bytes']:.0f} B, LZ4 {first['lz4']['mean_bytes']:.0f} B"
    return [
        Row("patch encode / LZ4 with dictionary", 0.7, values(runs, "to_lz4", "encode"), judged=whole, note=times),
        Row("patch decode / LZ4 with dictionary", 0.5, values(runs, "to_lz4", "decode"), judged=whole),
        Row("patch size / LZ4 with dictionary", 1.0, values(runs, "to_lz4", "bytes"), judged=whole, note=sizes),
        Row("patch encode / xdelta3 -1", 0.1, values(runs, "to_xdelta3", "encode"), judged=whole, note=missing),
        Row("patch decode / xdelta3 -1", 0.1, values(runs, "to_xdelta3", "decode"), judged=whole, note=missing),
    ]


def fill_store(setting: Setting, store: Path) -> None:
    say("filling a store")
    script = Path(__file__).parent / "fill_store.py"
    subprocess.run([sys.executable, str(script), str(store), *map(str, setting.images)], check=True)


def rebuild_rows(from_store: Sequence[dict[str, Any]], codec: Sequence[dict[str, Any]]) -> list[Row]:
    patched, alone, dense = from_store[0]["patched"], from_store[0]["alone"], codec[0]
    peers = f"LZ4 {dense['lz4']['p50_us']:.1f} us, zstd -1 {dense['zstd']['p50_us']:.1f} us in the same run"
    if not patched["count"]:
        return [Row("dense patch rebuilt from the store, p50", 10, (), " us", note="no patches in these images")]
    return [
        Row(
            "dense patch rebuilt from the store, p50",
            10,
            values(from_store, "patched", "p50_us"),
            " us",
            note=f"{patched['count']} patches; p99 {patched['p99_us']:.1f} us",
        ),
        Row(
            "dense page alone from the store, p50",
            10,
            values(from_store, "alone", "p50_us"),
            " us",
            note=f"{alone['count']} pages; p99 {alone['p99_us']:.1f} us",
        ),
        Row("dense patch, the codec's part, p50", 10, values(codec, "patched", "p50_us"), " us", note=peers),
    ]


def run_analyze(setting: Setting, directory: Path, *options: str) -> tuple[dict[str, Any], footprint.Run]:
    say(" ".join(["diffengine analyze", *options]))
    command = [str(setting.command), "analyze", "--json", "--jobs", str(JOBS), "--seed", str(SEED), *options]
    run = footprint.run([*command, *map(str, setting.images)], directory / "analysis.json")
    return json.loads(run.output), run


def size_rows(stick: yardstick.Yardstick, report: dict[str, Any], without: dict[str, Any], whole: bool) -> list[Row]:
    """Raises ValueError when the yardstick and the report do not speak of the same pages."""
    pages = report["pages"]
    if (pages["total"], pages["zero"], pages["distinct"]) != (stick.pages, stick.zero, stick.distinct):
        raise ValueError(f"analyze counts {pages}, the yardstick {stick}")
    best = report["pipelines"]["best"]
    encoded, left = best["encoded_bytes"], best["bytes_left"]
    alone = without["pipelines"]["best"]["encoded_bytes"]
    note = f"{encoded / MIB:.2f} MiB; zstd -3 --long=27 over {stick.distinct} pages {stick.bytes / MIB:.2f} MiB"
    gain = f"{alone / MIB:.2f} MiB without references; {best['patched_pages']} patched"
    per_page = (report["metadata_bytes_per_page"],)
    return [
        Row("best, encoded bytes / yardstick", 1.05, (encoded / stick.bytes,), judged=whole, note=note),
        Row("best, bytes left / yardstick", 1.20, (left / stick.bytes,), judged=whole, note=f"{left / MIB:.2f} MiB"),
        Row("encoded bytes with references / without", 0.90, (encoded / alone,), judged=whole, note=gain),
        Row("metadata per guest page", 24, per_page, " B", judged=whole),
    ]


def process_rows(setting: Setting, run: footprint.Run) -> list[Row]:
    allowed = 20.0 * setting.bytes / TIMED_BYTES
    on_tmpfs = any(footprint.on_tmpfs(image) for image in setting.images)
    cores = len(os.sched_getaffinity(0))
    offered = cores * run.wall_seconds
    time_note = (
        f"{run.cpu_seconds:.1f} s of CPU; others took {run.others_seconds:.1f} of {cores} cores' {offered:.1f} s"
    )
    memory_note = (
        "can't be told from the images, which are on a tmpfs"
        if on_tmpfs
        else f"peak with store {run.peak_total_bytes / MIB:.0f} MiB, store alone {run.peak_store_bytes / MIB:.0f} MiB"
    )
    own = () if on_tmpfs else (run.peak_own_bytes / MIB,)
    return [
        Row("analyze, wall time", allowed, (run.wall_seconds,), " s", judged=setting.whole, note=time_note),
        Row(
            "analyze, peak RssAnon + RssShmem - store",
            setting.bytes / 4 / MIB,
            own,
            " MiB",
            judged=setting.whole,
            note=memory_note,
        ),
    ]


def scan_rows(setting: Setting) -> list[Row]:
    """KSM and our scan take turns."""
    scans, peers = [], []
    peer = [sys.executable, str(Path(ksm.__file__)), *map(str, setting.images)]
    for turn in range(setting.runs):
        say(f"the kernel's KSM and scan_bench, run {turn + 1} of {setting.runs}")
        peers.append(run_json(peer, (0, ksm.UNAVAILABLE)))
        scans.append(run_json([str(setting.programs / "scan_bench"), *map(str, setting.images)]))
    return live.scan_rows(scans, peers, setting.whole)


def measure_live(setting: Setting) -> list[Row]:
    """What concerns guests that run."""
    swap = ("-d", str(setting.programs))
    rows = live.table2_rows(run_program(setting, "table2_bench", setting.images, *swap), setting.whole)
    rows += live.fault_rows(run_program(setting, "fault_bench", setting.images), setting.whole)
    rows += live.process_fault_rows(run_program(setting, "process_fault_bench", ()))
    say("device_models.py")
    rows += device_models.rows(setting.programs.parents[1], setting.runs)
    return rows + scan_rows(setting) + log_dirty_rows(setting)


def log_dirty_rows(setting: Setting) -> list[Row]:
    runs = []
    for turn in range(setting.runs):
        say(f"log_dirty, run {turn + 1} of {setting.runs}")
        script = Path(__file__).parent / "log_dirty.py"
        runs.append(run_json([sys.executable, str(script), *map(str, setting.images)]))
    return live.log_dirty_rows(runs, setting.whole)


def measure_images(setting: Setting) -> list[Row]:
    """What concerns memory at rest."""
    images, whole = setting.images, setting.whole
    rows = digest_rows(run_program(setting, "digest_bench", images), whole)
    rows += patch_rows(run_program(setting, "patch_bench", images), whole)
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "store"
        fill_store(setting, store)
        from_store = run_program(setting, "rebuild_bench", [store])
        rows += rebuild_rows(from_store, run_program(setting, "dense_bench", images))
        report, process = run_analyze(setting, Path(directory))
        without, _ = run_analyze(setting, Path(directory), "--detector", "none")
    say("zstd -3 --long=27 over the distinct pages")
    rows += size_rows(yardstick.measure(images), report, without, whole)
    return rows + process_rows(setting, process)


def measure(setting: Setting, parts: Sequence[str]) -> list[Row]:
    """Everything one after the other: two timings at once would spoil each other."""
    rows = measure_images(setting) if "images" in parts else []
    if "live" in parts:
        rows += measure_live(setting)
    if "long" in parts:
        rows += simulations.measure(setting.command, say)
    return rows


def heading(setting: Setting) -> str:
    kind = "whole images" if setting.whole else "samples"
    lines = [f"Measured on {kind}:"]
    lines += [f"  {image} ({image.stat().st_size / MIB:.0f} MiB)" for image in setting.images]
    if not setting.whole:
        lines += [
            "Most targets are stated for whole images and not judged on samples, which are too short a stream for the",
            'yardstick and smaller than Python itself. For whole images: make bench IMAGES="a.raw b.raw"',
        ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="a raw memory image")
    parser.add_argument("--programs", type=Path, required=True, help="folder of the built C benchmarks")
    parser.add_argument("--command", type=Path, required=True, help="the installed diffengine command")
    parser.add_argument("--runs", type=int, default=3, help="runs of each C benchmark; the median counts (3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target that is judged is not met")
    parser.add_argument("--long", action="store_true", help="simulations of minutes each, too: a quarter of an hour")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given several times")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for image in options.images:
        if not image.is_file() or image.stat().st_size % PAGE_BYTES or not image.stat().st_size:
            print(f"bench: {image}: not a raw image of whole 4096-byte pages", file=sys.stderr)
            return 2
    setting = Setting(tuple(options.images), options.programs, options.command, max(1, options.runs))
    try:
        rows = measure(setting, options.only or [part for part in PARTS if part != "long" or options.long])
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    if options.json:
        images = [{"path": str(image), "bytes": image.stat().st_size} for image in setting.images]
        print(json.dumps({"images": images, "whole_images": setting.whole, "targets": targets.as_json(rows)}, indent=2))
    else:
        print(heading(setting), targets.as_table(rows), sep="\n\n")
    return 1 if options.strict and any(row.verdict is Verdict.MISSED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
