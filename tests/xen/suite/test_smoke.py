# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests, the whole way: their pages are shared, patched and compressed, Xen has more free memory, and every byte
that they read is right."""

from dataclasses import dataclass

import pytest
from guests import Guest
from stack import PagerProcess, engine, run_until

from diffengine.hypervisor.xen import XenHost

# Kind, pages, per cent alike.
FILLS = (("zero", 1000, 0), ("identical", 1500, 0), ("similar", 1500, 95), ("random", 300, 0))
PAGES = sum(pages for _, pages, _ in FILLS)
# Both guests' zero and identical pages but one frame for each 256 of them, and most of the similar ones.
LEAST_FREED = 2 * (1000 + 1500 + 1000)
TIMEOUT_S = 150.0


@dataclass
class Before:
    """Free frames of Xen before the engine began, and regions by guest."""

    free: int
    regions: list[list[int]]


@pytest.fixture(scope="module")
def before(guests: tuple[Guest, Guest], host: XenHost) -> Before:
    regions = [[guest.fill(kind, pages, 7, percent) for kind, pages, percent in FILLS] for guest in guests]
    return Before(host.memory().free, regions)


def test_guests_read_back_what_they_wrote(guests: tuple[Guest, Guest], before: Before) -> None:
    check_all(guests, before)


def test_free_memory_of_xen_rises(host: XenHost, pager: PagerProcess, before: Before) -> None:
    with engine(host) as (attached, client):
        done = run_until(attached, lambda: host.memory().free - before.free >= LEAST_FREED, TIMEOUT_S)
        report = attached.engine.report()
        print(f"freed {host.memory().free - before.free} frames, sharing saved {host.memory().sharing_saved}")
        print(report)
        print(client.counters())
        assert done, "too little was freed"


def test_evicted_and_shared_pages_are_read_back(
    guests: tuple[Guest, Guest], pager: PagerProcess, before: Before
) -> None:
    check_all(guests, before)


def test_writes_to_them_stay(guests: tuple[Guest, Guest], pager: PagerProcess, before: Before) -> None:
    for guest, regions in zip(guests, before.regions, strict=True):
        for region in regions:
            assert guest.change(region).wrong_bytes == 0
    check_all(guests, before)


def check_all(guests: tuple[Guest, Guest], before: Before) -> None:
    for guest, regions in zip(guests, before.regions, strict=True):
        accesses = [guest.check(region) for region in regions]
        assert sum(found.reads for found in accesses) == PAGES
        assert [found.wrong_bytes for found in accesses] == [0] * len(regions)
