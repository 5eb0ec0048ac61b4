# SPDX-License-Identifier: GPL-2.0-or-later
"""Images opened together: global page numbers, and the address of each page."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from diffengine.errors import ImageError
from diffengine.images.formats import layout_of
from diffengine.images.layout import PAGE_BYTES, Layout
from diffengine.images.mapped_file import MappedFile, map_file
from diffengine.images.untrusted import UntrustedFile
from diffengine.images.zstd import OnDecode, decode, is_zstd

# UINT32_MAX stays free to mean "no page".
MAX_PAGES = (1 << 32) - 2


@dataclass(frozen=True)
class Image:
    """One image of a set: its pages have the global numbers from `first_page` on."""

    path: str
    name: str
    first_page: int
    pages: int
    layout: Layout

    @property
    def format(self) -> str:
        return self.layout.format

    def gfns(self) -> NDArray[np.uint64] | None:
        """The guest frame number of each page, in page order, or None if the format does not tell."""
        return self.layout.gfns()


class ImageSet:
    """Images whose pages are numbered 0 .. `pages` - 1 through all of them, in order.

    Pages are never copied: `addresses` points into read-only mappings of the files, which stay while the set
    is open. Using an address after `close`, or writing through it, crashes the process; so does reading it
    after another process has cut the file (see MappedFile). Any thread may call anything but `close`.
    """

    def __init__(self, images: Sequence[Image], mappings: Sequence[MappedFile]) -> None:
        self.images = tuple(images)
        self.pages = sum(image.pages for image in images)
        self._mappings = tuple(mappings)
        self._closed = False
        counts = np.concatenate([image.layout.pages for image in images])
        first_pages = np.cumsum(counts, dtype=np.uint64) - counts
        starts = np.concatenate(
            [image.layout.offsets + np.uint64(m.address) for image, m in zip(images, mappings, strict=True)]
        )
        # Of the page numbers' own type, or searchsorted would convert the page numbers on each call.
        self._extent_first_pages = first_pages.astype(np.uint32)
        # May wrap around below zero; adding the page's number in bytes wraps it back.
        self._extent_bias = starts - first_pages * np.uint64(PAGE_BYTES)
        self._image_first_pages = np.array([image.first_page for image in images], dtype=np.uint32)

    def addresses(self, page_numbers: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """The memory address of each page, not aligned in general; IndexError beyond the last page."""
        if self._closed:
            raise ValueError("the image set is closed")
        self._require_pages(page_numbers)
        extents = _last_at_or_before(self._extent_first_pages, page_numbers)
        offsets = page_numbers.astype(np.uint64)
        offsets *= np.uint64(PAGE_BYTES)
        offsets += self._extent_bias[extents]
        return offsets

    def image_indices(self, page_numbers: NDArray[np.uint32]) -> NDArray[np.intp]:
        """The index in `images` of each page's image."""
        self._require_pages(page_numbers)
        return _last_at_or_before(self._image_first_pages, page_numbers)

    def expect_sequential(self) -> None:
        """Tells the kernel that pages are read in order from now on; so it is when the set is opened."""
        for mapping in self._mappings:
            mapping.expect_sequential()

    def expect_random(self) -> None:
        """Tells the kernel that reading ahead does not pay from now on."""
        for mapping in self._mappings:
            mapping.expect_random()

    def close(self) -> None:
        """Unmaps all images. Closing twice does nothing."""
        self._closed = True
        for mapping in self._mappings:
            mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_pages(self, page_numbers: NDArray[np.uint32]) -> None:
        if page_numbers.dtype != np.uint32:
            raise TypeError(f"page numbers must be uint32, not {page_numbers.dtype}")
        if page_numbers.size and int(page_numbers.max()) >= self.pages:
            raise IndexError(f"page {int(page_numbers.max())} of {self.pages}")


def open_images(paths: Iterable[str | os.PathLike[str]], on_decode: OnDecode | None = None) -> ImageSet:
    """Opens images, whatever each one's format, in the order given; the same file may come more than once.

    Raises ImageError for the first that can't be used. `on_decode` hears how far decoding a compressed image
    has come.
    """
    images: list[Image] = []
    mappings: list[MappedFile] = []
    first_page = 0
    for given_path in paths:
        path = os.fspath(given_path)
        mapping, layout = _open_image(path, on_decode)
        pages = layout.total_pages
        if first_page + pages > MAX_PAGES:
            raise ImageError(
                path,
                f"brings the images to {first_page + pages} pages, more than {MAX_PAGES}",
                "give fewer or smaller images at a time",
            )
        images.append(Image(path, Path(path).name, first_page, pages, layout))
        mappings.append(mapping)
        first_page += pages
    if not images:
        raise ValueError("no images given")
    return ImageSet(images, mappings)


def _open_image(path: str, on_decode: OnDecode | None) -> tuple[MappedFile, Layout]:
    mapping = map_file(path)
    file = UntrustedFile(path, mapping.untrusted_bytes())
    if not is_zstd(file):
        return mapping, layout_of(file)
    decoded = decode(file, on_decode)
    file = UntrustedFile(path, decoded.untrusted_bytes(), decoded=True)
    if is_zstd(file):
        file.refuse("is zstd data again", "decompress it once with `zstd -d`")
    return decoded, layout_of(file)


def _last_at_or_before(starts: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.intp]:
    if len(starts) == 1:
        return np.zeros(values.shape, dtype=np.intp)
    return np.searchsorted(starts, values, side="right") - 1
