# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with no free frame left: guests wait for a page of theirs, or for their copy of a shared one, and go on as
soon as there is a frame. No byte is wrong, nobody dies."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from ballast import Ballast
from evicting import add_domain, domids_of, evict_at_once
from guests import Accesses, Guest, xl
from stack import STATE, PagerProcess

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Outcome
from diffengine.hypervisor.xen import XenHost

PAGES = 1500
# Frames that come free while the ballast grows (dom0's grants, Xen's own heap).
FEW = 8
PATIENCE_S = 600.0
# How long a guest is left without a frame.
WAIT_S = 3.0


@pytest.fixture
def client(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> Iterator[PagerClient]:
    connected = PagerClient(STATE)
    for guest in guests:
        add_domain(connected, host, guest.domid)
    yield connected
    assert connected.counters().corrupt == 0
    connected.close()


def without_a_frame(host: XenHost, work: Callable[[], Accesses]) -> Accesses:
    """Begins the work while no frame is free, and ends the shortage: what the work found."""
    with ThreadPoolExecutor(1) as pool:
        with Ballast() as ballast:
            assert host.memory().free <= FEW
            working: Future[Accesses] = pool.submit(work)
            deadline_s = time.monotonic() + WAIT_S
            while time.monotonic() < deadline_s:
                ballast.fill()
                assert not working.done(), "there was nothing to wait for"
        return working.result(PATIENCE_S)


def test_pages_come_back_when_there_is_a_frame(guests: tuple[Guest, Guest], client: PagerClient, host: XenHost) -> None:
    guest = guests[0]
    region = guest.fill("words", PAGES, 61)
    assert evict_at_once(client, host, guest.domid, guest.gfns(region)) >= PAGES * 9 // 10
    found = without_a_frame(host, lambda: guest.check(region))
    assert (found.reads, found.wrong_bytes) == (PAGES, 0)
    both_live(guests)


def test_copies_of_shared_pages_are_made_when_there_is_a_frame(
    guests: tuple[Guest, Guest], client: PagerClient, host: XenHost
) -> None:
    first, second = guests
    regions = [guest.fill("similar", PAGES, 62, 50) for guest in guests]
    gfns = [guest.gfns(region) for guest, region in zip(guests, regions, strict=True)]
    domids = [domids_of(guest.domid, PAGES) for guest in guests]
    assert (client.share(domids[0], gfns[0], domids[1], gfns[1]) == Outcome.DONE).all()
    found = without_a_frame(host, lambda: first.change(regions[0]))
    assert (found.writes, found.wrong_bytes) == (PAGES, 0)
    assert second.check(regions[1]).wrong_bytes == 0
    assert second.change(regions[1]).wrong_bytes == 0
    assert first.check(regions[0]).wrong_bytes == 0
    both_live(guests)


def test_a_release_without_room_is_refused_and_the_guest_goes_on(
    guests: tuple[Guest, Guest], client: PagerClient, host: XenHost
) -> None:
    guest = guests[0]
    region = guest.fill("words", PAGES, 63)
    assert evict_at_once(client, host, guest.domid, guest.gfns(region)) >= PAGES * 9 // 10
    with Ballast():
        words = [sys.executable, "-m", "diffengine", "release", guest.name, "--state", str(STATE)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        assert done.returncode == 1
        assert "free" in done.stderr
    assert guest.check(region).wrong_bytes == 0


def both_live(guests: tuple[Guest, Guest]) -> None:
    for guest in guests:
        guest.ping()
        assert xl("domid", guest.name) == str(guest.domid)
