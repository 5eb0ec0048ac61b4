# SPDX-License-Identifier: GPL-2.0-or-later
"""The `diffengine` command run as users run it: a process of its own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffengine.cli import main

COMMAND = [sys.executable, "-m", "diffengine"]
TIMEOUT_SECONDS = 600


def diffengine(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


def output_of(*arguments: str | Path, **environment: str) -> str:
    """What a command that succeeds prints; it says nothing on stderr, as that is no terminal."""
    done = diffengine(*arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def report_in_process(*arguments: str | Path) -> dict[str, Any]:
    """The same report as `report_of` without what it takes to start a process."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert main(["analyze", "--json", *map(str, arguments)]) == 0
    report: dict[str, Any] = json.loads(stdout.getvalue())
    return report


def report_of(*arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output_of("analyze", "--json", *arguments))
    return report


def refusal_of(*arguments: str | Path, code: int = 2, **environment: str) -> str:
    """The one line that a command prints which refuses; it has printed nothing else."""
    done = diffengine(*arguments, **environment)
    assert done.stdout == ""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("diffengine")
    return line
