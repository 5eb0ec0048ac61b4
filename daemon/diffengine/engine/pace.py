# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's time: what its thread computes, and how long that takes."""

import time
from enum import Enum
from typing import Protocol


class Work(Enum):
    """What the engine's thread computes, counted in pages."""

    DIGEST = "digest"
    LOOK_UP = "look up"  # in the sharing table
    PROPOSE = "propose"  # a reference
    COPY = "copy"
    ENCODE_FAST = "encode fast"
    ENCODE_DENSE = "encode dense"
    TRAIN = "train"


class Pace(Protocol):
    """A clock that goes forward, and the engine thread's CPU time."""

    def now_s(self) -> float: ...

    def cpu_s(self) -> float: ...

    def worked(self, work: Work, pages: int) -> None:
        """So many pages were just worked on. Real time has passed by itself; virtual time passes here."""


class RealPace:
    """The kernel's clocks."""

    def now_s(self) -> float:
        return time.monotonic()

    def cpu_s(self) -> float:
        return time.thread_time()

    def worked(self, work: Work, pages: int) -> None:
        pass
