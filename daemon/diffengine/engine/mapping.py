# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of several domains at once, by page number: mapped, or looked up in the pager's table."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from diffengine.engine.pages import PageTable
from diffengine.hypervisor.protocol import Host, ObjectIds, Pager, PageState
from diffengine.native import NONE, Addresses, PageNumbers


@contextmanager
def map_pages(host: Host, table: PageTable, pages: PageNumbers) -> Iterator[Addresses]:
    """Addresses of pages, 0 for one that can't be mapped, until the block ends."""
    addresses = np.zeros(len(pages), dtype=np.uint64)
    domids, gfns = table.locate(pages)
    with ExitStack() as mappings:
        for domid in np.unique(domids):
            own = domids == domid
            addresses[own] = mappings.enter_context(host.map(int(domid), gfns[own])).addresses
        yield addresses


def objects_of(pager: Pager, table: PageTable, pages: PageNumbers) -> ObjectIds:
    """The object that each page is out as, or NONE. One call for each domain, over the span of its pages."""
    objects = np.full(len(pages), NONE, dtype=np.uint32)
    for index in np.unique(table.owners(pages)):
        domain = table.domains[index]
        own = np.flatnonzero((pages >= domain.first) & (pages < domain.first + domain.gfns))
        gfns = pages[own] - domain.first
        first = int(gfns.min())
        entries = pager.states(domain.domid, first, int(gfns.max()) - first + 1)
        out = entries.states[gfns - first] == PageState.EVICTED
        objects[own[out]] = entries.objects[gfns[out] - first]
    return objects
