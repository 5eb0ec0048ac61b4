# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' initramfs: one program, as init (tests/xen/guest), and the drivers that it loads when it is told to. And
another one, that starts a Debian from a disk which it does not write to."""

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
DEBIAN_MODULES = ("xen_blkfront", "overlay")
DEBIAN_INIT = """\
#!/bin/busybox sh
# The disk below, what is written in memory above.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in {modules}; do $b insmod /lib/$module; done
until [ -b /dev/xvda ]; do $b sleep 0.1; done
$b mount -t ext4 -o ro /dev/xvda /lower
$b mount -t tmpfs upper /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work debian /root
$b mount -o move /dev /root/dev
$b umount /sys /proc
exec $b switch_root /root /sbin/init
"""


def build(cache: Cache, dom0: Dom0) -> Path:
    """A folder with `initrd` and `debian-initrd`."""
    sources = (*sorted((ROOT / "tests/xen/guest").glob("*.[ch]")), *_shared())
    key = digest(*FLAGS, *MODULES, *DEBIAN_MODULES, DEBIAN_INIT, *sources, dom0.folder.name, Path(__file__))
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
        modules = _add_modules(archive, tree, MODULES)
        archive.file("lib/order", "".join(f"/lib/{name}\n" for name in modules).encode())
        (folder / "initrd").write_bytes(archive.content())
    (folder / "debian-initrd").write_bytes(_debian(tree))


def _add_modules(archive: Archive, tree: Path, wanted: tuple[str, ...]) -> list[str]:
    """To /lib. Their names, in the order in which they are to be loaded."""
    (release,) = (tree / "lib/modules").glob("*-cloud-*")
    modules = kernels.load_order(release, wanted)
    for module in modules:
        archive.file(f"lib/{module.name}", module.read_bytes())
    return [module.name for module in modules]


def _debian(tree: Path) -> bytes:
    archive = Archive()
    for name in ("bin", "dev", "lib", "lower", "proc", "root", "sys", "upper"):
        archive.folder(name)
    archive.device("dev/console", 5, 1)
    archive.program("bin/busybox", (tree / "bin/busybox").read_bytes())
    modules = _add_modules(archive, tree, DEBIAN_MODULES)
    archive.program("init", DEBIAN_INIT.format(modules=" ".join(modules)).encode())
    return archive.content()
