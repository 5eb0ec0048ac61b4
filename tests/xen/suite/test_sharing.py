# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests on the same frames: Xen's free memory rises by what is saved, a write makes a copy and is nobody else's."""

from collections.abc import Callable

import numpy as np
from forms import add_cow_breaks
from guests import Guest
from scale import INTEL
from stack import STATE, PagerProcess

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Gfns, Outcome, Results
from diffengine.hypervisor.xen import XenHost

PAGES = 1100 if INTEL else 5200
# Xen's metadata of a shared page and its two gfns: Xen's heap is given out in whole pages.
METADATA_FRAMES = PAGES // 16


def test_write_to_a_shared_page_makes_a_copy(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> None:
    first, second = guests
    regions = [guest.fill("similar", PAGES, 31, 50) for guest in guests]
    before = host.memory()
    with_client(guests, host, lambda client: share(client, guests, regions))
    after = host.memory()
    assert after.sharing_saved - before.sharing_saved == PAGES
    assert after.free - before.free >= PAGES - METADATA_FRAMES
    assert first.change(regions[0]).wrong_bytes == 0
    breaks = after.sharing_saved - host.memory().sharing_saved
    add_cow_breaks(breaks)
    assert breaks == PAGES
    assert second.check(regions[1]).wrong_bytes == 0
    assert second.change(regions[1]).wrong_bytes == 0
    assert first.check(regions[0]).wrong_bytes == 0


def share(client: PagerClient, guests: tuple[Guest, Guest], regions: list[int]) -> None:
    (source, target), (source_gfns, target_gfns) = guests, [g.gfns(r) for g, r in zip(guests, regions, strict=True)]
    results = share_pages(client, (source, source_gfns), (target, target_gfns))
    assert (results == Outcome.DONE).all(), np.unique(results, return_counts=True)


def test_a_page_may_leave_a_frame_for_one_of_a_third_guest(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost
) -> None:
    """Xen moves all sharers of the frame that is given up; one of a domain that is not party to the call stops the
    host ("mm locking order violation")."""
    with Guest.start("guest3") as third:
        parties = (*guests, third)
        regions = [guest.fill("similar", 300, 32, 50) for guest in parties]
        gfns = [guest.gfns(region) for guest, region in zip(parties, regions, strict=True)]

        def move(client: PagerClient) -> None:
            for source in (0, 2):
                results = share_pages(client, (parties[source], gfns[source]), (parties[1], gfns[1]))
                assert (results == Outcome.DONE).all(), np.unique(results, return_counts=True)

        with_client(parties, host, move)
        for guest, region in zip(parties, regions, strict=True):
            assert guest.check(region).wrong_bytes == 0
            assert guest.change(region).wrong_bytes == 0


def with_client(guests: tuple[Guest, ...], host: XenHost, do: Callable[[PagerClient], None]) -> None:
    """What the pager is asked to do with these guests."""
    client = PagerClient(STATE)
    try:
        sizes = {domain.domid: domain.gfns for domain in host.domains()}
        for guest in guests:
            client.add_domain(guest.domid, sizes[guest.domid])
        do(client)
    finally:
        client.close()


def share_pages(client: PagerClient, source: tuple[Guest, Gfns], target: tuple[Guest, Gfns]) -> Results:
    domids = [np.full(len(gfns), guest.domid, dtype=np.uint16) for guest, gfns in (source, target)]
    return client.share(domids[0], source[1], domids[1], target[1])
