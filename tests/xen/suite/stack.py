# SPDX-License-Identifier: GPL-2.0-or-later
"""The project at work in dom0: its pager as a process, its engine in this one."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import diffengine
from diffengine.engine import EngineOptions
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import DomainInfo
from diffengine.hypervisor.xen import XenHost
from diffengine.service import AttachedEngine, DomainTerms
from diffengine.service.attached import Terms

PROGRAM = Path(diffengine.__file__).parent / "bin/diffengine-pager"
STATE = Path("/run/diffengine-test")
LOG = Path("pager.log")
SWAP_MIB = 64
READY_S = 120.0
# Emulation makes everything some 20 times slower than it is; the limits that protect guests would only make it longer.
OPTIONS = EngineOptions(seed=1, cpu_share=1.0, visit_interval_s=1.0, c4_visits=1, fault_limit=1e5, refault_limit=10**9)


class PagerProcess:
    """diffengine-pager --xen. It may be killed and started again; what is out stays out."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None, state: Path = STATE) -> None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(mode=0o700)
        self._state = state
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        with LOG.open("a") as log:
            words = [str(PROGRAM), "--state", str(self._state), "--xen", "--parent", str(os.getpid()), *self._options]
            self._process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line.strip() == "ready", f"the pager did not start: {LOG.read_text()}"

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)
            self._process.wait(READY_S)
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None


@contextmanager
def pager_process(
    *options: str, environment: Mapping[str, str] | None = None, state: Path = STATE
) -> Iterator[PagerProcess]:
    process = PagerProcess(*options, environment=environment, state=state)
    try:
        yield process
    finally:
        process.stop()


def one_group(domain: DomainInfo) -> DomainTerms:
    return DomainTerms("all")


@contextmanager
def engine(
    host: XenHost, options: EngineOptions = OPTIONS, terms: Terms = one_group
) -> Iterator[tuple[AttachedEngine, PagerClient]]:
    """An engine on the pager that runs."""
    pager = PagerClient(STATE)
    try:
        attached = AttachedEngine(host, pager, options, terms)
        yield attached, pager
        attached.close()
    finally:
        pager.close()


def run_until(attached: AttachedEngine, done: Callable[[], bool], timeout_s: float) -> bool:
    """Steps of the engine until it is done, or time is up."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        time.sleep(min(attached.step(), 0.2))
        if done():
            return True
    return False
