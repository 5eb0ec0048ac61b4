# SPDX-License-Identifier: GPL-2.0-or-later
"""How a simulation's time passes, and the engine's work in it."""

import threading
import time
from typing import Protocol

from diffengine.engine import Engine
from diffengine.engine.pace import Pace, RealPace


class Run(Protocol):
    """The engine at work from `start` to `stop`, while `sleep_until` lets time pass. pace: the engine's."""

    @property
    def pace(self) -> Pace: ...

    def start(self, engine: Engine) -> None: ...

    def sleep_until(self, time_s: float) -> None:
        """Until that time of the pace's clock, or somewhat later."""

    def check(self) -> None:
        """Raises what the engine raised."""

    def stop(self) -> None: ...


class RealRun:
    """The engine on a thread of its own."""

    def __init__(self) -> None:
        self.pace = RealPace()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, engine: Engine) -> None:
        self._thread = threading.Thread(target=self._run, args=(engine,), name="engine")
        self._thread.start()

    def _run(self, engine: Engine) -> None:
        try:
            engine.run(self._stop)
        except BaseException as error:  # to be raised where the simulation is waited for
            self._failure = error

    def sleep_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - self.pace.now_s()))

    def check(self) -> None:
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
