# SPDX-License-Identifier: GPL-2.0-or-later
"""The Clock's hand: one sweep visits every domain's memory once, portion by portion, each domain in turn.

A portion is the same fraction of each domain, so that all of them are through at the same time, however different
their sizes: nobody's pages are looked at more often than anybody else's.
"""

# After so many sweeps that found next to nothing to do (a page waits for a few before it is watched, and again before
# it is evicted), each takes twice as long as the one before, up to so many visit intervals. What changes meanwhile is
# found so much later, once: then sweeps are as short as ever.
QUIET_SWEEPS = 4
LONGEST_SWEEP = 4
# Changes, of all pages, that are next to nothing: guests that do nothing still tell the time.
QUIET_SHARE = 1 / 1024

# A portion of the largest domain: long enough for native calls to pay, short enough not to hold anything up.
PORTION_PAGES = 1024
# A visit costs some ms whatever its size, so small domains get few. With one a second, at the default interval, no
# second's worth of what may be watched is lost.
FEWEST_PORTIONS = 4


def portions_of_sweep(largest: int) -> int:
    """How many portions a sweep has; largest: gfns of the largest domain."""
    return max(FEWEST_PORTIONS, -(-largest // PORTION_PAGES))


class SweepLength:
    """How many visit intervals a sweep takes, by what is found. A visit that finds nothing changed for so many
    intervals counts as so many: what is decided after some visits is decided as soon as ever."""

    def __init__(self) -> None:
        self._found = 0
        self._quiet = 0
        self._next = 1
        self._before = 1
        self.intervals = 1
        self.weight = 1

    def found(self, pages: int) -> None:
        """So many pages were changed, came back or were saved."""
        self._found += pages

    def hurry(self) -> None:
        """Something else has happened: nothing waits any longer than it has to."""
        self._quiet = 0
        self.intervals = self.weight = self._next = 1

    def come_back(self, pages: int, of_pages: int) -> None:
        """Guests are at work again."""
        self.found(pages)
        if pages > of_pages * QUIET_SHARE:
            self.hurry()

    def begin_sweep(self, intervals_since: float) -> None:
        """intervals_since: how many visit intervals ago the one before began."""
        self._before, self.intervals = self.intervals, self._next
        self.weight = max(1, min(self._before, self.intervals, int(intervals_since + 0.5)))
        self._found = 0

    def end_sweep(self, of_pages: int, may_grow: bool) -> None:
        self._quiet = self._quiet + 1 if may_grow and self._found <= of_pages * QUIET_SHARE else 0
        self._next = min(2 * self.intervals, LONGEST_SWEEP) if self._quiet >= QUIET_SWEEPS else 1


def portion(gfns: int, number: int, portions: int) -> range:
    """The gfns of portion `number` of a domain. All portions together are all gfns, each once."""
    return range(gfns * number // portions, gfns * (number + 1) // portions)
