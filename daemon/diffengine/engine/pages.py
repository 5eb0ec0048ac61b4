# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine remembers of each page: arrays over all domains' pages, indexed by page number.

A page number is a domain's first page + gfn. The engine's whole memory is here and in its tables, so bytes matter:
arrays that only one technique needs are made only if the policy has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.array_enum import ArrayEnum
from diffengine.hypervisor.protocol import Domids, Gfns
from diffengine.native import NONE, PageNumbers

# No page's digest is this one, as far as chance allows: a page that was not visited yet.
UNKNOWN_KEY = 0xFFFF_FFFF_FFFF_FFFF
# An object's headers in the store, in round figures: what a page's eviction costs besides its payload.
HEADER_BYTES = 32


class Place(ArrayEnum):
    """Where the engine left a page; the guest may have taken it back since."""

    RESIDENT = 0
    WATCHED = 1
    SHARED = 2
    PATCHED = 3
    COMPRESSED = 4
    SWAPPED = 5
    HOLE = 6
    GONE = 7  # of a domain that is no more


class Places:
    """A set of them. `chosen[array]`: which elements are one of these. By the bits of a mask: a table to index with
    places takes ten times as long, and most of memory is looked at so in each sweep."""

    def __init__(self, *chosen: Place) -> None:
        self._mask = np.uint8(sum(1 << place for place in chosen))

    def __getitem__(self, place: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return (np.right_shift(self._mask, place) & np.uint8(1)).view(np.bool_)


HAS_FRAME = Places(Place.RESIDENT, Place.SHARED)
# What is looked at: a hole may have been filled.
READABLE = Places(Place.RESIDENT, Place.SHARED, Place.HOLE)
EVICTABLE = Places(Place.RESIDENT, Place.WATCHED)
OUT = Places(Place.PATCHED, Place.COMPRESSED, Place.SWAPPED)
# May need a frame that it does not have to itself.
NEEDS_FRAME = Places(Place.PATCHED, Place.COMPRESSED, Place.SWAPPED, Place.SHARED)
# Out as an object that more pages can become.
IN_STORE = Places(Place.PATCHED, Place.COMPRESSED)
LEADS = Places(Place.RESIDENT, Place.SHARED, Place.WATCHED, Place.PATCHED, Place.COMPRESSED)

# Notes about a page's present content, as bits.
FUTILE = np.uint8(1)  # compression does not make it smaller
INDEXED = np.uint8(2)  # the similarity index has had it
# Not of its content: it is to be digested, for it was written, or is not what it was taken for.
WRITTEN = np.uint8(4)
# With how many others it shared a frame when it was made private to be tried (trials.py): a number of three bits.
TRIED_SHIFT = 3
MOST_TRIED = 7
TRIED = np.uint8(MOST_TRIED << TRIED_SHIFT)


@dataclass
class Domain:
    """One domain and where its pages are. group: its trust group's number. logged: the host logs which of its pages
    are written; told, missed: how well (written.py)."""

    domid: int
    gfns: int
    first: int
    group: int
    min_resident: int
    touches: int = 0
    refaults: int = 0
    logged: bool = False
    told: int = 0
    missed: int = 0

    @property
    def part(self) -> slice:
        return slice(self.first, self.first + self.gfns)


@dataclass
class PageTable:
    """keys: the digest, salted with the trust group. saved: bytes that the eviction of this page frees, before its
    share of tables. source: number of the group of sharers; sharers: how many it has, indexed by that number."""

    shares: bool
    evicts: bool
    patches: bool
    has_notes: bool = field(init=False)
    domains: list[Domain] = field(default_factory=list)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    quiet: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    place: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    idle: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    backoff: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    notes: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    saved: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, dtype=np.uint16))
    depths: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    source: PageNumbers = field(default_factory=lambda: np.empty(0, dtype=np.uint32))
    sharers: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, dtype=np.uint16))

    def __post_init__(self) -> None:
        self.has_notes = self.evicts

    def keep_notes(self) -> None:
        """From now on, if there were none."""
        if not self.has_notes:
            self.has_notes = True
            self.notes = np.zeros(len(self.keys), dtype=np.uint8)

    def doubt(self, pages: PageNumbers) -> None:
        """Has pages digested at their next visit that were not what they were taken for."""
        if self.has_notes:
            self.notes[pages] |= WRITTEN

    def _arrays(self) -> Iterator[tuple[str, Any]]:
        """Name and content of a fresh page, of the arrays that are in use."""
        yield "keys", UNKNOWN_KEY
        yield "quiet", 0
        yield "place", Place.RESIDENT
        if self.evicts:
            yield from (("idle", 0), ("backoff", 0), ("saved", 0))
        if self.has_notes:
            yield "notes", 0
        if self.patches:
            yield "depths", 0
        if self.shares:
            yield from (("source", NONE), ("sharers", 0))

    def add_domain(self, domid: int, gfns: int, group: int, min_resident: int) -> Domain:
        domain = Domain(domid, gfns, self._place_for(gfns), group, min_resident)
        missing = domain.part.stop - len(self.keys)
        for name, value in self._arrays():
            array = getattr(self, name)
            if missing > 0:
                array = np.concatenate([array, np.empty(missing, dtype=array.dtype)])
                setattr(self, name, array)
            array[domain.part] = value
        self.domains.append(domain)
        self.domains.sort(key=lambda each: each.first)
        return domain

    def _place_for(self, gfns: int) -> int:
        """The first gap that a domain which went has left, or the end."""
        end = 0
        for domain in self.domains:
            if domain.first - end >= gfns:
                return end
            end = domain.first + domain.gfns
        return end

    def remove_domain(self, domain: Domain) -> None:
        self.domains.remove(domain)
        self.leave_frames(np.arange(domain.part.start, domain.part.stop, dtype=np.uint32))
        self.keys[domain.part] = UNKNOWN_KEY
        self.quiet[domain.part] = 0
        self.place[domain.part] = Place.GONE

    def locate(self, pages: PageNumbers) -> tuple[Domids, Gfns]:
        """Whose pages these are, and which. All of them must be of living domains."""
        which = self.owners(pages)
        domids = np.array([domain.domid for domain in self.domains], dtype=np.uint16)
        firsts = np.array([domain.first for domain in self.domains], dtype=np.uint32)
        return domids[which], pages - firsts[which]

    def owners(self, pages: PageNumbers) -> NDArray[np.intp]:
        """Index into `domains` of each page."""
        firsts = np.array([domain.first for domain in self.domains], dtype=np.uint32)
        return np.searchsorted(firsts, pages, side="right") - 1

    def groups_of(self, pages: PageNumbers) -> NDArray[np.int64]:
        groups = np.array([domain.group for domain in self.domains], dtype=np.int64)
        return groups[self.owners(pages)]

    def leave_frames(self, pages: PageNumbers) -> None:
        """Pages that were written, or evicted, or given back do not share any more."""
        if not self.shares:
            return
        pages = pages[self.source[pages] != NONE]
        np.subtract.at(self.sharers, self.source[pages], 1)
        self.source[pages] = NONE

    def bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name, _ in self._arrays())
