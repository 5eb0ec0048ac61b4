# SPDX-License-Identifier: GPL-2.0-or-later
"""Every page once more: rebuilt from the store and compared with the image."""

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import BATCH_PAGES, batches
from diffengine.analysis.workers import Pool, Progress, Stage, Workers
from diffengine.errors import DiffengineError
from diffengine.images import PAGE_BYTES, ImageSet
from diffengine.native import NONE, PageNumbers, Rebuilder, compare

# Expected microseconds per page, for the progress display only.
VERIFY_COST = 4.0


def verify_pages(
    images: ImageSet,
    ids: NDArray[np.uint32],
    rebuilders: Pool[Rebuilder],
    workers: Workers,
    progress: Progress,
    pipeline: str,
) -> int:
    """Rebuilds each page from its object, ids[page]; a page without one must be zero. How many were right: all.

    Raises DiffengineError for the first page that is not as it was.
    """
    zero_page = np.zeros(PAGE_BYTES, dtype=np.uint8)

    def rebuild(pages: PageNumbers) -> int:
        with rebuilders.borrow() as rebuilder:
            right = rebuilder.verify(ids[pages], images.addresses(pages))
        _require(images, pages, right, pipeline)
        return len(pages)

    def look_at_zero(pages: PageNumbers) -> int:
        zero = np.full(len(pages), zero_page.ctypes.data, dtype=np.uint64)
        _require(images, pages, compare(images.addresses(pages), zero), pipeline)
        return len(pages)

    numbers = np.arange(images.pages, dtype=np.uint32)
    stored = ids != NONE
    verified = 0
    for count in workers.map(Stage.VERIFY, rebuild, batches(numbers[stored], BATCH_PAGES // 4)):
        verified += count
        progress.advance(0, count * VERIFY_COST)
    return verified + sum(workers.map(Stage.VERIFY, look_at_zero, batches(numbers[~stored], BATCH_PAGES)))


def _require(images: ImageSet, pages: PageNumbers, right: NDArray[np.bool_], pipeline: str) -> None:
    if right.all():
        return
    page = pages[~right][:1]
    image = images.images[int(images.image_indices(page)[0])]
    raise DiffengineError(
        f"{image.path}: page {int(page[0]) - image.first_page} did not come back as it was in pipeline {pipeline}; "
        "if the file is still being written, analyse a copy, else report this"
    )
