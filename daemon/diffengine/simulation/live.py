# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulation on a terminal while it runs: memory falling, technique by technique."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from diffengine.simulation.report import saving, saving_by_technique
from diffengine.simulation.run import Sample

MIB = 1 << 20
BAR_WIDTH = 40
# Where there is no terminal.
LINE_INTERVAL_S = 4.9


class Watch(Protocol):
    def __call__(self, sample: Sample, allocated_bytes: int) -> None: ...


@contextmanager
def live_table(console: Console, duration_s: float) -> Iterator[Watch]:
    """What `simulate` is to call with each sample. On a terminal a table that goes at the end; else a line now and
    then."""
    if not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(sample: Sample, allocated_bytes: int) -> None:
            live.update(view(sample, allocated_bytes, duration_s))

        yield watch


class Lines:
    """A line every LINE_INTERVAL_S."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __call__(self, sample: Sample, allocated_bytes: int) -> None:
        if sample.time_s < self._next_s:
            return
        self._next_s = sample.time_s + LINE_INTERVAL_S
        parts = saving_by_technique(sample, allocated_bytes)
        techniques = ", ".join(f"{name} {part:.1%}" for name, part in parts.items())
        self._console.print(
            f"{sample.time_s:5.0f} s  of {allocated_bytes / MIB:,.1f} MiB: guests {sample.guest_bytes / MIB:,.1f}, "
            f"store {sample.pager.store_bytes / MIB:,.1f}, tables {sample.table_bytes / MIB:,.1f} MiB; "
            f"saved {saving(sample, allocated_bytes):.1%} ({techniques})",
            soft_wrap=True,
        )


def view(sample: Sample, allocated_bytes: int, duration_s: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("allocated to the guests", f"{allocated_bytes / MIB:,.1f} MiB", "")
    rows = {
        "used: guests' frames": sample.guest_bytes,
        "used: store": sample.pager.store_bytes,
        "used: tables": sample.table_bytes,
        "machine's memory, by the kernel": sample.resident_bytes,
    }
    for label, used in rows.items():
        table.add_row(label, f"{used / MIB:,.1f} MiB", _bar(used, allocated_bytes))
    table.add_row("[bold]saved", f"[bold]{saving(sample, allocated_bytes):.1%}", "")
    for name, part in saving_by_technique(sample, allocated_bytes).items():
        table.add_row(f"  by {name}", f"{part:.1%}", _bar(max(part, 0), 1))
    counters = f"{sample.pager.evictions:,} evictions, {sample.refaults:,} refaults, {sample.pager.touches:,} touches"
    operations = sum(program.reads + program.writes for program in sample.programs)
    wrong = sum(program.wrong_bytes for program in sample.programs)
    guests = f"{operations:,} reads and writes by the guests, {wrong:,} bytes wrong"
    return Group(f"{sample.time_s:,.0f} of {duration_s:,.0f} s", table, counters, guests)


def _bar(part: float, whole: float) -> ProgressBar:
    return ProgressBar(total=whole, completed=min(part, whole), width=BAR_WIDTH)
