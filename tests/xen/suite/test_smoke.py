# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests, the whole way: their pages are shared, patched and compressed, Xen has more free memory, and every byte
that they read is right."""

from collections import Counter
from dataclasses import dataclass

import pytest
from forms import read_back
from guests import Guest
from stack import STATE, PagerProcess, engine, run_until

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost

# Kind, pages, per cent alike.
FILLS = (("zero", 1000, 0), ("identical", 1500, 0), ("similar", 1500, 95), ("random", 300, 0))
PAGES = sum(pages for _, pages, _ in FILLS)
# Both guests' zero and identical pages but one frame for each 256 of them, and most of the similar ones.
LEAST_FREED = 2 * (1000 + 1500 + 1000)
# Of those, what the engine is waited for until it is on one frame with another page, or out.
LEAST_SHARED = 4000
LEAST_OUT = 400
# A limit for a machine that hangs, not a measure: two idle cores need 40 s.
TIMEOUT_S = 900.0


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


def test_free_memory_of_xen_rises(
    guests: tuple[Guest, Guest], host: XenHost, pager: PagerProcess, before: Before
) -> None:
    with engine(host) as (attached, client):

        def saved() -> dict[str, int]:
            memory = host.memory()
            out = sum(client.pages_out(guest.domid) for guest in guests)
            return {"freed": memory.free - before.free, "shared": memory.sharing_saved, "out": out}

        def enough() -> bool:
            now = saved()
            return now["freed"] >= LEAST_FREED and now["shared"] >= LEAST_SHARED and now["out"] >= LEAST_OUT

        done = run_until(attached, enough, TIMEOUT_S)
        print(saved())
        print(attached.engine.report())
        print(client.counters())
        assert done, f"too little was freed, shared or evicted: {saved()}"
        assert client.counters().evictions >= LEAST_OUT


def test_evicted_and_shared_pages_are_read_back(
    guests: tuple[Guest, Guest], pager: PagerProcess, before: Before
) -> None:
    client = PagerClient(STATE)
    try:
        out = sum(
            (read_back(client, guest, regions) for guest, regions in zip(guests, before.regions, strict=True)),
            Counter[str](),
        )
        print(out)
        assert out["out"] > 0
        assert client.counters().corrupt == 0
    finally:
        client.close()


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
