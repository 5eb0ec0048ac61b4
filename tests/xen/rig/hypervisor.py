# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen, built from Debian's source package with memory paging and sharing."""

import shutil
from pathlib import Path

from xen.rig import debian
from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.errors import RigError

OPTIONS = """\
CONFIG_EXPERT=y
CONFIG_UNSUPPORTED=y
CONFIG_MEM_PAGING=y
CONFIG_MEM_SHARING=y
# CONFIG_DEBUG is not set
"""
# Xen shares memory on Intel's nested paging only; what it then does is the same on AMD's, which is what QEMU emulates.
# This is the only line of Xen that the AMD rig changes.
SHARING_SOURCE = "arch/x86/mm/mem_sharing.c"
INTEL_ONLY = "!is_hvm_domain(d) || !cpu_has_vmx)"
INTEL_OR_AMD = "!is_hvm_domain(d) || !(cpu_has_vmx || cpu_has_svm))"
# What an operator applies who wants guests with several vCPUs to be evicted from (docs/xen.md).
SEVERAL_VCPUS = Path(__file__).parents[3] / "docs/several-vcpus.patch"


def build(cache: Cache) -> Path:
    """A folder with `xen-intel` (as Debian's source has it) and `xen-amd` (with the edit above), and `version`."""
    key = digest(OPTIONS, INTEL_ONLY, INTEL_OR_AMD, debian.RELEASE)
    return cache.entry("hypervisor", key, _build)


def build_patched(cache: Cache) -> Path:
    """A folder with `xen-amd`, with the patch for guests with several vCPUs and the edit above."""
    key = digest(OPTIONS, INTEL_ONLY, INTEL_OR_AMD, debian.RELEASE, SEVERAL_VCPUS.read_text())
    return cache.entry("hypervisor-patched", key, _build_patched)


def _build(folder: Path) -> None:
    xen = _configured(folder)
    _make(xen, "build")
    shutil.copy(xen / "xen", folder / "xen-intel")
    shutil.copy(xen / "xen-syms", folder / "xen-intel-syms")
    _build_for_amd(xen, folder)


def _build_patched(folder: Path) -> None:
    xen = _configured(folder)
    run("patch", "-p1", "-i", SEVERAL_VCPUS, cwd=xen.parent)
    _build_for_amd(xen, folder)


def _configured(folder: Path) -> Path:
    source = debian.fetch_source("xen", folder)
    (folder / "version").write_text(source.name + "\n")
    xen = source / "xen"
    _make(xen, "defconfig")
    with (xen / ".config").open("a") as config:
        config.write(OPTIONS)
    _make(xen, "olddefconfig")
    settled = (xen / ".config").read_text().splitlines()
    lost = [line for line in OPTIONS.splitlines() if line not in settled]
    if lost:
        raise RigError(f"{source.name} does not take {', '.join(lost)}")
    return xen


def _build_for_amd(xen: Path, folder: Path) -> None:
    _edit(xen / SHARING_SOURCE)
    _make(xen, "build")
    shutil.copy(xen / "xen", folder / "xen-amd")
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _make(xen: Path, target: str) -> None:
    run("make", "-s", "-j2", "XEN_TARGET_ARCH=x86_64", target, cwd=xen)


def _edit(source: Path) -> None:
    text = source.read_text()
    if text.count(INTEL_ONLY) != 1:
        raise RigError(f"{SHARING_SOURCE} has no single check `{INTEL_ONLY}`: the edit for AMD has to be made anew")
    source.write_text(text.replace(INTEL_ONLY, INTEL_OR_AMD))
