# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a domain's pages are that an earlier engine has worked on: found again from the pager's table.

First only where each page is, at once: a page that is out must not be mapped. What it holds is learned visit by visit,
so that other pages can be found equal to it, and a watched page can be evicted.
"""

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.mapping import map_pages, objects_of
from diffengine.engine.pages import HEADER_BYTES, IN_STORE, UNKNOWN_KEY, Domain, PageTable, Place
from diffengine.engine.report import DomainReport, domain_report
from diffengine.hypervisor.protocol import Host, Pager, PageState
from diffengine.native import NONE, PAGE_BYTES, Addresses, Digester, Encoding, PageNumbers

BATCH_PAGES = 256


def recover_places(pager: Pager, table: PageTable, domain: Domain) -> None:
    """Notes which of the domain's pages are watched, and which are out, as what."""
    entries = pager.states(domain.domid, 0, domain.gfns)
    place = table.place[domain.part]
    place[entries.states == PageState.WATCHED] = Place.WATCHED
    out = np.flatnonzero(np.isin(entries.states, (PageState.EVICTED, PageState.LOADING)) & (entries.objects != NONE))
    if not len(out):
        return
    objects, which = np.unique(entries.objects[out], return_inverse=True)
    forms = pager.describe(objects)
    places = np.where(forms.patched, Place.PATCHED, Place.COMPRESSED)
    places[forms.encodings == Encoding.SWAPPED] = Place.SWAPPED
    bytes_saved = PAGE_BYTES - np.minimum(forms.sizes.astype(np.int64) + HEADER_BYTES, PAGE_BYTES)
    place[out] = places[which]
    if table.evicts:
        table.saved[domain.part][out] = bytes_saved[which]


def report_from_table(pager: Pager, domid: int, gfns: int) -> DomainReport:
    """What is out of a domain that no engine looks after, and what that saves."""
    table = PageTable(shares=False, evicts=True, patches=False)
    domain = table.add_domain(domid, gfns, group=0, min_resident=0)
    recover_places(pager, table, domain)
    return domain_report(table, domain, None)


class Recall:
    """Learns what pages hold that were out or watched when the engine began."""

    def __init__(self, host: Host, pager: Pager, table: PageTable, digester: Digester) -> None:
        self._host = host
        self._pager = pager
        self._table = table
        self._digester = digester
        self._rebuilt = np.empty(BATCH_PAGES * PAGE_BYTES, dtype=np.uint8)
        self._addresses = self._rebuilt.ctypes.data + np.arange(BATCH_PAGES, dtype=np.uint64) * np.uint64(PAGE_BYTES)

    def digests_of(self, pages: PageNumbers) -> tuple[PageNumbers, NDArray[np.uint64]]:
        """Of these pages of one domain those whose content was not known and now is, and their digests."""
        table = self._table
        unknown = pages[table.keys[pages] == UNKNOWN_KEY]
        watched = unknown[table.place[unknown] == Place.WATCHED]
        stored = unknown[IN_STORE[table.place[unknown]]]
        found, digests = [pages[:0]], [np.empty(0, dtype=np.uint64)]
        if len(watched):
            # A nominated page may be read by us: no event comes of it.
            with map_pages(self._host, table, watched) as addresses:
                found.append(watched[addresses != 0])
                digests.append(self._digest(addresses[addresses != 0]))
        for start in range(0, len(stored), BATCH_PAGES):
            part = stored[start : start + BATCH_PAGES]
            objects, which = np.unique(objects_of(self._pager, table, part), return_inverse=True)
            # The last one is NONE if a page came back.
            right = self._pager.rebuild(objects, self._rebuilt) & (objects != NONE)
            of_objects = self._digest(self._addresses[: len(objects)])
            found.append(part[right[which]])
            digests.append(of_objects[which][right[which]])
        return np.concatenate(found), np.concatenate(digests)

    def _digest(self, addresses: Addresses) -> NDArray[np.uint64]:
        count = len(addresses)
        digests, kinds = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.uint8)
        self._digester.digest(addresses, digests, kinds, np.empty((count, 0), dtype=np.uint64))
        return digests
