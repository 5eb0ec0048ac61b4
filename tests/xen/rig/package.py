# SPDX-License-Identifier: GPL-2.0-or-later
"""The project as a Debian package, which one module of the suite installs in dom0."""

import shutil
from pathlib import Path

from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.project import ROOT

# Of the suite: the module that wants it, from the shared folder, under this name.
TESTS = "test_package.py"
NAME = "diffengine.deb"
SOURCES = ("daemon", "debian", "docs", "ioemu_shim", "native", "systemd", "meson.build", "meson_options.txt")


def build(cache: Cache) -> Path:
    """The package, as `make deb` makes it."""
    sources = [ROOT / name for name in (*SOURCES, "Makefile", "pyproject.toml")]
    return cache.entry("package", digest(*sources), _build) / NAME


def _build(folder: Path) -> None:
    run("make", "--no-print-directory", "deb", cwd=ROOT)
    (package,) = (ROOT / "build/deb").glob("diffengine_*.deb")
    shutil.copy(package, folder / NAME)
