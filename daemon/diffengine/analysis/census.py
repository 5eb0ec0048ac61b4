# SPDX-License-Identifier: GPL-2.0-or-later
"""The first look at every page: its kind, its digest, its similarity keys; then which pages are identical."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.workers import Progress, Stage, Workers
from diffengine.errors import DiffengineError
from diffengine.images import ImageSet
from diffengine.native import (
    NONE,
    SHARING_ENTRY_BYTES,
    SHARING_MIN_BYTES,
    Bytes,
    Digester,
    FullError,
    PageKind,
    PageNumbers,
    SharingTable,
    compare,
)

BATCH_PAGES = 4096
# Expected microseconds per page, for the progress display only; most of it is reading from disk.
DIGEST_COST = 3.0
# A table so small that more passes than this are needed would spend its time reading digests again.
MOST_PASSES = 256
# The sharing table takes entries up to this share of its slots (sharing.h).
TABLE_LOAD = 7 / 8
# By default the table may take this much per guest page, and makes several passes when that is too little.
DEFAULT_TABLE_BYTES_PER_PAGE = 6


@dataclass(frozen=True)
class Census:
    """Arrays by global page number: kinds (enum PageKind), digests, and keys (n, k)."""

    kinds: Bytes
    digests: NDArray[np.uint64]
    keys: NDArray[np.uint64]

    @property
    def nonzero(self) -> NDArray[np.bool_]:
        nonzero: NDArray[np.bool_] = self.kinds != PageKind.ZERO
        return nonzero


@dataclass(frozen=True)
class Identical:
    """Which pages are identical within their trust group.

    leaders, by page number: the first page of the group with the same content; NONE for a zero page.
    """

    leaders: PageNumbers
    passes: int
    table_bytes: int

    def distinct_pages(self) -> PageNumbers:
        """The pages that lead, in order: one for each content."""
        numbers = np.arange(len(self.leaders), dtype=np.uint32)
        distinct: PageNumbers = numbers[self.leaders == numbers]
        return distinct


def batches(pages: PageNumbers, size: int) -> Iterator[PageNumbers]:
    for start in range(0, len(pages), size):
        yield pages[start : start + size]


def take_census(images: ImageSet, digester: Digester, workers: Workers, progress: Progress) -> Census:
    """Digests every page of the images, each read once."""
    progress.begin("reading the images")
    progress.expect(images.pages * DIGEST_COST)
    census = Census(
        np.empty(images.pages, dtype=np.uint8),
        np.empty(images.pages, dtype=np.uint64),
        np.empty((images.pages, digester.k), dtype=np.uint64),
    )

    def digest(pages: PageNumbers) -> int:
        part = slice(int(pages[0]), int(pages[-1]) + 1)
        digester.digest(images.addresses(pages), census.digests[part], census.kinds[part], census.keys[part])
        return len(pages)

    every_page = np.arange(images.pages, dtype=np.uint32)
    for done in workers.map(Stage.DIGEST, digest, batches(every_page, BATCH_PAGES)):
        progress.advance(done, done * DIGEST_COST)
    return census


def table_bytes_allowed(pages: int, nonzero: int, table_memory: int | None) -> int:
    """How much the sharing table takes: what all non-zero pages need, within the limit.

    Raises DiffengineError (exit code 2) for a limit that would need more than MOST_PASSES passes.
    """
    needed = int((nonzero + 1) / TABLE_LOAD + 8) * SHARING_ENTRY_BYTES
    limit = table_memory if table_memory is not None else pages * DEFAULT_TABLE_BYTES_PER_PAGE
    smallest = max(SHARING_MIN_BYTES, -(-needed // MOST_PASSES))
    if table_memory is not None and limit < smallest:
        error = DiffengineError(
            f"--table-memory {table_memory}: too small for {nonzero} non-zero pages; give at least {smallest} bytes"
        )
        error.exit_code = 2
        raise error
    return max(smallest, min(limit, needed))


def find_identical(
    images: ImageSet,
    census: Census,
    groups: Sequence[Sequence[range]],
    table_memory: int | None,
    workers: Workers,
) -> Identical:
    """Finds each group's identical pages; a group is ranges of page numbers.

    One table serves the groups one after the other. Equal digests are candidates only: contents are compared.
    """
    eligible = census.nonzero.astype(np.uint8)
    largest = max(sum(int(eligible[r.start : r.stop].sum()) for r in group) for group in groups)
    table = SharingTable(table_bytes_allowed(images.pages, largest, table_memory))
    leaders = np.full(images.pages, NONE, dtype=np.uint32)
    passes = max(1, -(-largest // table.capacity))
    with workers.clock(Stage.SHARING):
        for group in groups:
            passes = max(passes, _share_group(table, census.digests, eligible, group, passes, leaders))
    _compare_with_leaders(images, leaders, workers)
    return Identical(leaders, passes, table.bytes)


def _share_group(
    table: SharingTable,
    digests: NDArray[np.uint64],
    eligible: Bytes,
    group: Sequence[range],
    passes: int,
    leaders: PageNumbers,
) -> int:
    """Runs all passes over one group; more of them when digests happen to crowd one interval. How many it took."""
    while True:
        try:
            for interval in range(passes):
                table.clear()
                for pages in group:
                    table.run_pass(digests, eligible, pages, interval, passes, leaders)
            return passes
        except FullError:
            passes += 1 + passes // 8


def _compare_with_leaders(images: ImageSet, leaders: PageNumbers, workers: Workers) -> None:
    """A page whose bytes differ from its leader's (a collision of 64-bit digests) is made its own leader."""
    numbers = np.arange(len(leaders), dtype=np.uint32)
    followers = numbers[(leaders != numbers) & (leaders != NONE)]

    def differing(pages: PageNumbers) -> PageNumbers:
        equal = compare(images.addresses(pages), images.addresses(leaders[pages]))
        return pages[~equal]

    for pages in workers.map(Stage.SHARING, differing, batches(followers, BATCH_PAGES)):
        leaders[pages] = pages


def pages_shared_between(images: ImageSet, census: Census) -> NDArray[np.int64]:
    """(images, images) matrix: how many of row's non-zero pages have content that column holds too.

    The diagonal counts a content's second and further copies within one image.
    """
    count = len(images.images)
    nonzero = np.flatnonzero(census.nonzero)
    _, contents = np.unique(census.digests[nonzero], return_inverse=True)
    image_of = images.image_indices(nonzero.astype(np.uint32))
    copies = np.zeros((int(contents.max(initial=-1)) + 1, count), dtype=np.int64)
    np.add.at(copies, (contents, image_of), 1)
    shared = copies.T @ (copies > 0)
    np.fill_diagonal(shared, np.maximum(copies - 1, 0).sum(axis=0))
    return shared
