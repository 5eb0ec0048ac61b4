# SPDX-License-Identifier: GPL-2.0-or-later
"""The suite's own C programs (tests/xen/suite/*.c), which call the pager's code for Xen directly."""

import shutil
import sys
from pathlib import Path

from xen.rig.cache import Cache, digest
from xen.rig.commands import run

ROOT = Path(__file__).parents[3]
SUITE = ROOT / "tests/xen/suite"
BUILD = ROOT / "build/xen-programs"
NAMES = ("xen-operations", "xen-takeover")
PRELOADED = ("count_hypercalls", "gate_evictions")
FLAGS = ("-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def build(cache: Cache) -> Path:
    """A folder with the programs; compiled incrementally in build/xen-programs."""
    sources = [ROOT / "native", ROOT / "meson.build", ROOT / "meson_options.txt", ROOT / "tests/unit/native"]
    return cache.entry("programs", digest(*sources, *sorted(SUITE.glob("*.[ch]")), Path(__file__)), _build)


def _build(folder: Path) -> None:
    tools = Path(sys.executable).parent
    if not (BUILD / "build.ninja").is_file():
        run(tools / "meson", "setup", BUILD, ROOT, "-Dpython=false", "-Dtests=true", path=str(tools))
    run(tools / "ninja", "-C", BUILD, *(f"native/{name}" for name in NAMES), path=str(tools))
    for name in NAMES:
        shutil.copy(BUILD / "native" / name, folder / name)
    for name in PRELOADED:
        run("cc", *FLAGS, "-o", folder / f"{name}.so", SUITE / f"{name}.c")
