# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulation as JSON, whose keys docs/simulate.md describes, and as tables."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from diffengine.engine.report import split_net
from diffengine.simulation.run import Sample, SimulationResult

MIB = 1 << 20
LAST_S = 60.0


def saving(sample: Sample, allocated_bytes: int) -> float:
    """1 - (guests + store + tables) / allocated. Swap is disk."""
    return 1 - sample.used_bytes / allocated_bytes


def saving_by_technique(sample: Sample, allocated_bytes: int) -> dict[str, float]:
    """The saving of a sample, divided; what tables and losses cost falls on all techniques alike."""
    return split_net(sample.engine.saved_by, saving(sample, allocated_bytes))


def mean_saving(result: SimulationResult) -> float:
    """Over time, each sample for as long as it was the latest."""
    times = np.array([sample.time_s for sample in result.samples])
    savings = np.array([saving(sample, result.allocated_bytes) for sample in result.samples])
    lengths = np.diff(times)
    return float(np.dot(savings[:-1], lengths) / lengths.sum()) if lengths.sum() > 0 else float(savings[-1])


def worst_stall_us_per_s(samples: Sequence[Sample]) -> float:
    """Mean over these samples' time, of the vCPU that it is longest for."""
    if len(samples) < 2 or samples[-1].time_s <= samples[0].time_s:
        return 0.0
    seconds = samples[-1].time_s - samples[0].time_s
    pairs = zip(samples[0].programs, samples[-1].programs, strict=True)
    return max((after.stall_ns - before.stall_ns) / 1e3 / seconds for before, after in pairs)


def after_first_cycle(samples: Sequence[Sample]) -> Sequence[Sample]:
    return [sample for sample in samples if sample.engine.cycles >= 1]


def last_seconds(samples: Sequence[Sample], seconds: float) -> Sequence[Sample]:
    return [sample for sample in samples if sample.time_s >= samples[-1].time_s - seconds]


def as_json(result: SimulationResult) -> dict[str, Any]:
    end, allocated = result.end, result.allocated_bytes
    return {
        "scenario": result.scenario.name,
        "seed": result.scenario.seed,
        "duration_s": end.time_s,
        "allocated_bytes": allocated,
        "used_bytes": used_bytes(end),
        "machine": {
            "frames": end.memory.frames,
            "used_frames": end.memory.used,
            "resident_bytes": end.resident_bytes,
        },
        "table_bytes": {
            "engine": end.engine.table_bytes,
            "pager_and_store": end.pager.table_bytes,
            "sharing_metadata": end.memory.metadata_bytes,
        },
        "saving": {
            "mean": mean_saving(result),
            "end": saving(end, allocated),
            "by_technique": saving_by_technique(end, allocated),
        },
        "guest": {
            "reads": sum(program.reads for program in end.programs),
            "writes": sum(program.writes for program in end.programs),
            "wrong_bytes": result.wrong_bytes,
            "stall_us_per_s": worst_stall_us_per_s(result.samples),
            "stall_us_per_s_after_first_cycle": worst_stall_us_per_s(after_first_cycle(result.samples)),
            "stall_us_per_s_last_60_s": worst_stall_us_per_s(last_seconds(result.samples, LAST_S)),
            "copies_on_write": sum(program.cow_breaks for program in end.programs),
        },
        "refaults": end.refaults,
        "touches": end.pager.touches,
        "evictions": end.pager.evictions,
        "latency_us": {
            "rebuild": end.pager.rebuild_us,
            "fault": end.pager.fault_us,
            "guest_wait": guest_wait_us(result),
        },
        "cpu_s": {"scan": end.engine.cpu_s, "fault": end.pager.cpu_s},
        "sweeps": end.engine.sweeps,
        "cycles": end.engine.cycles,
        "passes": end.engine.passes,
        "pages": end.engine.pages,
        "domains": [
            {
                "name": domain.name,
                "reads": program.reads,
                "writes": program.writes,
                "wrong_bytes": program.wrong_bytes,
                "faults": program.faults,
                "copies_on_write": program.cow_breaks,
                "stall_us_per_s": program.stall_ns / 1e3 / end.time_s,
            }
            for domain, program in zip(result.scenario.domains, end.programs, strict=True)
        ],
        "series": series(result),
        "reasons": end.engine.reasons,
        **virtual_time(result),
    }


def virtual_time(result: SimulationResult) -> dict[str, Any]:
    """What there is only in virtual time."""
    if result.trace is None:
        return {}
    trace = f"{result.trace.hash:016x}"
    return {"virtual": {"times": "modelled, not measured", "trace": trace, "switches": result.trace.switches}}


def used_bytes(sample: Sample) -> dict[str, int]:
    return {
        "guests": sample.guest_bytes,
        "store": sample.pager.store_bytes,
        "tables": sample.table_bytes,
        "swap": sample.pager.swap_bytes,
    }


def guest_wait_us(result: SimulationResult) -> dict[str, float]:
    """How long faults took as the guests saw them, wake-ups included."""
    waits = np.concatenate(result.fault_ns) / 1e3
    if not len(waits):
        return {"p50": 0.0, "p99": 0.0}
    p50, p99 = np.quantile(waits, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99}


def series(result: SimulationResult) -> list[dict[str, Any]]:
    stalls = [0.0] + [worst_stall_us_per_s(pair) for pair in pairwise(result.samples)]
    return [
        {
            "time_s": sample.time_s,
            "used_bytes": used_bytes(sample),
            "resident_bytes": sample.resident_bytes,
            "saving": saving(sample, result.allocated_bytes),
            "by_technique": saving_by_technique(sample, result.allocated_bytes),
            "refaults": sample.refaults,
            "evictions": sample.pager.evictions,
            "touches": sample.pager.touches,
            "stall_us_per_s": stall,
            "scan_cpu_s": sample.engine.cpu_s,
            "phases": [program.phase for program in sample.programs],
        }
        for sample, stall in zip(result.samples, stalls, strict=True)
    ]


def as_tables(result: SimulationResult) -> RenderableType:
    report = as_json(result)
    return Group(_memory_table(report), _guest_table(report), _reason_table(report))


def _memory_table(report: dict[str, Any]) -> Table:
    allocated = report["allocated_bytes"]
    table = Table(title="Memory at the end", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_row("allocated to the guests", f"{allocated / MIB:,.1f} MiB", "")
    for name in ("guests", "store", "tables"):
        used = report["used_bytes"][name]
        table.add_row(f"used: {name}", f"{used / MIB:,.1f} MiB", f"{used / allocated:.1%}")
    if report["used_bytes"]["swap"]:
        table.add_row("on disk: swap", f"{report['used_bytes']['swap'] / MIB:,.1f} MiB", "")
    table.add_section()
    table.add_row("saved at the end", "", f"[bold]{report['saving']['end']:.1%}[/bold]")
    for name, part in report["saving"]["by_technique"].items():
        table.add_row(f"  by {name}", "", f"{part:.1%}")
    table.add_row("saved, mean over time", "", f"{report['saving']['mean']:.1%}")
    return table


def _guest_table(report: dict[str, Any]) -> Table:
    guest, latency, cpu = report["guest"], report["latency_us"], report["cpu_s"]
    modelled = " (modelled: virtual time)" if "virtual" in report else ""
    title = f"What the guests noticed, and what it took{modelled}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("reads, writes", f"{guest['reads']:,}, {guest['writes']:,}")
    table.add_row("wrong bytes", f"{guest['wrong_bytes']:,}")
    table.add_row(
        "evictions, refaults, touches", ", ".join(f"{report[k]:,}" for k in ("evictions", "refaults", "touches"))
    )
    table.add_row("stall of the worst vCPU", f"{guest['stall_us_per_s']:,.0f} µs per second")
    table.add_row("  in the last minute", f"{guest['stall_us_per_s_last_60_s']:,.0f} µs per second")
    labels = {"rebuild": "rebuild a page", "fault": "event taken to answer put", "guest_wait": "as the guest waits"}
    for key, label in labels.items():
        table.add_row(f"{label}, p50 and p99", f"{latency[key]['p50']:,.1f}, {latency[key]['p99']:,.1f} µs")
    share = cpu["scan"] / report["duration_s"]
    table.add_row("CPU: engine, faults", f"{cpu['scan']:,.2f} s ({share:.1%} of a core), {cpu['fault']:,.2f} s")
    return table


def _reason_table(report: dict[str, Any]) -> Table:
    table = Table(title="Pages not saved, by reason", title_justify="left")
    table.add_column("reason")
    table.add_column("times", justify="right")
    for name, count in sorted(report["reasons"].items(), key=lambda item: -item[1]):
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table
