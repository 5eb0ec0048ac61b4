# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine evaluate`: the paper's tables and figures rerun, and a report."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from diffengine.cli.output import output
from diffengine.cli.values import whole_number
from diffengine.errors import DiffengineError, one_line

if TYPE_CHECKING:
    from diffengine.evaluation.evaluate import Evaluated
    from diffengine.evaluation.runner import Progress

# Where `make` unpacks the images that the project carries.
IMAGE_FOLDER = "build/images"
OUTPUT_FOLDER = "evaluation"
SOMETHING_MISSING = 3
MET = {True: "[green]met[/green]", False: "[red]not met[/red]", None: "[dim]not judged[/dim]"}

DESCRIPTION = """\
Reruns the paper's tables and figures on this machine, beside the paper's own figures and today's
peers, and writes a report that opens in any browser, without network. What was done already is not
done again: an interrupted evaluation goes on where it was."""

EPILOG = """\
The experiments are listed in docs/evaluate.md.
Written into the output folder: report.html; for each experiment NAME.json, NAME-1.csv, ... and its
figures as SVG and PNG. docs/evaluate.md says how to read them.

exit codes beside the usual ones:
  3    done, but for parts that this machine lacks something for; the report says which and why"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "evaluate",
        help="rerun the paper's tables and figures, and write a report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", default=[], help="experiments, or all (all)")
    add("--quick", action="store_true", help="less of everything: at most ten minutes on two cores")
    add("--output", metavar="DIR", type=Path, default=Path(OUTPUT_FOLDER), help=f"where results go ({OUTPUT_FOLDER})")
    add(
        "--images",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help=f"a folder of guest images; may be given several times ({IMAGE_FOLDER})",
    )
    add("--seed", type=whole_number(0, 2**32 - 1), default=1, metavar="N", help="of all choices (1)")
    add("--jobs", type=whole_number(1, 256), default=os.cpu_count() or 1, metavar="N", help="cores (all)")
    add("--fresh", action="store_true", help="do again what was done already")


def run(arguments: argparse.Namespace) -> int:
    try:
        # Loading matplotlib takes longer than most commands.
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as missing:
        raise DiffengineError(f"evaluate needs {missing.name}; install python3-{missing.name}") from missing
    from diffengine.evaluation.evaluate import choose, evaluate
    from diffengine.evaluation.setting import Setting, read_corpus

    experiments = choose(arguments.names)
    given, carried = read_corpus(arguments.images or [Path(IMAGE_FOLDER)]), Path(IMAGE_FOLDER)
    guests = read_corpus([carried]) if arguments.quick and carried.is_dir() else given
    setting = Setting(given, guests, arguments.seed, arguments.quick, arguments.jobs)
    make_folder(arguments.output)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        evaluations = evaluate(experiments, setting, arguments.output, arguments.fresh, progress_on(console))
    except KeyboardInterrupt:
        print(f"diffengine: interrupted; run it again to go on ({arguments.output} has what is done)", file=sys.stderr)
        return 130
    write_all(evaluations, setting, arguments.output)
    summarise(evaluations, arguments.output)
    fates = {part.fate.value for each in evaluations for part in each.missing}
    return 1 if "failed" in fates else SOMETHING_MISSING if fates else 0


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        refused = DiffengineError(f"--output {folder}: {error.strerror}; name a folder that can be written")
        refused.exit_code = 2
        raise refused from error


def progress_on(console: Console) -> "Callable[[Progress], None]":
    """A line for each step that ends, with the time that is left."""

    def watch(progress: "Progress") -> None:
        left = f"about {duration(progress.seconds_left)} left" if progress.seconds_left >= 1 else "done"
        count = f"[{progress.done}/{progress.total}]"
        if progress.task is None or progress.checkpoint is None:
            console.print(f"{count} {left}", markup=False)
            return
        ended = progress.checkpoint
        took = f"{ended.seconds:.1f} s ({ended.cpu_s:.1f} of CPU)"
        what = took if not ended.reason else f"{ended.fate.value}: {ended.reason}"
        console.print(
            f"{count} {progress.task.experiment} {progress.task.step.name}: {what}; {left}",
            markup=False,
            soft_wrap=True,
        )

    return watch


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def write_all(evaluations: "list[Evaluated]", setting: Any, folder: Path) -> None:
    from diffengine.evaluation.report import render
    from diffengine.evaluation.writing import write_experiment

    pictures = {each.experiment.name: write_experiment(each, folder) for each in evaluations}
    command = shlex.join(["diffengine", *sys.argv[1:]])
    when = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    (folder / "report.html").write_text(render(evaluations, pictures, setting, command, when))


def summarise(evaluations: "list[Evaluated]", folder: Path) -> None:
    console = output()
    for each in evaluations:
        console.print(f"[bold]{each.experiment.name}[/bold]  {each.experiment.question}", soft_wrap=True)
        for target in each.outcome.targets if each.outcome else ():
            console.print(f"  {MET[target.met]}  {target.claim}: {target.measured}", soft_wrap=True)
        for part in each.missing:
            console.print(f"  [yellow]{part.fate.value}[/yellow]  {part.step}: {part.reason}", soft_wrap=True)
    console.print(f"Report: {one_line(str(folder / 'report.html'))}", markup=False, soft_wrap=True)
