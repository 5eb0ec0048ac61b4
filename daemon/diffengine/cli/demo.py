# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine demo IMAGE...`: guests with these images on the embedded machine, their memory saved and given back."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from diffengine.analysis import AnalysisOptions, analyze
from diffengine.analysis.report import as_tables
from diffengine.analysis.workers import Workers
from diffengine.cli.analyze import check_plot
from diffengine.cli.output import output
from diffengine.cli.progress import ProgressBar
from diffengine.cli.values import whole_number
from diffengine.demo import DemoResult, Memory, Step, check_result, demo_on
from diffengine.errors import one_line
from diffengine.images import PAGE_BYTES, ImageSet, open_images

MIB = 1 << 20

DESCRIPTION = """\
Loads each image as a guest of the embedded machine (Xen's page types, sharing and paging in this
process), shares identical pages, evicts the others as patches and compressed pages, and lets the
guests read and write random pages: they fault, pages are rebuilt, and every byte is checked. What
was freed is printed from the kernel's accounting of this process."""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "demo",
        help="save and give back the memory of guests made from images",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="a memory image; `make demo` uses those in tests/images")
    add("--operations", type=whole_number(1, 10**9), default=5000, metavar="N", help="of each guest (5000)")
    add("--writes", type=whole_number(0, 100), default=20, metavar="PERCENT", help="of the operations (20)")
    add("--plot", metavar="FILE", help="draw memory and fault latencies into FILE.png or FILE.svg")
    add("--jobs", type=whole_number(1, 256), default=os.cpu_count() or 1, metavar="N", help="threads (all cores)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        check_plot(Path(arguments.plot))
    console = output()
    with open_images(arguments.images) as images:
        result = run_demo(images, arguments, console)
        console.print()
        with ProgressBar(Console(stderr=True)) as progress:
            analysis = analyze(images, AnalysisOptions(jobs=arguments.jobs), progress)
    console.print("The same images by technique (diffengine analyze):\n")
    console.print(as_tables(analysis))
    if arguments.plot:
        save(result, arguments.plot)
        console.print(f"\nDrawn into {one_line(arguments.plot)}", markup=False)
    return 0


def run_demo(images: ImageSet, arguments: argparse.Namespace, console: Console) -> DemoResult:
    """Runs it and prints what happens as it happens. Raises DiffengineError if a guest read a wrong byte."""
    with demo_on(images) as demo, Workers(arguments.jobs) as workers:  # workers end before what they use
        console.print(f"{len(images.images)} guests, {mib(images.pages * PAGE_BYTES)} MiB, on the embedded machine")
        print_memory(console, "all pages resident", demo.start)
        before = demo.start
        steps = []
        for step in demo.save(workers):
            print_step(console, step, before)
            steps.append(step)
            before = step.memory
        with console.status("guests read and write random pages") as status:

            def tick(done: int) -> None:
                status.update(f"guests read and write random pages: {done:,} operations")

            guests = demo.run_guests(arguments.operations, arguments.writes / 100, tick)
        result = DemoResult(demo.start, tuple(steps), tuple(guests), demo.statistics(), demo.memory())
    check_result(result)
    print_memory(console, "after the guests ran", result.end)
    print_guests(console, result)
    return result


def print_memory(console: Console, what: str, memory: Memory) -> None:
    console.print(
        f"  {what:24} frames {mib(memory.frames):>6} MiB, store {mib(memory.store):>5} MiB; "
        f"by the kernel's count, of this process {mib(memory.rss):>6} MiB"
    )


def print_step(console: Console, step: Step, before: Memory) -> None:
    print_memory(console, step.name, step.memory)
    refused = ", ".join(f"{count:,} {reason}" for reason, count in step.refused.items())
    freed = before.frames - step.memory.frames
    console.print(
        f"  {'':24} {step.pages:,} pages, {mib(freed)} MiB of frames freed{'; not: ' + refused if refused else ''}",
        style="dim",
    )


def print_guests(console: Console, result: DemoResult) -> None:
    reads, writes = sum(g.reads for g in result.guests), sum(g.writes for g in result.guests)
    console.print(
        f"\nGuests: {reads:,} reads and {writes:,} writes, every byte read compared: "
        f"[bold]{result.wrong_bytes} wrong[/bold]. {sum(g.cow_breaks for g in result.guests):,} copies on write."
    )
    table = Table(title=f"{len(result.fault_us):,} faults on evicted pages, in microseconds", title_justify="left")
    for column in ("", "p50", "p99"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("rebuild the page", *(f"{v:.1f}" for v in result.pager.rebuild_us.values()))
    table.add_row("event taken to answer put", *(f"{v:.1f}" for v in result.pager.fault_us.values()))
    seen = np.quantile(result.fault_us, [0.5, 0.99]) if len(result.fault_us) else (0.0, 0.0)
    table.add_row("as the guest waits, wake-ups included", *(f"{v:.1f}" for v in seen))
    console.print(table)


def save(result: DemoResult, path: str) -> None:
    # Loading matplotlib takes longer than the demo's first half.
    from diffengine.demo.plot import save_demo_plot

    save_demo_plot(result, path)


def mib(count: float) -> str:
    return f"{count / MIB:,.1f}"
