# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages are to share a frame: the sharing table, its passes, and pairs of a source and a client."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.pages import HAS_FRAME, TRIED, UNKNOWN_KEY, PageTable, Place
from diffengine.native import (
    NONE,
    SHARING_ENTRY_BYTES,
    SHARING_MIN_BYTES,
    FullError,
    PageNumbers,
    SharingTable,
)

# The table takes entries up to this share of its slots (sharing.h).
TABLE_LOAD = 7 / 8
# Digests do not fall into equal intervals quite evenly.
UNEVENNESS = 1.1


def table_bytes_needed(contents: int, passes: int) -> int:
    """Bytes of a table for one of `passes` passes over so many contents."""
    entries = contents if passes == 1 else int(contents / passes * UNEVENNESS) + 16
    return max(SHARING_MIN_BYTES, int((entries + 1) / TABLE_LOAD + 8) * SHARING_ENTRY_BYTES)


def passes_needed(contents: int, table_bytes: int) -> int:
    passes = 1
    while table_bytes_needed(contents, passes) > max(table_bytes, SHARING_MIN_BYTES):
        passes += 1
    return passes


@dataclass(frozen=True)
class Pairs:
    """Each client is to get its source's frame. first: the page that the table names for their content.
    partner_watched: pages whose first copy is watched just now."""

    sources: PageNumbers
    clients: PageNumbers
    first: PageNumbers
    partner_watched: int


class Sharing:
    """The sharing table of the sweep under way, cleared for each pass; and joining, with its limit of sharers.

    `redirect`: where to look instead when the page that the table names has no frame, or one that is full.
    """

    def __init__(self, pages: PageTable, most_sharers: int, passes: int | None, table_memory_bytes: int | None) -> None:
        self._pages = pages
        self._most = most_sharers
        self._fixed_passes = passes
        self._limit = table_memory_bytes
        self._table: SharingTable | None = None
        self._redirect: dict[int, int] = {}
        self.passes = passes or 1
        self.current_pass = 0
        self.cycles = 0

    def begin_sweep(self) -> None:
        """The next pass; or the first of the next cycle, when the number of passes may change."""
        self._redirect.clear()
        self.current_pass += 1
        if self._table is None or self.current_pass >= self.passes:
            self.cycles += self._table is not None
            self.current_pass = 0
            self._size_table()
        if self._table is not None:
            self._table.clear()

    def _size_table(self) -> None:
        keys = self._pages.keys
        # Zero pages are one content. Those not visited yet have a quiet visit to make before they are looked up.
        contents = int(np.count_nonzero((keys != 0) & (keys != UNKNOWN_KEY))) + 1
        if self._limit is not None:
            self.passes = self._fixed_passes or passes_needed(contents, self._limit)
        wanted = table_bytes_needed(contents, self.passes)
        wanted = wanted if self._limit is None else min(wanted, max(self._limit, SHARING_MIN_BYTES))
        if self._table is None or not wanted <= self._table.bytes <= 1.25 * wanted:
            self._table = SharingTable(wanted + wanted // 16)

    @property
    def bytes(self) -> int:
        return self._table.bytes if self._table else 0

    def look_up(self, part: range, eligible: NDArray[np.uint8]) -> tuple[PageNumbers, bool]:
        """Leaders of the pages of `part` that are eligible and in this pass, NONE for the others; and whether the
        table had room for all. The leader is the first page of the sweep with the same key."""
        leaders = np.full(len(part), NONE, dtype=np.uint32)
        if self._table is None:
            return leaders, True
        try:
            self._table.run_pass_over(self._pages.keys, eligible, part, self.current_pass, self.passes, leaders)
        except FullError:
            return leaders, False
        return leaders, True

    def _redirected(self, leaders: PageNumbers) -> PageNumbers:
        if not self._redirect:
            return leaders
        known = np.array(sorted(self._redirect), dtype=np.uint32)
        instead = np.array([self._redirect[int(page)] for page in known], dtype=np.uint32)
        found = np.minimum(np.searchsorted(known, leaders), len(known) - 1)
        return np.where(known[found] == leaders, instead[found], leaders)

    def _redirect_to(self, first: PageNumbers, instead: PageNumbers) -> None:
        """From now on `instead` leads in place of `first`; of several, the last does."""
        contents, last = np.unique(first[::-1], return_index=True)
        self._redirect.update(zip(contents.tolist(), instead[::-1][last].tolist(), strict=True))

    def pair_up(self, visited: PageNumbers, leaders: PageNumbers) -> Pairs:
        """What to share of the visited pages with the leaders that look_up() gave them."""
        pages = self._pages
        first = leaders
        leaders = self._redirected(leaders)
        other = np.flatnonzero((leaders != NONE) & (leaders != visited))
        other = other[HAS_FRAME[pages.place[visited[other]]]]
        # Most pages of a quiet host share with their leader already.
        sources = pages.source[visited[other]]
        other = other[(sources == NONE) | (sources != pages.source[leaders[other]])]
        if not len(other):
            return Pairs(visited[other], visited[other], visited[other], 0)
        visited, leaders, first = visited[other], leaders[other], first[other]
        own_group = (pages.keys[visited] == 0) | (pages.groups_of(visited) == pages.groups_of(leaders))
        visited, leaders, first = visited[own_group], leaders[own_group], first[own_group]
        watched = int((pages.place[leaders] == Place.WATCHED).sum())
        visited, leaders, first = self._replace_unusable(visited, leaders, first)
        self._use_groups_with_room(visited, leaders, first)
        reverse = (pages.place[visited] == Place.SHARED) & (pages.place[leaders] == Place.RESIDENT)
        late_leaders, which = np.unique(leaders[reverse], return_index=True)
        join = pages.place[visited] == Place.RESIDENT
        # A leader that joins an older group in this batch takes its own followers along in the next sweep.
        join &= ~np.isin(leaders, late_leaders)
        joined = self._join(visited[join], leaders[join], first[join])
        turned = (visited[reverse][which], late_leaders, first[reverse][which])
        sources, clients, first = (np.concatenate(both) for both in zip(turned, joined, strict=True))
        return Pairs(sources, clients, first, watched)

    def _replace_unusable(
        self, visited: PageNumbers, leaders: PageNumbers, first: PageNumbers
    ) -> tuple[PageNumbers, PageNumbers, PageNumbers]:
        """Leaders without a frame to join: the first page that has one leads in their place."""
        unusable = ~HAS_FRAME[self._pages.place[leaders]]
        if unusable.any():
            _, index, inverse = np.unique(first[unusable], return_index=True, return_inverse=True)
            leaders = leaders.copy()
            leaders[unusable] = visited[unusable][index][inverse]
            self._redirect_to(first[unusable], leaders[unusable])
        follows = leaders != visited
        return visited[follows], leaders[follows], first[follows]

    def _use_groups_with_room(self, visited: PageNumbers, leaders: PageNumbers, first: PageNumbers) -> None:
        """A shared page whose frame takes more sharers leads in place of one whose frame is full."""
        pages = self._pages
        both = (pages.place[visited] == Place.SHARED) & (pages.place[leaders] == Place.SHARED)
        visited, leaders, first = visited[both], leaders[both], first[both]
        room = pages.sharers[pages.source[visited]] < self._most
        better = room & (pages.sharers[pages.source[leaders]] >= self._most)
        self._redirect_to(first[better], visited[better])

    def _join(
        self, visited: PageNumbers, leaders: PageNumbers, first: PageNumbers
    ) -> tuple[PageNumbers, PageNumbers, PageNumbers]:
        """Sources and clients: to their leaders' frames; where a frame gets full, a client becomes the source of the
        next ones. And what was first of each."""
        if not len(visited):
            return visited, visited, first
        order = np.argsort(leaders, kind="stable")
        clients, leaders, first = visited[order], leaders[order], first[order]
        starts = np.flatnonzero(np.diff(leaders, prepend=np.uint32(NONE)))
        lengths = np.diff(starts, append=len(leaders))
        rank = np.arange(len(leaders)) - np.repeat(starts, lengths)
        position = rank + self._sharers_of(leaders)
        # Where the run of a full frame's successor begins; the leader's own run has none.
        begins = position - position % self._most
        beyond = begins > 0
        place = np.arange(len(leaders)) - (position - begins)
        sources = np.where(beyond, clients[np.where(beyond, place, 0)], leaders)
        self._redirect_to(first[beyond], sources[beyond])
        pair = sources != clients
        return sources[pair], clients[pair], first[pair]

    def _sharers_of(self, leaders: PageNumbers) -> NDArray[np.int64]:
        """How many gfns each leader's frame has."""
        sources = self._pages.source[leaders]
        shared = sources != NONE
        counts = np.ones(len(leaders), dtype=np.int64)
        counts[shared] = self._pages.sharers[sources[shared]]
        return np.minimum(counts, self._most)

    def pass_over(self, pairs: Pairs, refused: NDArray[np.bool_]) -> bool:
        """Where all pairs of a content were refused, it may be for their source, which is mapped and stays so: another
        page leads in its place. Whether there is one that was not tried yet."""
        contents, index, inverse = np.unique(pairs.first, return_index=True, return_inverse=True)
        all_refused = np.bincount(inverse, weights=~refused, minlength=len(contents)) == 0
        sources, clients = pairs.sources[index[all_refused]], pairs.clients[index[all_refused]]
        # A shared frame takes further sharers, mapped or not.
        shared = self._pages.place[sources] == Place.SHARED
        self._redirect_to(contents[all_refused], np.where(shared, sources, clients))
        return bool((~shared).any())

    def joined(self, sources: PageNumbers, clients: PageNumbers) -> None:
        """Notes that these pairs share a frame now."""
        pages = self._pages
        roots = np.unique(sources[pages.source[sources] == NONE])
        pages.source[roots] = roots
        pages.sharers[roots] += 1
        pages.place[roots] = Place.SHARED
        pages.source[clients] = pages.source[sources]
        np.add.at(pages.sharers, pages.source[clients], 1)
        pages.place[clients] = Place.SHARED
        if pages.has_notes:
            pages.notes[roots] &= ~TRIED
            pages.notes[clients] &= ~TRIED
