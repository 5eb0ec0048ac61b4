# SPDX-License-Identifier: GPL-2.0-or-later
"""Which shared pages are made private, to find out whether they are cold: a shared page can't be watched.

A group of n sharers on trial takes n - 1 frames for some visits. If all of them are cold they become one object, and
most of their frame is won; if one is in use, they share again. So the smallest groups have their turn first: they win
most for what they take. And all trials together never take more than a small part of memory beyond what the former ones
have won: whoever looks, at whatever moment, finds hardly less saved than sharing alone would save.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import clock
from diffengine.engine.pages import EVICTABLE, MOST_TRIED, OUT, TRIED, TRIED_SHIFT, PageTable, Place
from diffengine.native import PAGE_BYTES, PageNumbers

# A frame with more sharers costs little for each; to find them all cold costs many faults.
MOST_SHARERS = MOST_TRIED + 1
# Frames that trials may take, of all pages, before they have won any.
MOST_TAKEN = 1 / 200
LEAST_TAKEN = 16

Choice = Callable[[PageNumbers], NDArray[np.bool_]]


def frames_won(
    others: NDArray[np.uint8], has_frame: NDArray[np.bool_], out: NDArray[np.bool_], saved: NDArray[np.uint16]
) -> float:
    """What trials have won so far, less what they take: of pages that were tried, each with so many others, and that
    have a frame of their own since, or are out and save so many bytes each."""
    group = others + 1.0
    won = (saved[out] / (PAGE_BYTES * group[out])).sum()
    taken = (others[has_frame] / group[has_frame]).sum()
    return float(won - taken)


def affordable(sharers: NDArray[np.integer], frames: float) -> NDArray[np.bool_]:
    """Which groups may be tried so that they take no more than so many frames at their worst moment, when all their
    sharers are private and none is out: the smallest first."""
    order = np.argsort(sharers, kind="stable")
    takes = np.cumsum(np.maximum(sharers[order].astype(np.int64) - 1, 0))
    chosen = np.zeros(len(sharers), dtype=np.bool_)
    chosen[order] = takes <= frames
    return chosen


class Trials:
    """Of one sweep after the other. may_try: which shared pages could go if they turned out to be cold."""

    def __init__(self, pages: PageTable, may_try: Choice) -> None:
        self._pages = pages
        self._may_try = may_try
        self._turn = 0
        self._groups = np.empty(0, dtype=np.uint32)
        self._others = np.empty(0, dtype=np.uint8)

    def begin_sweep(self) -> None:
        """Chooses the groups that have their turn now."""
        self._groups = self._groups[:0]
        pages = sum(domain.gfns for domain in self._pages.domains)
        frames = max(pages * MOST_TAKEN, LEAST_TAKEN) + self._won()
        if frames < 1:
            return
        self._turn += 1
        groups = self._ready()
        self._groups = groups[affordable(self._pages.sharers[groups], frames)]
        self._others = (self._pages.sharers[self._groups] - 1).astype(np.uint8)

    def chosen(self, pages: PageNumbers) -> PageNumbers:
        """Those of the pages that are to be made private in this sweep, if they are shared still."""
        if not len(self._groups):
            return pages[:0]
        pages = pages[self._pages.place[pages] == Place.SHARED]
        result: PageNumbers = pages[np.isin(self._pages.source[pages], self._groups)]
        return result

    def note(self, pages: PageNumbers) -> None:
        """Pages of what was chosen are private now, and are about to leave their groups."""
        others = self._others[np.searchsorted(self._groups, self._pages.source[pages])]
        self._pages.notes[pages] = (self._pages.notes[pages] & ~TRIED) | others << TRIED_SHIFT

    def _won(self) -> float:
        pages = self._pages
        others = (pages.notes & TRIED) >> np.uint8(TRIED_SHIFT)
        tried = np.flatnonzero(others)
        place = pages.place[tried]
        return frames_won(others[tried], EVICTABLE[place], OUT[place], pages.saved[tried])

    def _ready(self) -> PageNumbers:
        """The groups all of whose sharers could go: one that stays keeps the frame, and the others would go for
        nothing."""
        pages = self._pages
        shared = np.flatnonzero(pages.place == Place.SHARED).astype(np.uint32)
        shared = shared[clock.on_trial(pages.source[shared], self._turn)]
        shared = shared[pages.sharers[pages.source[shared]] <= MOST_SHARERS]
        ready = shared[clock.unshareable(pages.quiet[shared], pages.backoff[shared])]
        ready = ready[self._may_try(ready)]
        groups, counts = np.unique(pages.source[ready], return_counts=True)
        result: PageNumbers = groups[counts == pages.sharers[groups]]
        return result
