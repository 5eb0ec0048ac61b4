# SPDX-License-Identifier: GPL-2.0-or-later
"""How much a guest is made to feel: per domain, how fast pages are watched, how many may be evicted."""

from collections import deque
from dataclasses import dataclass, field
from math import inf

import numpy as np

MINUTE_S = 60.0


@dataclass
class WatchRate:
    """How many pages of a domain may be watched per second, found by feedback from the faults that follow.

    Like TCP's congestion window: grows by half while faults stay below the limit, and shrinks in proportion as soon as
    they do not. It starts low, for which pages are hot is not known then.
    """

    fault_limit: float
    pages_per_s: float = 0.0
    tokens: float = 0.0
    most_per_s: float = 20_000.0

    def __post_init__(self) -> None:
        self.pages_per_s = max(4 * self.fault_limit, 1.0)

    def observe(self, faults: int, seconds: float) -> None:
        """Faults that the domain had in the last `seconds`."""
        faults_per_s = faults / seconds
        if faults_per_s > self.fault_limit:
            self.pages_per_s = max(self.pages_per_s * max(self.fault_limit / faults_per_s, 0.1) / 2, 1.0)
            self.tokens = 0.0
        else:
            self.pages_per_s = min(self.pages_per_s * (1 + seconds / 2), self.most_per_s)
            self.tokens = min(self.tokens + self.pages_per_s * seconds, self.pages_per_s)

    @property
    def available(self) -> int:
        """How many pages may be watched now."""
        return int(self.tokens)

    def take(self, wanted: int) -> int:
        """How many of the wanted pages may be watched now."""
        taken = min(wanted, self.available)
        self.tokens -= taken
        return taken


@dataclass
class RefaultLimit:
    """The nearer refaults are to the limit, the longer must a page have been idle to go: those come back that were
    taken for cold too soon. At the limit none goes."""

    per_minute: int
    _history: deque[tuple[float, int]] = field(default_factory=deque)
    _in_minute: int = 0

    def observe(self, now_s: float, refaults: int) -> None:
        if refaults:
            self._history.append((now_s, refaults))
            self._in_minute += refaults
        while self._history and self._history[0][0] <= now_s - MINUTE_S:
            self._in_minute -= self._history.popleft()[1]

    @property
    def patience(self) -> float:
        """How many times as long as usual to wait: 1 while there is no refault, without end at the limit."""
        left = self.per_minute - self._in_minute
        return self.per_minute / left if left > 0 else inf


def least_idle(patience: float, c4_visits: int) -> float:
    """Visits that a page must have been found untouched; one is enough for those without patience."""
    return float(np.rint(1 + c4_visits * (patience - 1)))


@dataclass(frozen=True)
class Room:
    """How many more pages may go out, and what ends it first."""

    pages: int
    by_min_resident: bool


def room_to_evict(gfns: int, evicted: int, min_resident: int, evicted_share_limit: float) -> Room:
    by_share = int(gfns * evicted_share_limit) - evicted
    by_resident = gfns - evicted - min_resident
    return Room(max(0, min(by_share, by_resident)), by_resident < by_share)
