# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' initramfs: one program, as init (tests/xen/guest), and the drivers that it loads when it is told to."""

import tempfile
from pathlib import Path

from xen.rig import kernels
from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.dom0 import Dom0
from xen.rig.initramfs import Archive

ROOT = Path(__file__).parents[3]
FLAGS = ("-std=gnu17", "-D_GNU_SOURCE", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
# Of PV devices, and of the disk that QEMU emulates for HVM guests.
MODULES = ("xen_blkfront", "xen_netfront", "ata_piix", "sd_mod")


def build(cache: Cache, dom0: Dom0) -> Path:
    """A folder with `initrd`."""
    sources = (*sorted((ROOT / "tests/xen/guest").glob("*.[ch]")), *_shared())
    key = digest(*FLAGS, *MODULES, *sources, dom0.folder.name, Path(__file__))
    return cache.entry("guest", key, lambda folder: _build(folder, dom0.tree))


def _shared() -> tuple[Path, ...]:
    """The generator's pages, the same as the embedded machine's guests have."""
    machine, include = ROOT / "native/machine", ROOT / "native/include/diffengine"
    return (machine / "content.c", machine / "content.h", include / "program.h", include / "page.h")


def _build(folder: Path, tree: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "init"
        sources = [*sorted((ROOT / "tests/xen/guest").glob("*.c")), ROOT / "native/machine/content.c"]
        includes = ("-I", ROOT / "native/include", "-I", ROOT / "native/machine")
        run("cc", *FLAGS, *includes, "-o", program, *sources)
        archive = Archive()
        for name in ("dev", "lib", "proc"):
            archive.folder(name)
        archive.device("dev/console", 5, 1)
        archive.program("init", program.read_bytes())
        (release,) = (tree / "lib/modules").glob("*-cloud-*")
        modules = kernels.load_order(release, MODULES)
        for module in modules:
            archive.file(f"lib/{module.name}", module.read_bytes())
        archive.file("lib/order", "".join(f"/lib/{module.name}\n" for module in modules).encode())
        (folder / "initrd").write_bytes(archive.content())
