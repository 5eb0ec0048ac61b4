# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine analyze IMAGE...`: what sharing, patching and compression would save on memory images."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from diffengine.analysis import AnalysisOptions, analyze
from diffengine.analysis.pipelines import Codec, Detector
from diffengine.analysis.report import as_json, as_tables
from diffengine.cli.output import output
from diffengine.cli.progress import ProgressBar
from diffengine.cli.values import size, whole_number
from diffengine.errors import DiffengineError
from diffengine.images import open_images

DESCRIPTION = """\
Reads memory images of virtual machines and tells, technique by technique, how much memory
would be saved and at what cost, if all pages were cold. Nothing is estimated: each technique
really stores all pages, rebuilds them and compares them with the image.

Images: raw (offset = address), ELF cores of `virsh dump --memory-only` and QEMU's
dump-guest-memory, cores of `xl dump-core`, each also compressed with zstd."""

EPILOG = """\
The model. Identical pages are stored once. Of the rest, a page that is similar to another one, its
reference, becomes a patch; what is left is compressed. Sharing and patching stay inside a trust
group, since both leak by timing. Without --group, two tables show the range: all images in one
group, and each in its own, which is the daemon's default.

  diffengine analyze vm1.raw vm2.core.zst
  diffengine analyze --group web=a.raw,b.raw --json *.raw > report.json"""


class UsageError(DiffengineError):
    """Arguments that don't fit together, or a file that can't be written."""

    exit_code = 2


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "analyze",
        help="what memory images would save, technique by technique",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="a memory image")
    add("--json", action="store_true", help="print JSON instead of tables (keys: docs/analyze.md)")
    add("--plot", metavar="FILE", help="draw the savings into FILE.png or FILE.svg")
    add(
        "--group",
        metavar="NAME=IMAGE,...",
        action="append",
        default=[],
        help="a trust group; may be given several times, images in none are alone",
    )
    add("--detector", choices=[*Detector], default=Detector.SHIFT, help="how `best` finds references (shift)")
    codecs = [codec for codec in Codec if codec is not Codec.RAW]
    add("--codec", choices=codecs, default=Codec.DENSE, help="how `best` compresses (dense)")
    add("-k", type=whole_number(1, 32), default=2, metavar="K", help="the paper's keys per page (2)")
    add("-s", type=whole_number(1, 64), default=1, metavar="S", help="the paper's block hashes per key (1)")
    add("-c", type=whole_number(1, 16), default=1, metavar="C", help="the paper's candidates per key (1)")
    add("--table-memory", type=size, metavar="SIZE", help="limit of the sharing table; less needs more passes")
    add("--store-file", metavar="FILE", help="keep the store in FILE, so that it may be larger than memory")
    add(
        "--jobs",
        type=whole_number(1, 256),
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads (all cores)",
    )
    add("--seed", type=whole_number(0, 2**64 - 1), metavar="N", help="repeat a run's hashing (random)")


def run(arguments: argparse.Namespace) -> int:
    check(arguments)
    options = AnalysisOptions(
        k=arguments.k,
        s=arguments.s,
        candidates=arguments.c,
        detector=Detector(arguments.detector),
        codec=Codec(arguments.codec),
        table_memory=arguments.table_memory,
        groups=parse_groups(arguments.group, arguments.images),
        store_file=arguments.store_file,
        jobs=arguments.jobs,
        seed=arguments.seed,
    )
    with ProgressBar(Console(stderr=True)) as progress, open_images(arguments.images) as images:
        analysis = analyze(images, options, progress)
    if arguments.plot:
        # Loading matplotlib takes longer than many an analysis.
        from diffengine.analysis.plot import save_plot

        save_plot(analysis, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(analysis), indent=2))
    else:
        output().print(as_tables(analysis))
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuses what can be known to fail before hours of work."""
    if arguments.k * arguments.s > 64:
        raise UsageError(f"-k {arguments.k} -s {arguments.s}: k * s is over the 64 blocks of a page; lower one of them")
    if arguments.plot:
        check_plot(Path(arguments.plot))
    if arguments.store_file:
        check_store_file(Path(arguments.store_file))


def check_plot(path: Path) -> None:
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {path}: can only write .png and .svg; name the file so")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UsageError(f"--plot {path}: can't be written; name another file")
    check_directory("--plot", path)


def check_store_file(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UsageError(f"--store-file {path}: exists already; remove it or name another file")
    check_directory("--store-file", path)


def check_directory(option: str, path: Path) -> None:
    directory = path.parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise UsageError(f"{option} {path}: can't write into {directory}; name a folder that exists and is yours")


def parse_groups(texts: Sequence[str], images: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """{'web': (0, 1)} of ['web=a.raw,b.raw']: indices into `images`."""
    groups: dict[str, tuple[int, ...]] = {}
    used: set[int] = set()
    for text in texts:
        name, equals, members = text.partition("=")
        if not name or not equals or not members:
            raise UsageError(f"--group {text}: not of the form NAME=IMAGE,...; write for example web=a.raw,b.raw")
        if name in groups:
            raise UsageError(f"--group {text}: there is a group {name} already; give all its images at once")
        indices = []
        for member in members.split(","):
            found = [i for i, image in enumerate(images) if image == member]
            if not found:
                raise UsageError(f"--group {text}: {member} is not among the images; name it as an IMAGE too")
            if used.intersection(found):
                raise UsageError(f"--group {text}: {member} is in a group already; an image has one trust group")
            indices += found
            used.update(found)
        groups[name] = tuple(indices)
    return groups
