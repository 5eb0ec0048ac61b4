# SPDX-License-Identifier: GPL-2.0-or-later
"""This project as a user has it, on a disk of its own that dom0 mounts at /opt: a change of code makes only this anew.

/opt/diffengine is a virtual environment that pip installed the project and its dependencies into, by dom0's own Python
in dom0's own tree; /opt/rig has the suite and its programs, the guests' kernel and their initramfs.
"""

import shutil
import sys
import tomllib
from pathlib import Path

from xen.rig import programs
from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.dom0 import Dom0, make_disk

ROOT = Path(__file__).parents[3]
SUITE = ROOT / "tests/xen/suite"
DEVICE_MODEL = ROOT / "systemd/diffengine-device-model"
# Of what is optional: dom0 has a xenstored, and no libvirtd.
FURTHER = ["pyxs"]
DISK_MIB = 504
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def build(cache: Cache, dom0: Dom0, guest: Path) -> Path:
    """A folder with `disk`."""
    wheels = _dependencies(cache)
    wheel = _wheel(cache)
    own = programs.build(cache)
    key = digest(dom0.folder.name, wheels.name, wheel.name, guest.name, own.name, SUITE, DEVICE_MODEL, Path(__file__))
    return cache.entry("project", key, lambda folder: _build(folder, dom0, (guest, own), (wheels, wheel)))


def _dependencies(cache: Cache) -> Path:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"] + FURTHER
    return cache.entry("wheels", digest(*needed), lambda folder: _download(folder, needed))


def _download(folder: Path, needed: list[str]) -> None:
    run(*PIP, "wheel", "--wheel-dir", folder, *needed)


def _wheel(cache: Cache) -> Path:
    """The project's wheel, with the C programs; compiled incrementally in build/xen-wheel."""
    sources = [
        ROOT / name for name in ("native", "ioemu_shim", "daemon", "meson.build", "meson_options.txt", "pyproject.toml")
    ]
    return cache.entry("wheel", digest(*sources), _build_wheel)


def _build_wheel(folder: Path) -> None:
    options = ("--no-deps", "--no-build-isolation", "--config-settings=build-dir=build/xen-wheel")
    path = str(Path(sys.executable).parent)
    run(*PIP, "wheel", *options, "--wheel-dir", folder, ".", cwd=ROOT, path=path)


def _build(folder: Path, dom0: Dom0, built: tuple[Path, Path], wheels: tuple[Path, Path]) -> None:
    # Links to the tree's files: what pip adds are new files, and those are taken out again.
    tree = folder / "tree"
    run("cp", "--archive", "--link", dom0.tree, tree)
    for source in wheels:
        shutil.copytree(source, tree / "opt/wheels", dirs_exist_ok=True)
    run("chroot", tree, "python3", "-m", "venv", "/opt/diffengine")
    # The environment says where this machine gets packages; in there everything is in the folder.
    offline = ("--no-index", "--find-links", "/opt/wheels")
    run("chroot", tree, "/opt/diffengine/bin/pip", "--isolated", "install", "-q", *offline, "diffengine", *FURTHER)
    shutil.rmtree(tree / "opt/wheels")
    rig = tree / "opt/rig"
    shutil.copytree(SUITE, rig / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(dom0.folder / "guest-kernel", rig / "guest-kernel")
    shutil.copy(DEVICE_MODEL, rig)
    # HVM guests' firmware wants it packed.
    (packed,) = (dom0.tree / "boot").glob("vmlinuz-*-cloud-*")
    shutil.copy(packed, rig / "guest-bzimage")
    guest, own = built
    shutil.copy(guest / "initrd", rig / "guest-initrd")
    shutil.copy(guest / "debian-initrd", rig / "debian-initrd")
    for program in own.iterdir():
        shutil.copy(program, rig)
    make_disk(tree / "opt", folder / "disk", "project", DISK_MIB)
    shutil.rmtree(tree)
