# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with two vCPUs, evicted from: on a Xen with docs/several-vcpus.patch, so not with the other modules.

What is tried at a full ring stops a host that lacks the patch.
"""

from collections.abc import Iterator

import pytest
from guests import Guest
from stack import engine, pager_process, run_until
from test_programs import run

from diffengine.hypervisor.xen import XenHost

MIB = 128
KINDS = (("identical", 0), ("similar", 90), ("words", 0))
PAGES = 3000
ROUNDS = 5
EVICTIONS = 500
TIMEOUT_S = 600.0
LOAD_PER_S = 300


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest.start("guest1", MIB, vcpus=2) as started:
        for seed, (kind, percent) in enumerate(KINDS):
            started.fill(kind, PAGES, seed, percent)
        yield started


def test_switched_while_the_ring_is_full(guest: Guest) -> None:
    guest.start_load(0, len(KINDS) - 1, LOAD_PER_S, 20)
    run("/opt/rig/xen-operations", str(guest.domid), str(MIB), "switched")
    all_right(guest)


def test_pages_go_and_come_back_under_load_while_pagers_are_killed(guest: Guest, host: XenHost) -> None:
    guest.start_load(0, len(KINDS) - 1, LOAD_PER_S, 20)
    with pager_process("--several-vcpus") as process:
        for number in range(ROUNDS):
            with engine(host) as (attached, client):
                # Each pager learns anew which pages Xen itself touches.
                assert run_until(attached, lambda: client.counters().evictions >= EVICTIONS, TIMEOUT_S)
                print(f"round {number}: {client.counters()}")
            process.kill()
            process.start()
            assert [guest.check(region).wrong_bytes for region in range(len(KINDS))] == [0] * len(KINDS)
        all_right(guest)


def all_right(guest: Guest) -> None:
    load = guest.stop_load()
    print(load)
    assert load.reads
    assert load.writes
    assert load.wrong_bytes == 0
    assert [guest.check(region).wrong_bytes for region in range(len(KINDS))] == [0] * len(KINDS)
