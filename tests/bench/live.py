# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets for guests that run: the pager's operations, faults, and what a scan takes beside the kernel's KSM."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.targets import Row, values

Runs = Sequence[dict[str, Any]]

# Microseconds of the paper's Table 2 (2008), and what it calls the operation.
PAPER_US = {
    "share": ("share", 6.2),
    "cow_break": ("cow break (the machine's)", 25.1),
    "compress": ("compress", 29.7),
    "decompress": ("decompress", 10.4),
    "patch": ("patch", 338.1),
    "unpatch": ("unpatch", 18.6),
    "swap_out_disk": ("swap out, disk", 48.9),
    "swap_out_memory": ("swap out, tmpfs", 48.9),
    "swap_in_disk": ("swap in, disk", 7151.6),
    "swap_in_memory": ("swap in, tmpfs", 7151.6),
}


def table2_rows(runs: Runs, whole: bool) -> list[Row]:
    """Our own work per operation, with the paper's figure as the bound; then the ratios that must be reached."""
    rows = [
        Row(f"Table 2: {name}", paper_us, values(runs, key, "us"), " us", judged=whole, note="the paper's figure")
        for key, (name, paper_us) in PAPER_US.items()
    ]
    share = values(runs, "share", "verification_apart")
    compare = f"a memcmp of two pages takes {min(values(runs, 'share', 'memcmp_us')):.2f} us"
    compress, decompress = (values(runs, name, "ratio") for name in ("compress", "decompress"))
    return [
        *rows,
        Row("share, verification apart / memcmp", 2.0, share, judged=whole, note=compare),
        Row("compress / LZ4_compress_default", 1.3, compress, judged=whole),
        Row("decompress / LZ4_decompress_safe", 1.3, decompress, judged=whole),
    ]


def fault_rows(runs: Runs, whole: bool) -> list[Row]:
    rows = []
    for kind, name, quantile, target in (
        ("fast", "fast patch or LZ4", "p50", 5.0),
        ("fast", "fast patch or LZ4", "p99", 20.0),
        ("dense", "dense", "p50", 10.0),
    ):
        whole_us = min(values(runs, kind, f"fault_{quantile}_us"))
        sparse_us = min(values(runs, f"{kind}_sparse", f"to_load_{quantile}_us"))
        note = f"to the answer, with the machine's load, {whole_us:.1f} us; faults 10 ms apart: {sparse_us:.1f} us"
        measured = values(runs, kind, f"to_load_{quantile}_us")
        rows.append(Row(f"event taken to load, {name}, {quantile}", target, measured, " us", judged=whole, note=note))
    places = ("same_core", "other_core", "spinning")
    waits = [values(runs, place, "wait_p50_us") for place in places]
    best = tuple(map(min, zip(*waits, strict=True)))
    same, other, spinning = map(min, waits)
    note = f"pager asleep on the vCPU's core {same:.1f} us, on another {other:.1f} us, spinning there {spinning:.1f} us"
    return [*rows, Row("fault as the guest waits, best, p50", 15.0, best, " us", judged=whole, note=note)]


def process_fault_rows(runs: Runs) -> list[Row]:
    """What processes of their own add to a fault, each pair of figures from one run."""
    place = "any_core_spaced"
    processes, one = values(runs, place, "processes_p50_us"), values(runs, place, "in_process_p50_us")
    bare = values(runs, place, "ping_pong_p50_us")
    ratios = tuple(across / within for across, within in zip(processes, one, strict=True))
    note = f"{min(processes):.1f} us, in one process {min(one):.1f} us, a bare ping-pong {min(bare):.1f} us"
    waits = [values(runs, place, "processes_p50_us") for place in ("same_core", "other_core", "brief_any_core")]
    best = tuple(map(min, zip(*waits, strict=True)))
    seldom = [min(values(runs, f"{place}_spaced", "processes_p50_us")) for place in ("same_core", "brief_any_core")]
    same, other, brief = map(min, waits)
    ways = (
        f"pager asleep on the vCPU's core {same:.1f} us, on another {other:.1f} us, spinning for 50 us anywhere "
        f"{brief:.1f} us; 1 ms apart: on the vCPU's core {seldom[0]:.1f} us, spinning {seldom[1]:.1f} us"
    )
    return [
        Row("fault across processes / in one, p50", 1.5, ratios, note=note),
        Row("fault across processes as the guest waits, best, p50", 15.0, best, " us", note=ways),
    ]


def scan_rows(scans: Runs, peers: Runs, whole: bool) -> list[Row]:
    """scans and peers in pairs, each pair measured one right after the other."""
    name = "scan for all sharable pages, CPU / ksmd's"
    if reason := next((peer["unavailable"] for peer in peers if "unavailable" in peer), None):
        return [Row(name, 0.1, (), note=f"no peer: {reason}")]
    pairs = list(zip(scans, peers, strict=True))
    # On samples, ksmd takes less than one tick of the clock that it is measured with.
    ratios = tuple(scan["cpu_s"] / peer["own_cpu_s"] for scan, peer in pairs if peer["own_cpu_s"] > 0)
    found = tuple(scan["mergeable"] / max(1, peer["merged"]) for scan, peer in pairs)
    ours, theirs = min(values(scans, "cpu_s")), min(values(peers, "own_cpu_s"))
    speeds = f"{ours:.3f} s, a loop that only reads {min(values(scans, 'read_cpu_s')):.3f} s, ksmd {theirs:.2f} s"
    counts = f"{scans[0]['mergeable']} pages, KSM {peers[0]['merged']}"
    return [
        Row(name, 0.1, ratios, judged=whole, note=speeds),
        Row("sharable pages found / merged by KSM", 1.0, found, at_least=True, judged=whole, note=counts),
    ]


def log_dirty_rows(runs: Runs, whole: bool) -> list[Row]:
    """Of each run, the median of the visits after the first, on samples too small to tell: a visit is over at once."""
    later = [statistics.median(run["log"][1:]) for run in runs]
    ratios = tuple(took / run["log"][0] for took, run in zip(later, runs, strict=True))
    digests = min(statistics.median(run["digests"][1:]) / run["digests"][0] for run in runs)
    note = f"{min(later) * 1e3:.1f} ms; by digests {digests:.2f} of the first"
    return [Row("visit over unchanged memory / the first, log-dirty", 0.05, ratios, judged=whole, note=note)]
