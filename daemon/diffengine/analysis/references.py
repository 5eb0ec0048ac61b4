# SPDX-License-Identifier: GPL-2.0-or-later
"""Which earlier page each page may be patched against. Results depend neither on batches nor on threads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import BATCH_PAGES, batches
from diffengine.analysis.workers import Pool, Stage, Workers
from diffengine.images import ImageSet
from diffengine.native import (
    NONE,
    Addresses,
    Bytes,
    KeyIndex,
    PageEncoder,
    PageNumbers,
    ShiftIndex,
    choose_references,
    shift_features,
)

# Encoding takes up to some 0.1 ms a page: batches stay short enough that Ctrl-C is answered at once.
ENCODE_BATCH_PAGES = 256
# Bytes of the shift-tolerant detector's index per distinct page (similarity.h).
SHIFT_INDEX_BYTES_PER_PAGE = 32
SHIFT_INDEX_MIN_BYTES = 16384
# A second level gains 0.45 % of the bytes, and makes the median rebuild of a patch a third slower.
SHIFT_MAX_DEPTH = 1


@dataclass(frozen=True)
class Found:
    """references: a page number or NONE for each page looked at. index_bytes: memory of the index that found them."""

    references: PageNumbers
    index_bytes: int


def find_by_shift(images: ImageSet, pages: PageNumbers, seed: int, workers: Workers) -> Found:
    """The shift-tolerant detector's proposals: not yet known to pay."""
    index = ShiftIndex(max(SHIFT_INDEX_MIN_BYTES, SHIFT_INDEX_BYTES_PER_PAGE * len(pages)), SHIFT_MAX_DEPTH)
    depths = np.zeros(images.pages, dtype=np.uint8)
    found = []

    def features(batch: PageNumbers) -> tuple[PageNumbers, NDArray[np.uint32], Bytes]:
        return batch, *shift_features(seed, images.addresses(batch))

    for batch, values, counts in workers.map(Stage.SIMILARITY, features, batches(pages, BATCH_PAGES)):
        with workers.clock(Stage.SIMILARITY):
            found.append(index.references_of(values, counts, batch, depths))
    return Found(np.concatenate(found), index.bytes)


def find_by_hash(
    images: ImageSet,
    pages: PageNumbers,
    keys: NDArray[np.uint64],
    candidates: int,
    patch_limit: int,
    encoders: Pool[PageEncoder],
    workers: Workers,
) -> Found:
    """The paper's detector: of the candidates that are no patches themselves, the one with the smallest fast patch.

    keys: (n, k), by global page number. A page without a patch of at most `patch_limit` bytes gets NONE.
    """
    index = KeyIndex(len(pages) * keys.shape[1], candidates)
    patched = np.zeros(images.pages, dtype=np.uint8)
    found = []

    def look_up() -> Iterator[tuple[PageNumbers, PageNumbers]]:
        for batch in batches(pages, ENCODE_BATCH_PAGES):
            with workers.clock(Stage.SIMILARITY):
                candidates_of_batch = index.candidates_of(keys[batch], batch)
            yield batch, candidates_of_batch

    def sizes(item: tuple[PageNumbers, PageNumbers]) -> tuple[PageNumbers, PageNumbers, NDArray[np.uint16]]:
        batch, found_pages = item
        with encoders.borrow() as encoder:
            lengths = encoder.patch_sizes(images.addresses(batch), optional_addresses(images, found_pages), patch_limit)
        return batch, found_pages, lengths

    for batch, found_pages, lengths in workers.map(Stage.ENCODE, sizes, look_up()):
        found.append(choose_references(batch, found_pages, lengths, patched))
    return Found(np.concatenate(found), index.bytes)


def optional_addresses(images: ImageSet, pages: PageNumbers) -> Addresses:
    """Addresses of page numbers that may be NONE; 0 for those."""
    absent = pages == NONE
    addresses = images.addresses(np.where(absent, np.uint32(0), pages))
    addresses[absent] = 0
    return addresses
