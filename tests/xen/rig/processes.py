# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulators, which must not outlive us."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xen.rig.errors import RigError

LOOK_S = 1.0


@dataclass(frozen=True)
class Start:
    """When the machine counts as started, and how long that may take."""

    done: Callable[[], bool]
    timeout_s: float


class NotStartedError(RigError):
    """The machine ended, or its time was up, before it had started."""


def wait_for(words: list[str], log: Path, start: Start, timeout_s: float, held_input: bool = False) -> int:
    """Its exit status. RigError if it takes longer. held_input: its input stays open, and empty."""
    begin_s = time.monotonic()
    with _process(words, log, held_input) as process:
        status = None
        while status is None and not start.done():
            if time.monotonic() - begin_s > start.timeout_s:
                raise NotStartedError(f"dom0 had not started after {start.timeout_s:.0f} s; see beside {log}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(LOOK_S)
        if status is not None and not start.done():
            raise NotStartedError(f"the machine ended before dom0 had started; see beside {log}")
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RigError(f"the machine was still running after {timeout_s:.0f} s; see beside {log}") from error


@contextlib.contextmanager
def _process(words: list[str], log: Path, held_input: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block, whatever ends it, nor us if we are killed."""
    words = ["setpriv", "--pdeathsig", "KILL", *words]
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
