# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests, the whole way: their pages are shared and evicted, Xen has more free memory each time, and every byte
that they read is right."""

from dataclasses import dataclass

import numpy as np
import pytest
from evicting import evict_at_once
from forms import read_back
from guests import Guest
from stack import STATE, PagerProcess, engine, run_until

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost

# Kind, pages, per cent alike, and whether both guests have the very same.
FILLS = (
    ("zero", 1000, 0, True),
    ("identical", 1500, 0, True),
    ("similar", 800, 95, False),
    ("words", 800, 0, False),
    ("random", 300, 0, False),
)
PAGES = sum(pages for _, pages, _, _ in FILLS)
# What only one guest has, and goes out.
OWN = tuple(number for number, (kind, *_) in enumerate(FILLS) if kind in ("similar", "words"))
# Zero and identical pages of both, and zero pages that the guests' kernels have not given out.
LEAST_SHARED = LEAST_FREED = 5000
LEAST_OUT = 2 * 1400
# Frames that the guests' kernels may take meanwhile: what they write is shared.
LEEWAY = LEAST_OUT // 4
# A limit for a machine that hangs, not a measure: two idle cores need 40 s.
TIMEOUT_S = 900.0


@dataclass
class Before:
    """Free frames of Xen before the engine began, and regions by guest."""

    free: int
    regions: list[list[int]]


@pytest.fixture(scope="module")
def before(guests: tuple[Guest, Guest], host: XenHost) -> Before:
    regions = [
        [guest.fill(kind, pages, 7 if both else 100 + guest.domid, percent) for kind, pages, percent, both in FILLS]
        for guest in guests
    ]
    return Before(host.memory().free, regions)


def test_guests_read_back_what_they_wrote(guests: tuple[Guest, Guest], before: Before) -> None:
    check_all(guests, before)


def test_sharing_makes_free_memory_of_xen_rise(
    guests: tuple[Guest, Guest], host: XenHost, pager: PagerProcess, before: Before
) -> None:
    with engine(host) as (attached, client):

        def saved() -> dict[str, int]:
            memory = host.memory()
            return {"freed": memory.free - before.free, "shared": memory.sharing_saved}

        done = run_until(
            attached, lambda: saved()["freed"] >= LEAST_FREED and saved()["shared"] >= LEAST_SHARED, TIMEOUT_S
        )
        print(saved(), attached.engine.report(), client.counters(), sep="\n")
        assert done, f"too little was freed, or shared: {saved()}"
    check_all(guests, before)


def test_evictions_make_it_rise_and_pages_are_read_back(
    guests: tuple[Guest, Guest], host: XenHost, pager: PagerProcess, before: Before
) -> None:
    client = PagerClient(STATE)
    try:
        own = {
            guest: np.concatenate([guest.gfns(regions[number]) for number in OWN])
            for guest, regions in zip(guests, before.regions, strict=True)
        }
        free = host.memory().free
        gone = sum(evict_at_once(client, host, guest.domid, gfns) for guest, gfns in own.items())
        assert sum(client.pages_out(guest.domid) for guest in guests) >= gone >= LEAST_OUT
        assert host.memory().free - free >= gone - LEEWAY, "what went out did not come free"
        for guest, regions in zip(guests, before.regions, strict=True):
            assert read_back(client, guest, regions)["out"] >= LEAST_OUT // 2
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
