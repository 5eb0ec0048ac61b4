# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw memory: one page after the other, nothing else. It has no mark, so it is told by elimination."""

import numpy as np

from diffengine.images.layout import PAGE_BYTES, Layout
from diffengine.images.untrusted import UntrustedFile

# Every byte that plain text in any encoding based on ASCII may hold.
_TEXT = np.zeros(256, dtype=np.bool_)
_TEXT[[9, 10, 12, 13, 27]] = True
_TEXT[32:127] = True
_TEXT[128:] = True
_SAMPLED_PAGES = 64


def raw_layout(file: UntrustedFile) -> Layout:
    if _is_text(file):
        file.refuse("is a text file, not a memory image", "give the raw memory of a VM, or an ELF core dump of it")
    pages, left_over = divmod(file.size, PAGE_BYTES)
    if left_over:
        file.refuse(
            f"has {file.size} bytes, which is {left_over} more than a multiple of {PAGE_BYTES}",
            "the dump may have been cut short: dump or fetch it again, or cut it with "
            f"`truncate -s {pages * PAGE_BYTES}`"
            if pages
            else "give the raw memory of a VM, or an ELF core dump of it",
        )
    return Layout("raw", np.zeros(1, np.uint64), np.full(1, pages, np.uint64), None)


def _is_text(file: UntrustedFile) -> bool:
    """Whether pages spread over the file all look like text; nearly all of a guest's pages hold zeros."""
    first_page = file.untrusted_bytes[:PAGE_BYTES]
    # A page of one repeated byte or word may be a line end, but it is no text.
    if not (first_page == ord("\n")).any() or len(np.unique(first_page)) <= 8:
        return False
    starts = np.linspace(0, max(0, file.size - PAGE_BYTES), _SAMPLED_PAGES).astype(np.int64)
    sample = (file.untrusted_bytes[start : start + PAGE_BYTES] for start in np.unique(starts).tolist())
    return all(bool(_TEXT[page].all()) for page in sample)
