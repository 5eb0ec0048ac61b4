# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapping pages of several domains at once, by page number."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from diffengine.engine.pages import PageTable
from diffengine.hypervisor.protocol import Host
from diffengine.native import Addresses, PageNumbers


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
