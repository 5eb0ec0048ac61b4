# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's log of what a guest writes: what is in it, also of pages that were out; and an engine that goes by it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from evicting import evict_at_once, resident
from guests import Guest
from numpy.typing import NDArray
from stack import OPTIONS, STATE, PagerProcess, engine, run_until

from diffengine.engine.policy import Policy, State, Technique
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import DomainInfo
from diffengine.hypervisor.xen import XenHost
from diffengine.service.attached import Cause, DomainTerms, LeftAlone, Standing

PAGES = 1000
WRITTEN = 200
TIMEOUT_S = 600.0
AT_ONCE = replace(OPTIONS, policy=Policy("compress at once", dict.fromkeys(State, (Technique.COMPRESS,))), dense=False)


@pytest.fixture(scope="module")
def words(guests: tuple[Guest, Guest]) -> int:
    return guests[0].fill("words", PAGES, 3)


def size(host: XenHost, guest: Guest) -> int:
    return next(domain.gfns for domain in host.domains() if domain.domid == guest.domid)


def taken(host: XenHost, guest: Guest) -> NDArray[np.bool_]:
    written = host.take_dirty(guest.domid, size(host, guest))
    assert written is not None
    return written


@pytest.fixture
def logged(host: XenHost, guests: tuple[Guest, Guest]) -> Iterator[Guest]:
    """What was written before is not in the log any more."""
    assert host.log_dirty(guests[0].domid, True)
    taken(host, guests[0])
    yield guests[0]
    assert host.log_dirty(guests[0].domid, False)


def test_exactly_what_the_guest_wrote_is_in_it(host: XenHost, logged: Guest, words: int) -> None:
    gfns = logged.gfns(words)
    assert logged.check(words).wrong_bytes == 0
    assert not taken(host, logged)[gfns].any(), "reads are not"
    logged.change(words, 0, WRITTEN)
    written = taken(host, logged)[gfns]
    assert written[:WRITTEN].all() and not written[WRITTEN:].any()
    assert not taken(host, logged)[gfns].any(), "each write is told once"


def test_only_one_log_at_a_time(host: XenHost, logged: Guest) -> None:
    assert not host.log_dirty(logged.domid, True)


def test_a_domain_that_is_not_there_has_none(host: XenHost) -> None:
    assert not host.log_dirty(9999, True) and not host.log_dirty(9999, False)
    assert host.take_dirty(9999, 4096) is None


def test_writes_of_pages_that_were_out_are_in_it(host: XenHost, logged: Guest, words: int, pager: PagerProcess) -> None:
    gfns = logged.gfns(words)
    client = PagerClient(STATE)
    try:
        client.add_domain(logged.domid, size(host, logged))
        assert evict_at_once(client, host, logged.domid, gfns) > PAGES // 2
        logged.change(words, 0, WRITTEN)
        assert taken(host, logged)[gfns][:WRITTEN].all()
        assert logged.check(words).wrong_bytes == 0
        logged.change(words, WRITTEN, WRITTEN)
        written = taken(host, logged)[gfns]
        assert written[WRITTEN : 2 * WRITTEN].all() and not written[2 * WRITTEN :].any()
    finally:
        client.close()


def test_an_engine_that_goes_by_it_saves_and_finds_what_changes(
    host: XenHost, guests: tuple[Guest, Guest], words: int, pager: PagerProcess
) -> None:
    guest = guests[0]
    gfns = guest.gfns(words)

    def terms(domain: DomainInfo) -> Standing:
        alone = LeftAlone(Cause.NOT_ENABLED, "one is enough")
        return DomainTerms("all", log_dirty=True) if domain.domid == guest.domid else alone

    with engine(host, AT_ONCE, terms) as (attached, client):

        def out() -> int:
            return PAGES - len(np.intersect1d(resident(client, guest.domid, size(host, guest)), gfns))

        assert run_until(attached, lambda: out() > PAGES // 2, TIMEOUT_S)
        guest.change(words)
        assert out() == 0
        assert run_until(attached, lambda: out() > PAGES // 2, TIMEOUT_S), "what was written is found again"
        assert guest.check(words).wrong_bytes == 0
        assert not host.log_dirty(guest.domid, True), "it is on"
        assert not [reason for reason in attached.engine.report().reasons if reason.startswith("log_dirty")]
        attached.engine.stop_log_dirty(guest.domid)
        assert host.log_dirty(guest.domid, True) and host.log_dirty(guest.domid, False), "it is off"
        assert client.counters().corrupt == 0
