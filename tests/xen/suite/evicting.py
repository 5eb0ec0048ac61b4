# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages put out at once, without an engine that decides: what is tested then is the pager, Xen and the guest."""

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Domids, Gfns, NewObjects, Outcome
from diffengine.hypervisor.xen import XenHost
from diffengine.native import NONE, EncodeOptions, Encoding, PageCopies, PageEncoder, checksums

BATCH_PAGES = 256


def add_domain(client: PagerClient, host: XenHost, domid: int) -> int:
    """Has the pager take it over. Its gfns."""
    (info,) = (found for found in host.domains() if found.domid == domid)
    client.add_domain(domid, info.gfns)
    return info.gfns


def evict_at_once(client: PagerClient, host: XenHost, domid: int, gfns: Gfns, codec: Encoding = Encoding.LZ4) -> int:
    """How many of the domain's pages went, each as an object of its own."""
    copies, encoder = PageCopies(BATCH_PAGES), PageEncoder()
    done = 0
    for start in range(0, len(gfns), BATCH_PAGES):
        batch = gfns[start : start + BATCH_PAGES]
        with host.map(domid, batch) as mapping:
            there = mapping.addresses != 0
            addresses = copies.take(mapping.addresses[there])
        if not there.any():
            continue
        encoded = encoder.encode(EncodeOptions(codec), addresses, np.zeros_like(addresses))
        none = np.full(len(addresses), NONE, dtype=np.uint32)
        objects = NewObjects(
            encoded.addresses(), encoded.sizes, encoded.encodings, checksums(addresses), none, none, NONE
        )
        ids = client.put(objects)
        results = client.evict(domids_of(domid, len(addresses)), batch[there], ids)
        client.release(ids)
        done += int((results == Outcome.DONE).sum())
    return done


def resident(client: PagerClient, domid: int, gfns: int) -> Gfns:
    """The domain's gfns that are not out. Reads the pager's table, so no page is brought in."""
    found: NDArray[np.intp] = np.flatnonzero(client.states(domid, 0, gfns).objects == NONE)
    return found.astype(np.uint32)


def domids_of(domid: int, count: int) -> Domids:
    return np.full(count, domid, dtype=np.uint16)
