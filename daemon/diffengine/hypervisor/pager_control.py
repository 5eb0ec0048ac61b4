# SPDX-License-Identifier: GPL-2.0-or-later
"""A pager as its operator speaks to it, also while the daemon is connected: the second queue of pager_queue.h."""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from diffengine._native import ffi, lib
from diffengine.errors import DiffengineError
from diffengine.hypervisor.pager_client import check_answer
from diffengine.hypervisor.protocol import HostGoneError
from diffengine.hypervisor.room import NoRoomError
from diffengine.native import check

# Another operator may be at it, and a page that a guest waits for may be on its way in.
RETRY_S = 0.1


class ReleaseRefusedError(DiffengineError):
    """The domain can't do without the pager yet: why, and what to do."""


class PagerControl:
    """One connection; close it."""

    def __init__(self, state_directory: Path, patience_s: float = 10.0) -> None:
        """HostGoneError: no pager runs there."""
        result = ffi.new("struct de_queue_client **")
        deadline_s = time.monotonic() + patience_s
        while True:
            status = lib.de_queue_connect_operator(os.fsencode(state_directory), result)
            if status != lib.DE_BUSY or time.monotonic() > deadline_s:
                break
            time.sleep(RETRY_S)
        if status == lib.DE_NOT_FOUND:
            raise HostGoneError(f"no pager runs in {state_directory}; name its directory with --state")
        if status == lib.DE_BUSY:
            raise DiffengineError(f"the pager in {state_directory} is busy for another operator; try again later")
        check(status, f"connecting to the pager in {state_directory}")
        self._client = ffi.gc(result[0], lib.de_queue_client_free)

    def close(self) -> None:
        ffi.release(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pages_out(self, domid: int) -> int:
        """How many of the domain's pages have no frame; 0 for one that the pager does not have."""
        pages = ffi.new("uint32_t *")
        status = lib.de_queue_count_out(self._client, domid, pages)
        if status != lib.DE_NOT_FOUND:
            check(status, f"reading the page table of domain {domid}")
        return int(pages[0])

    def release(self, domid: int, patience_s: float) -> None:
        """Brings everything back and lets go. Raises ReleaseRefusedError or NoRoomError if it can't be done."""
        deadline_s = time.monotonic() + patience_s
        while (status := self._call(lib.DE_COMMAND_RELEASE_DOMAIN, domid)) == lib.DE_BUSY:
            if time.monotonic() > deadline_s:
                raise ReleaseRefusedError(
                    f"domain {domid} has {self.pages_out(domid):,} pages out that did not come back within "
                    f"{patience_s:.0f} s; try again"
                )
            time.sleep(RETRY_S)
        if status == lib.DE_NO_MEMORY:
            raise NoRoomError(f"domain {domid}", self.pages_out(domid), None)
        self._check(status, domid, "releasing")

    def take_back(self, domid: int) -> None:
        """The pager may become the domain's again."""
        self._check(self._call(lib.DE_COMMAND_TAKE_BACK_DOMAIN, domid), domid, "taking back")

    def _call(self, command: int, domid: int) -> int:
        lib.de_queue_area(self._client).domains[0] = domid
        return int(lib.de_queue_call(self._client, command, 1))

    def _check(self, status: int, domid: int, doing: str) -> None:
        if status == lib.DE_NOT_FOUND:
            if not lib.de_queue_alive(self._client):
                raise HostGoneError(f"the pager went while it was {doing} domain {domid}; try again when it is back")
            raise DiffengineError(f"there is no domain {domid}; `xl list` shows which there are")
        check_answer(self._client, status, f"{doing} domain {domid}")
