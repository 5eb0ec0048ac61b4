# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's regions as if they were all that it has: page i of the first is its gfn 0. So an engine sees the test
program's pages, and nothing of the guest's kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import DomainInfo, Domids, Gfns, ObjectIds, PageEntries, Results
from diffengine.hypervisor.xen import XenHost
from diffengine.hypervisor.xen.host import Mapping

# By domid: the real gfn of each page.
RealGfns = dict[int, Gfns]


class RegionsHost(XenHost):
    def __init__(self, real: RealGfns) -> None:
        super().__init__()
        self._real = real

    def domains(self) -> tuple[DomainInfo, ...]:
        return tuple(DomainInfo(domid, len(gfns)) for domid, gfns in self._real.items())

    @contextmanager
    def map(self, domid: int, gfns: Gfns) -> Iterator[Mapping]:
        with super().map(domid, self._real[domid][gfns]) as mapping:
            yield mapping


class RegionsPager(PagerClient):
    def __init__(self, state_directory: Path, real: RealGfns, sizes: dict[int, int]) -> None:
        """sizes: how many gfns each domain really has."""
        super().__init__(state_directory)
        self._real = real
        self._sizes = sizes

    def add_domain(self, domid: int, gfns: int) -> None:
        super().add_domain(domid, self._sizes[domid])

    def states(self, domid: int, first: int, count: int) -> PageEntries:
        whole, gfns = super().states(domid, 0, self._sizes[domid]), self._real[domid][first : first + count]
        return PageEntries(whole.states[gfns], whole.objects[gfns], whole.generations[gfns])

    def watch(self, domids: Domids, gfns: Gfns) -> Results:
        return super().watch(domids, self._translated(domids, gfns))

    def unshare(self, domids: Domids, gfns: Gfns) -> Results:
        return super().unshare(domids, self._translated(domids, gfns))

    def evict(self, domids: Domids, gfns: Gfns, objects: ObjectIds) -> Results:
        return super().evict(domids, self._translated(domids, gfns), objects)

    def share(self, source_domids: Domids, source_gfns: Gfns, client_domids: Domids, client_gfns: Gfns) -> Results:
        sources, clients = self._translated(source_domids, source_gfns), self._translated(client_domids, client_gfns)
        return super().share(source_domids, sources, client_domids, clients)

    def _translated(self, domids: Domids, gfns: Gfns) -> Gfns:
        result = gfns.copy()
        for domid in np.unique(domids):
            mine = domids == domid
            result[mine] = self._real[int(domid)][gfns[mine]]
        return result
