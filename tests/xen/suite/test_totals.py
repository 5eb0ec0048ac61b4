# SPDX-License-Identifier: GPL-2.0-or-later
"""The last module of a whole run: guests read pages back after eviction until there were enough, and the sums of all
modules (totals.json) are held against what a run must show."""

import json
from collections.abc import Iterator

import pytest
from evicting import add_domain, evict_at_once
from forms import TOTALS, read_back
from guests import Guest
from scale import SMALLER
from stack import STATE, PagerProcess

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost
from diffengine.native import Encoding

KIND, PAGES = "words", 8000 // SMALLER
MOST_ROUNDS = 20


@pytest.fixture
def client(guests: tuple[Guest, Guest], pager: PagerProcess) -> Iterator[PagerClient]:
    connected = PagerClient(STATE)
    yield connected
    assert connected.counters().corrupt == 0
    connected.close()


def total(name: str) -> int:
    return int(json.loads(TOTALS.read_text()).get(name, 0)) if TOTALS.is_file() else 0


def test_enough_pages_are_read_back_right(
    guests: tuple[Guest, Guest], client: PagerClient, host: XenHost, wanted: dict[str, int]
) -> None:
    regions = {guest: guest.fill(KIND, PAGES, 70 + guest.domid) for guest in guests}
    for number in range(MOST_ROUNDS):
        for guest, region in regions.items():
            if all(total(name) >= wanted[name] for name in ("out", "zstd")):
                return
            add_domain(client, host, guest.domid)
            # The engine uses no zstd, the pager's store knows it.
            codec = Encoding.ZSTD if number % 2 == 0 else Encoding.LZ4
            evict_at_once(client, host, guest.domid, guest.gfns(region), codec)
            read_back(client, guest, [region])
    raise AssertionError(f"only {total('out')} pages, {total('zstd')} of zstd, came back after {MOST_ROUNDS} rounds")


def test_the_whole_run_has_shown_enough(wanted: dict[str, int]) -> None:
    print(TOTALS.read_text())
    lacking = {name: (total(name), least) for name, least in wanted.items() if total(name) < least}
    assert not lacking, f"(found, wanted): {lacking}"
