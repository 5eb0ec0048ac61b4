# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in its file an image keeps its pages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096


@dataclass(frozen=True)
class Layout:
    """An image's pages as extents: runs of pages that follow each other in the file and in the guest.

    `offsets` are bytes from the start of the file and need no alignment. `first_gfns` is None when the format
    does not say which guest frame a page is. All arrays have one entry per extent, in the image's page order.
    """

    format: str
    offsets: NDArray[np.uint64]
    pages: NDArray[np.uint64]
    first_gfns: NDArray[np.uint64] | None

    @property
    def total_pages(self) -> int:
        return int(self.pages.sum(dtype=np.uint64))

    def gfns(self) -> NDArray[np.uint64] | None:
        """The guest frame number of each page, in page order."""
        if self.first_gfns is None:
            return None
        first_pages = np.cumsum(self.pages, dtype=np.uint64) - self.pages
        # Wraps around below zero on purpose: the sum with the page's index is exact again.
        bias = np.repeat(self.first_gfns - first_pages, self.pages.astype(np.int64))
        return bias + np.arange(self.total_pages, dtype=np.uint64)


def extents_of_pages(format_name: str, offsets: NDArray[np.uint64], gfns: NDArray[np.uint64]) -> Layout:
    """The layout of single pages given by file offset and frame, neighbours joined to extents."""
    starts = np.ones(len(offsets), dtype=np.bool_)
    starts[1:] = (np.diff(offsets) != PAGE_BYTES) | (np.diff(gfns) != 1)
    indices = np.flatnonzero(starts)
    counts = np.diff(indices, append=len(offsets)).astype(np.uint64)
    return Layout(format_name, offsets[indices], counts, gfns[indices])
