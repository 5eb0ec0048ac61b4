# SPDX-License-Identifier: GPL-2.0-or-later
"""When the rest did not free enough: objects of pages that are out go to swap, by watermarks."""

import numpy as np

from diffengine.engine.mapping import objects_of
from diffengine.engine.options import EngineOptions
from diffengine.engine.pages import PageTable, Place
from diffengine.engine.policy import State, Technique
from diffengine.engine.reasons import Reasons
from diffengine.hypervisor.protocol import Host, Outcome, Pager
from diffengine.native import PAGE_BYTES, PageNumbers

BATCH_PAGES = 256
# What an object keeps in memory when its payload has gone.
LEFT_BYTES = 64


def bytes_to_free(used: int, total: int, high: float, low: float) -> int:
    """How much is to go: nothing up to the high watermark, then down to the low one."""
    return int(used - low * total) if used > high * total else 0


class Swapper:
    """Takes pages in turn, so that no domain and no part of one is favoured."""

    def __init__(self, host: Host, pager: Pager, table: PageTable, options: EngineOptions, reasons: Reasons) -> None:
        self._host = host
        self._pager = pager
        self._table = table
        self.options = options
        self._reasons = reasons
        self._allowed = bool(options.policy.allows(Technique.SWAP)[State.C4])
        self._next = 0

    def relieve(self, table_bytes: int) -> None:
        """Swaps out until memory use is below the low watermark, if it is above the high one. A hint: if nothing can
        go, that is that."""
        if not self._allowed or not self._pager.counters().swap_limit_bytes:
            return
        wanted = bytes_to_free(
            self._used_bytes(table_bytes),
            self._host.memory().frames * PAGE_BYTES,
            self.options.high_watermark,
            self.options.low_watermark,
        )
        if wanted <= 0:
            return
        freed = 0
        # Patches first: an object in memory keeps what it refers to.
        for place in (Place.PATCHED, Place.COMPRESSED):
            pages = self._in_turn(np.flatnonzero(self._table.place == place).astype(np.uint32))
            for start in range(0, len(pages), BATCH_PAGES):
                if freed >= wanted:
                    break
                freed += self._swap_out(pages[start : start + BATCH_PAGES])
        if freed:
            self._pager.compact()

    def _used_bytes(self, table_bytes: int) -> int:
        counters, memory = self._pager.counters(), self._host.memory()
        tables = table_bytes + counters.table_bytes + memory.metadata_bytes
        return memory.used * PAGE_BYTES + counters.store_bytes + tables

    def _in_turn(self, pages: PageNumbers) -> PageNumbers:
        """Those after where the last one ended come first."""
        after = int(np.searchsorted(pages, self._next))
        return np.concatenate([pages[after:], pages[:after]])

    def _swap_out(self, pages: PageNumbers) -> int:
        """Bytes of memory that this frees."""
        objects = objects_of(self._pager, self._table, pages)
        results = self._pager.swap_out(objects)
        self._reasons.add_results("swap", results)
        gone = pages[results == Outcome.DONE]
        payloads = PAGE_BYTES - self._table.saved[gone].astype(np.int64) - LEFT_BYTES
        self._table.place[gone] = Place.SWAPPED
        self._table.saved[gone] = PAGE_BYTES - LEFT_BYTES
        self._next = int(pages[-1]) + 1
        return int(np.maximum(payloads, 0).sum())
