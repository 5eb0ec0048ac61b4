# SPDX-License-Identifier: GPL-2.0-or-later
"""xl-released and virsh-released: which commands release which domain, in which order. Programs that note how they were
called stand for xl, virsh and diffengine; tests/xen saves a domain with the real ones."""

import os
import subprocess
from pathlib import Path

import pytest

WRAPPERS = Path(__file__).parents[2] / "systemd"


class Programs:
    """A folder with three programs that note their arguments and end as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.write("xl", 'case $1 in domid) echo 7;; domname) [ -e "$0.stays" ];; *) exit ${XL_STATUS:-0};; esac')
        self.write("virsh", 'case $1 in domuuid) echo "11-22"; echo;; *) exit ${XL_STATUS:-0};; esac')
        self.write("diffengine", 'case "$*" in *--undo*) exit 0;; *) exit ${RELEASE_STATUS:-0};; esac')

    def write(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        path.chmod(0o755)

    def run(self, wrapper: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        """The exit code, and what was called."""
        self.log.write_text("")
        tools = {"XL": "xl", "VIRSH": "virsh", "DIFFENGINE": "diffengine"}
        paths = {name: str(self.folder / program) for name, program in tools.items()}
        done = subprocess.run([WRAPPERS / wrapper, *arguments], env={**os.environ, **paths, **environment}, timeout=30)
        return done.returncode, self.log.read_text().splitlines()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("save", "web", "/tmp/web"),
        ("save", "-c", "web", "/tmp/web"),
        ("migrate", "-C", "other.cfg", "-s", "ssh -p 5", "--debug", "web", "host"),
        ("-v", "migrate", "web", "host"),
        ("remus", "-i", "100", "-N", "script", "web"),
    ],
)
def test_xl_releases_the_domain_first(programs: Programs, arguments: tuple[str, ...]) -> None:
    code, calls = programs.run("xl-released", *arguments)
    assert code == 0
    assert calls == ["xl domid web", "diffengine release 7", f"xl {' '.join(arguments)}", "xl domname 7"]


def test_a_domain_that_stays_is_given_back_and_xls_result_is_kept(programs: Programs) -> None:
    (programs.folder / "xl.stays").touch()
    code, calls = programs.run("xl-released", "save", "web", "/full", XL_STATUS="3")
    assert code == 3
    assert calls[-1] == "diffengine release --undo 7"


def test_nothing_is_saved_that_could_not_be_released(programs: Programs) -> None:
    for wrapper in ("xl-released", "virsh-released"):
        code, calls = programs.run(wrapper, "save", "web", "/tmp/web", RELEASE_STATUS="1")
        assert code == 1
        assert calls[-1].startswith("diffengine release")


@pytest.mark.parametrize("arguments", [("list", "-l"), ("create", "web.cfg"), ()])
def test_other_commands_of_xl_pass_through(programs: Programs, arguments: tuple[str, ...]) -> None:
    code, calls = programs.run("xl-released", *arguments)
    assert (code, calls) == (0, [f"xl {' '.join(arguments)}"])


def test_virsh_releases_by_uuid(programs: Programs) -> None:
    code, calls = programs.run("virsh-released", "managedsave", "web", "--running")
    assert code == 0
    assert calls == [
        "virsh domuuid web",
        "diffengine release 11-22",
        "virsh managedsave web --running",
        "diffengine release --undo 11-22",
    ]
    assert programs.run("virsh-released", "save")[0] == 2
