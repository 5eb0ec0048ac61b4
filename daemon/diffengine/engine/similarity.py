# SPDX-License-Identifier: GPL-2.0-or-later
"""Which page could be another one's reference: the shift-tolerant detector's index over all trust groups.

Features are salted with the trust group, so that one index serves all groups and none finds another's pages.
"""

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.pages import INDEXED, PageTable, Place
from diffengine.native import NONE, Addresses, Bytes, PageNumbers, ShiftIndex, shift_features

SMALLEST_INDEX_BYTES = 4096
# A reference that is a patch itself makes a fault rebuild twice.
MAX_DEPTH = 1
# Two features in common make a candidate (similarity.h); with few, chance decides which were sampled.
POOR_FEATURES = 4
MULTIPLIER = 0x9E3779B1  # Knuth's: spreads group numbers over all bits


class Similarity:
    """An index of pages that were seen cold. It is emptied when most of what it holds is stale; since the pages that
    are out then would be found no more, it lasts for many sweeps where the paper clears its table each cycle."""

    def __init__(self, pages: PageTable, seed: int, bytes_per_page: float) -> None:
        self._pages = pages
        self._seed = seed
        self._bytes_per_page = bytes_per_page
        self._index: ShiftIndex | None = None
        self._entered = 0

    @property
    def bytes(self) -> int:
        return self._index.bytes if self._index else 0

    def begin_cycle(self) -> None:
        """Emptied if it has become too small, or more pages were entered than three times those that may come."""
        if self._index is None:
            return
        contents = self._contents()
        if self._index.bytes < self._wanted_bytes(contents) // 2 or self._entered > 3 * contents:
            self._begin_anew(contents)

    def _begin_anew(self, contents: int) -> ShiftIndex:
        self._index = ShiftIndex(self._wanted_bytes(contents), MAX_DEPTH)
        self._entered = 0
        self._pages.notes &= ~INDEXED
        return self._index

    def _contents(self) -> int:
        """Pages that may come: of those that share a frame, one."""
        pages = self._pages
        total = sum(domain.gfns for domain in pages.domains)
        shared = int(np.count_nonzero(pages.place == Place.SHARED))
        return total - shared + int(np.count_nonzero(pages.sharers))

    def _wanted_bytes(self, contents: int) -> int:
        return max(SMALLEST_INDEX_BYTES, int(contents * self._bytes_per_page))

    def propose(self, pages: PageNumbers, addresses: Addresses) -> PageNumbers:
        """A page of the same trust group that may serve as a reference, or NONE, for each; and enters them."""
        if not len(pages):
            return np.full(0, NONE, dtype=np.uint32)
        # Made when the first pages are cold, and what is the same is shared.
        index = self._index or self._begin_anew(self._contents())
        features, counts = shift_features(self._seed, addresses)
        self._add_whole_page(pages, features, counts)
        groups = self._pages.groups_of(pages)
        salts: NDArray[np.uint32] = (groups.astype(np.uint64) * MULTIPLIER).astype(np.uint32)
        features ^= salts[:, np.newaxis]
        found = index.references_of(features, counts, pages, self._pages.depths)
        self._entered += len(pages)
        self._pages.notes[pages] |= INDEXED
        proposed = np.flatnonzero(found != NONE)
        candidates = found[proposed]
        alive = (self._pages.place[candidates] != Place.GONE) & (candidates != pages[proposed])
        alive[alive] = self._pages.groups_of(candidates[alive]) == groups[proposed[alive]]
        found[proposed[~alive]] = NONE
        return found

    def _add_whole_page(self, pages: PageNumbers, features: NDArray[np.uint32], counts: Bytes) -> None:
        """Pages with hardly a feature, as those that repeat themselves, are at least found by a page like them: two
        more features are made from all of their content."""
        poor = np.flatnonzero(counts < POOR_FEATURES)
        keys = self._pages.keys[pages[poor]]
        features[poor, counts[poor]] = (keys * np.uint64(MULTIPLIER) >> np.uint64(32)).astype(np.uint32)
        features[poor, counts[poor] + 1] = (keys * np.uint64(MULTIPLIER + 2) >> np.uint64(32)).astype(np.uint32)
        counts[poor] += 2
