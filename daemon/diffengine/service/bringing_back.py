# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of whole domains on their way back: part by part, so that the engine's thread answers others between two of
them, and that it is known how far it has come."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffengine.errors import DiffengineError
from diffengine.service.operations import Operations
from diffengine.service.parts import Part

# A page that its guest waits for may be on its way in already.
PATIENCE_S = 10.0
RETRY_S = 0.05


@dataclass(frozen=True)
class Progress:
    """doing: the method that wants it. pages: that were out when it began; done: of these, back. left_s: how long it
    will still take, None while that is not known."""

    doing: str
    pages: int
    done: int
    left_s: float | None


def progress_of(doing: str, pages: int, done: int, seconds: float) -> Progress:
    done = min(done, pages)
    return Progress(doing, pages, done, round(seconds * (pages - done) / done, 1) if done else None)


class StillOutError(DiffengineError):
    """Some pages did not come back."""


class BringingBack:
    """Belongs to the control loop; one at a time."""

    def __init__(self, on_engine: Callable[[Callable[[Operations], Any]], Awaitable[Any]]) -> None:
        self._on_engine = on_engine
        self._doing: str | None = None
        self._pages = self._done = 0
        self._start_s = 0.0

    @property
    def progress(self) -> Progress | None:
        """None: nothing is on its way back."""
        if self._doing is None:
            return None
        return progress_of(self._doing, self._pages, self._done, time.monotonic() - self._start_s)

    async def run(self, doing: str, out: Mapping[int, int]) -> int:
        """Brings back all pages of these domains, of which so many are out. How many. Raises StillOutError; what is
        back then stays."""
        self._doing, self._pages, self._done, self._start_s = doing, sum(out.values()), 0, time.monotonic()
        try:
            for domid, pages in out.items():
                await self._domain(domid)
                await self._on_engine(partial(Operations.is_back, domid=domid, pages=pages))
        finally:
            self._doing = None
        return self._pages

    async def _domain(self, domid: int) -> None:
        progress_s = time.monotonic()
        while parts := await self._on_engine(partial(Operations.parts_away, domid=domid)):
            out = sum(part.out for part in parts)
            came = sum([part.out for part in parts if await self._comes_back(domid, part)])
            if came:
                progress_s = time.monotonic()
            elif time.monotonic() - progress_s > PATIENCE_S:
                if not out:
                    return  # watched pages are at home
                raise StillOutError(
                    f"domain {domid}: {out:,} pages did not come back: the host has no free frame for them, or their "
                    "disk does not answer; the pager's log may say more. Try again"
                )
            else:
                await asyncio.sleep(RETRY_S)

    async def _comes_back(self, domid: int, part: Part) -> bool:
        came: bool = await self._on_engine(partial(Operations.bring_back, domid=domid, part=part))
        if came:
            self._done += part.out
        return came
