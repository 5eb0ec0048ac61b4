# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' initramfs: one program, as init (tests/xen/guest)."""

import tempfile
from pathlib import Path

from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.initramfs import Archive

ROOT = Path(__file__).parents[3]
FLAGS = ("-std=gnu17", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


def build(cache: Cache) -> Path:
    """A folder with `initrd`."""
    sources = (*sorted((ROOT / "tests/xen/guest").glob("*.[ch]")), *_shared())
    return cache.entry("guest", digest(*FLAGS, *sources, Path(__file__)), _build)


def _shared() -> tuple[Path, ...]:
    """The generator's pages, the same as the embedded machine's guests have."""
    machine, include = ROOT / "native/machine", ROOT / "native/include/diffengine"
    return (machine / "content.c", machine / "content.h", include / "program.h", include / "page.h")


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "init"
        sources = [*sorted((ROOT / "tests/xen/guest").glob("*.c")), ROOT / "native/machine/content.c"]
        includes = ("-I", ROOT / "native/include", "-I", ROOT / "native/machine")
        run("cc", *FLAGS, *includes, "-o", program, *sources)
        archive = Archive()
        archive.folder("dev")
        archive.folder("proc")
        archive.device("dev/console", 5, 1)
        archive.program("init", program.read_bytes())
        (folder / "initrd").write_bytes(archive.content())
