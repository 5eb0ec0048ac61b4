# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulators, which must not outlive us."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from xen.rig.errors import RigError


def wait_for(words: list[str], log: Path, timeout_s: float, held_input: bool = False) -> int:
    """Its exit status. RigError if it takes longer. held_input: its input stays open, and empty."""
    with _process(words, log, held_input) as process:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RigError(f"the machine was still running after {timeout_s:.0f} s; see beside {log}") from error


@contextlib.contextmanager
def _process(words: list[str], log: Path, held_input: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block, whatever ends it."""
    with log.open("wb") as output:
        stdin = subprocess.PIPE if held_input else subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=stdin, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                process.stdin.close()
