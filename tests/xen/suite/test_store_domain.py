# SPDX-License-Identifier: GPL-2.0-or-later
"""The store in a domain's frames: larger than what dom0 could give, taken over after kill -9, given back in the end."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from evicting import add_domain, evict_at_once
from guests import Guest, xl
from scale import SMALLER
from stack import STATE, PagerProcess, pager_process

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost

PAGE_BYTES = 4096
# What is left of dom0's memory, and pages for more than that.
SPARE_MIB = 24
PAGES = 10_000
KILLS = 5
KILLED_PAGES = 2_000 // SMALLER
# A chunk of each class that is in use, and the table of classes.
LEFT_BYTES = 4 << 20


@pytest.fixture(scope="module")
def pager(guests: tuple[Guest, Guest], host: XenHost) -> Iterator[PagerProcess]:
    with pager_process("--store-domain", "--store-mib", "256") as process:
        yield process
    # Guests are paged to the end, so it stays for a successor, and there is none.
    for domain in host.connection.domains():
        if domain.is_store:
            xl("destroy", str(domain.domid))


@contextmanager
def connected(host: XenHost, guests: tuple[Guest, ...]) -> Iterator[PagerClient]:
    client = PagerClient(STATE)
    try:
        for guest in guests:
            add_domain(client, host, guest.domid)
        yield client
        assert client.counters().corrupt == 0
    finally:
        client.close()


def test_store_is_larger_than_what_dom0_has_left(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost
) -> None:
    guest = guests[0]
    pages = PAGES // SMALLER
    region = guest.fill("random", pages, 41)
    gfns = guest.gfns(region)
    with connected(host, guests) as client, dom0_filled_up(SPARE_MIB << 20):
        spare, before = spare_bytes(), host.memory()
        out = evict_at_once(client, host, guest.domid, gfns)
        after, stored = host.memory(), client.counters().store_bytes
        print(f"{spare >> 20} MiB spare in dom0; {out} pages out; {stored >> 20} MiB in the store")
        assert out >= pages * 9 // 10
        assert stored > out * PAGE_BYTES
        assert stored > spare or SMALLER > 1
        # What is out is not used any more: the store's frames are nobody's, and no guest is to be looked for there.
        assert before.used - after.used >= out * 9 // 10
        assert store_pages(host) * PAGE_BYTES == stored
        assert {domain.domid for domain in host.domains()} == {one.domid for one in guests}
        assert guest.check(region).wrong_bytes == 0
    guest.free(region)


def test_pager_is_killed_with_its_store_in_use(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> None:
    regions = [guest.fill("words", KILLED_PAGES, 42) for guest in guests]
    for guest, region in zip(guests, regions, strict=True):
        guest.start_load(region, region, 50, 20)
    for _ in range(KILLS):
        with connected(host, guests) as client:
            for guest, region in zip(guests, regions, strict=True):
                assert evict_at_once(client, host, guest.domid, guest.gfns(region)) > 0
        pager.kill()
        pager.start()
    for guest, region in zip(guests, regions, strict=True):
        load = guest.stop_load()
        assert load.reads > 0
        assert load.wrong_bytes == 0
        assert guest.check(region).wrong_bytes == 0
    with connected(host, guests) as client:
        for guest in guests:
            client.restore(guest.domid)
        assert [client.pages_out(guest.domid) for guest in guests] == [0, 0]
    assert store_pages(host) * PAGE_BYTES <= LEFT_BYTES


def store_pages(host: XenHost) -> int:
    (store,) = (domain for domain in host.connection.domains() if domain.is_store)
    return store.pages


def spare_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


@contextmanager
def dom0_filled_up(but_bytes: int) -> Iterator[None]:
    """All but a little of dom0's memory is in use: by this process."""
    with mmap.mmap(-1, max(spare_bytes() - but_bytes, PAGE_BYTES)) as taken:
        for at in range(0, len(taken), PAGE_BYTES):
            taken[at] = 1
        yield
