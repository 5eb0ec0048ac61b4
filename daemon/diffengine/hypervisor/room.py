# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether pages that are out find free frames, before any is moved: half of them back helps nobody, and fills the
host."""

from diffengine.errors import DiffengineError
from diffengine.native import PAGE_BYTES

PAGES_PER_MIB = (1 << 20) // PAGE_BYTES


class NoRoomError(DiffengineError):
    """They don't; with the numbers. free_pages: None if that is not known."""

    def __init__(self, what: str, pages: int, free_pages: int | None) -> None:
        free = f"the host has {'too little' if free_pages is None else mib(free_pages)} free for them"
        super().__init__(
            f"{what} needs {mib(pages)} for pages that are out, and {free}; make room first (end or balloon down other "
            "domains, or lower reserve_mib), then try again"
        )
        self.pages = pages
        self.free_pages = free_pages


def require_room(what: str, pages: int, free: int, claimed: int, own: int) -> None:
    """Raises NoRoomError. free, claimed: the host's frames; own: those of the claimed that are for these very pages."""
    unclaimed = max(0, free - claimed + own)
    if pages > unclaimed:
        raise NoRoomError(what, pages, unclaimed)


def mib(pages: int) -> str:
    return f"{pages / PAGES_PER_MIB:,.1f} MiB"
