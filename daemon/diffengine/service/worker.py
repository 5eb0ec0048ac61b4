# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's thread: steps of the engine, and between two of them what others want done there."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from diffengine.hypervisor.protocol import HostGoneError
from diffengine.service.operations import Operations, RefusedError
from diffengine.service.snapshot import Snapshot
from diffengine.service.supervisor import Supervisor, nobody

Result = TypeVar("Result")
# What may wait for the thread.
MOST_WAITING = 64


@dataclass(frozen=True)
class _Order:
    carry_out: Callable[[Operations], Any]
    future: "Future[Any]"


class Worker:
    """Runs operations from `start` to `stop`."""

    def __init__(
        self,
        operations: Operations,
        ended: Callable[[BaseException | None], object],
        supervisor: Supervisor | None = None,
    ) -> None:
        """ended: called on the thread when it ends, with what ended it. supervisor: told of its progress."""
        self._operations = operations
        self._supervisor = supervisor or nobody()
        self._ended = ended
        self._orders: queue.Queue[_Order | None] = queue.Queue(MOST_WAITING)
        self._stop = threading.Event()
        # Held to put an order, and to end: none is put that nobody will see.
        self._open = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine")

    @property
    def snapshot(self) -> Snapshot:
        """The latest; from any thread."""
        return self._operations.snapshot

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for its end. Orders that still wait are refused."""
        self._stop.set()
        with suppress(queue.Full):  # then it does not sleep
            self._orders.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, order: Callable[[Operations], Result]) -> "Future[Result]":
        """Carries it out on the thread, after the step that is under way. Raises RefusedError if too much waits."""
        future: Future[Result] = Future()
        with self._open:
            if self._stop.is_set():
                raise RefusedError("the daemon is ending")
            try:
                self._orders.put_nowait(_Order(order, future))
            except queue.Full:
                raise RefusedError("the engine has too much to do; try again later") from None
        return future

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            while not self._stop.is_set():
                self._obey(self._operations.step())
            self._operations.close()
        except BaseException as error:  # whoever started it must know
            failure = error
        self._refuse_rest()
        self._ended(failure)

    def _refuse_rest(self) -> None:
        with self._open:
            self._stop.set()
            while not self._orders.empty():
                order = self._orders.get()
                # Who asked may have gone meanwhile.
                if order and order.future.set_running_or_notify_cancel():
                    order.future.set_exception(RefusedError("the daemon is ending"))

    def _obey(self, wait_s: float) -> None:
        """Orders, until the time is over."""
        end_s = time.monotonic() + wait_s
        while not self._stop.is_set():
            self._supervisor.progress(self._operations.standing_text)
            left_s = max(0.0, end_s - time.monotonic())
            try:
                order = self._orders.get(timeout=min(left_s, self._supervisor.interval_s))
            except queue.Empty:
                if time.monotonic() >= end_s:
                    return
                continue
            if order:
                self._carry_out(order)

    def _carry_out(self, order: _Order) -> None:
        if not order.future.set_running_or_notify_cancel():
            return
        self._supervisor.order_begins()
        try:
            order.future.set_result(order.carry_out(self._operations))
        except HostGoneError as error:
            order.future.set_exception(error)
            raise
        except Exception as error:
            order.future.set_exception(error)
        finally:
            self._supervisor.order_ends()
