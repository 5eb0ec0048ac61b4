# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual time: machine, pager, guests' programs and the engine on one thread, every change decided by a seed.

Contract: virtual_time.h. What the machine's and the pager's own code costs stands in native/simulation; what the
engine's does, here. Both are round figures of docs/measurements.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from diffengine._simulation import ffi, lib
from diffengine.engine import Engine
from diffengine.engine.pace import Work
from diffengine.native import Binding, check, writable

SIMULATED = Binding(ffi, lib)
NS_PER_S = 10**9
ENGINE_THREAD = "1"
# CPU time of the engine's thread, per page.
WORK_NS = {
    Work.DIGEST: 400,
    Work.LOOK_UP: 50,
    Work.PROPOSE: 3_000,
    Work.COPY: 400,
    Work.ENCODE_FAST: 4_500,
    Work.ENCODE_DENSE: 80_000,
    Work.TRAIN: 250_000,
}


@dataclass(frozen=True)
class Trace:
    """What a run did, in a number: equal hashes, equal runs. switches: of threads."""

    hash: int
    switches: int


class VirtualPace:
    """The engine's clock, and what its thread computes, by the model."""

    def now_s(self) -> float:
        return float(lib.de_virtual_now_ns() / NS_PER_S)

    def cpu_s(self) -> float:
        return threads_cpu_s()[ENGINE_THREAD]

    def worked(self, work: Work, pages: int) -> None:
        if pages:
            lib.de_virtual_work(WORK_NS[work] * pages)


class VirtualRun:
    """The engine's steps as they are due, while the caller sleeps."""

    def __init__(self) -> None:
        self.pace = VirtualPace()
        self._engine: Engine | None = None
        self._due_s = 0.0

    def start(self, engine: Engine) -> None:
        self._engine = engine
        self._due_s = self.pace.now_s()

    def sleep_until(self, time_s: float) -> None:
        while self._engine and self._due_s <= time_s:
            _sleep_until(self._due_s)
            wait_s = self._engine.step()
            self._due_s = self.pace.now_s() + wait_s
        _sleep_until(time_s)

    def check(self) -> None:
        """Where it fails, `sleep_until` raises."""

    def stop(self) -> None:
        self._engine = None


def _sleep_until(time_s: float) -> None:
    lib.de_virtual_sleep_until(ceil(time_s * NS_PER_S))


def threads_cpu_s() -> dict[str, float]:
    """The threads in virtual time, and modelled CPU seconds of each."""
    numbers, cpu_ns = (np.zeros(lib.DE_VIRTUAL_MAX_THREADS, dtype=np.uint64) for _ in range(2))
    count = lib.de_virtual_threads(writable("uint64_t[]", numbers), writable("uint64_t[]", cpu_ns), len(numbers))
    pairs = zip(numbers[:count].tolist(), cpu_ns[:count].tolist(), strict=True)
    return {str(number): ns / NS_PER_S for number, ns in pairs}


def disk(read_us: float, write_us: float, at_once: int) -> Any:
    """struct de_swap_disk, with these times for a page, that serves so many requests at once."""
    return lib.de_virtual_disk(max(1, round(read_us * 1000)), max(1, round(write_us * 1000)), at_once)


def trace() -> Trace:
    result = ffi.new("struct de_virtual_trace *")
    lib.de_virtual_trace(result)
    return Trace(int(result.hash), int(result.switches))


@contextmanager
def virtual_time(seed: int) -> Iterator[None]:
    """Puts the calling thread into virtual time. What is made of SIMULATED inside must be closed inside."""
    check(lib.de_virtual_begin(seed), "beginning virtual time")
    try:
        yield
    finally:
        lib.de_virtual_end()
