# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages and sources, from wherever this machine's own apt gets them."""

import re
import shutil
from pathlib import Path

from xen.rig.commands import run
from xen.rig.errors import RigError

RELEASE = "bookworm"
# Dependencies that no dom0 in an emulator needs.
OMITTED = ("initramfs-tools",)
# Files that no machine without people and hardware needs: two thirds of all that would be there.
DRIVERS = "/lib/modules/*/kernel/drivers"
LEFT_OUT = (
    *(f"/usr/share/{name}/*" for name in ("doc", "locale", "man", "info")),
    *(f"{DRIVERS}/{name}/*" for name in ("gpu", "media", "infiniband", "staging", "iio", "isdn", "hwmon", "usb")),
    *(f"{DRIVERS}/net/{name}/*" for name in ("ethernet", "wireless")),
    "/lib/modules/*/kernel/sound/*",
)


def _known() -> list[tuple[str, str, str]]:
    """Of each part of Debian that this machine's apt knows: URI, codename, component."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    lines = run("apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian").splitlines()
    return [(uri, codename, component) for uri, codename, component in map(str.split, lines)]


def archive() -> str:
    """Where this machine gets Debian itself; other releases are there, too."""
    # Updates of a release, and its security, have a `-` in their codename.
    for uri, codename, _ in _known():
        if "-" not in codename:
            return uri
    raise RigError("apt knows no source of Debian's packages: add one, and run `apt-get update`")


def _sources(kind: str) -> str:
    """This machine's sources of the release, one a line, as `deb` or `deb-src`."""
    found = sorted({f"{kind} {' '.join(words)}" for words in _known() if words[1].startswith(RELEASE)})
    if not found:
        raise RigError(f"apt knows no source of Debian {RELEASE}, and the rig is made from its packages: add one")
    return "\n".join(found) + "\n"


def fetch_source(package: str, folder: Path) -> Path:
    """The unpacked source of the newest version that the mirrors have (a version may be announced and not be there).

    apt works on a configuration of its own, in the folder: the machine's stays as it is.
    """
    state = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "sources.list").write_text(_sources("deb-src"))
    options = (
        f"-oDir::Etc::SourceList={state / 'sources.list'}",
        "-oDir::Etc::SourceParts=/dev/null",
        f"-oDir::State::Lists={state / 'lists'}",
        f"-oDir::Cache={state / 'cache'}",
        "-oAPT::Sandbox::User=root",
    )
    run("apt-get", *options, "update")
    known = re.findall(r"^Version: (\S+)$", run("apt-cache", *options, "showsrc", package), re.MULTILINE)
    missing = []
    for version in sorted(known, key=_sortable, reverse=True):
        try:
            run("apt-get", *options, "source", f"{package}={version}", cwd=folder)
        except RigError as error:
            missing.append(str(error))
            continue
        shutil.rmtree(state)
        return next(path for path in folder.glob(f"{package}-*") if path.is_dir())
    raise RigError(f"no source of {package} could be had:\n" + "\n".join(missing))


def _sortable(version: str) -> tuple[tuple[int, str], ...]:
    """Versions of one package in their order; enough for those that are numbers and one word."""
    return tuple((int(number or 0), text) for number, text in re.findall(r"(\d*)([^\d]*)", version))


def install_tree(packages: tuple[str, ...], tree: Path) -> None:
    """A Debian system with these packages, and what they need, in an empty folder."""
    run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        "--include=" + ",".join((*packages, *(f"{name}-" for name in OMITTED))),
        RELEASE,
        tree,
        "-",
        stdin=_sources("deb"),
    )
