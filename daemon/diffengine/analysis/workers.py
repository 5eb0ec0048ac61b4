# SPDX-License-Identifier: GPL-2.0-or-later
"""Batches of pages on several threads, results in order, CPU time by stage."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from enum import StrEnum
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stage(StrEnum):
    """What CPU time is spent on; the names are those of the JSON report."""

    DIGEST = "digest"
    SHARING = "sharing"
    SIMILARITY = "similarity"
    ENCODE = "encode"
    VERIFY = "verify"


class Pool(Generic[Item]):
    """Contexts that belong to one thread at a time, lent to whichever thread works."""

    def __init__(self, contexts: Sequence[Item]) -> None:
        self._free: queue.SimpleQueue[Item] = queue.SimpleQueue()
        for context in contexts:
            self._free.put(context)

    @contextmanager
    def borrow(self) -> Iterator[Item]:
        """A context for the length of the block; waits for one to come free."""
        context = self._free.get()
        try:
            yield context
        finally:
            self._free.put(context)


class Progress(Protocol):
    """What a progress display hears. `cost` is in expected microseconds of work; pages are counted per step."""

    def expect(self, cost: float) -> None:
        """The whole analysis will cost this much more than was expected so far."""

    def begin(self, step: str) -> None:
        """A step begins: its name."""

    def advance(self, pages: int, cost: float) -> None:
        """So many pages have passed a step, and so much of the expected cost is done."""


class Silent:
    """No display."""

    def expect(self, cost: float) -> None:
        pass

    def begin(self, step: str) -> None:
        pass

    def advance(self, pages: int, cost: float) -> None:
        pass


class Workers:
    """Threads that run native batches; the GIL is released there, so `jobs` cores are used."""

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="diffengine")
        # Enough to keep every thread busy, few enough that the batches' payloads stay small in memory.
        self._in_flight = 2 * jobs
        self._running: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self.cpu_seconds = dict.fromkeys(Stage, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On Ctrl-C, only the batches that run already are waited for: some tens of milliseconds.
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def clock(self, stage: Stage) -> Iterator[None]:
        """Adds this thread's CPU time inside the block to the stage's."""
        start = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.cpu_seconds[stage] += time.thread_time() - start

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        future = self._pool.submit(function, item)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def settle(self) -> None:
        """Returns when no batch runs any more, cancelling those that have not begun.

        To be called after an exception, before what batches use (a store, a mapping) is closed.
        """
        running = list(self._running)
        for future in running:
            future.cancel()
        wait(running)

    def map(self, stage: Stage, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """function(item) for each item, on the threads; results in the order of items.

        Items are taken as results are consumed, so an item may depend on what the consumer did long before.
        """

        def timed(item: Item) -> Result:
            with self.clock(stage):
                return function(item)

        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._submit(timed, item))
            if len(waiting) >= self._in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
