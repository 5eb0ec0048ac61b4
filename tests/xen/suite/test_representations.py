# SPDX-License-Identifier: GPL-2.0-or-later
"""Each way to keep a page that is out: the guest reads every one back right, and what it writes stays."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from forms import count_out, read_back
from guests import Guest
from scale import SMALLER
from stack import OPTIONS, SWAP_MIB, PagerProcess, engine, pager_process, run_until

from diffengine.engine import EngineOptions
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Capabilities, Outcome, PageState
from diffengine.hypervisor.xen import XenHost

PAGES = 6000 // SMALLER
# What is wanted of each in a whole run, by one guest.
WANTED = 5100 // SMALLER
TIMEOUT_S = 600.0
FAST = replace(OPTIONS, dense=False)


class HostWithoutSharing(XenHost):
    """As on AMD: live pages can't share a frame, cold ones share an object in the store."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), sharing=False)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest.start("guest1") as started:
        yield started


@pytest.fixture(scope="module")
def pager(guest: Guest) -> Iterator[PagerProcess]:
    with pager_process("--swap", "/tmp/swap", "--swap-mib", str(SWAP_MIB)) as process:
        yield process


@pytest.fixture(scope="module")
def cold_host() -> Iterator[XenHost]:
    with HostWithoutSharing() as host:
        yield host


@pytest.mark.parametrize(
    ("kind", "percent", "options", "form"),
    [
        ("similar", 95, FAST, "patched"),
        ("words", 0, FAST, "lz4"),
        ("words", 0, OPTIONS, "dense"),
        ("identical", 0, FAST, "shared object"),
    ],
    ids=["patched", "lz4", "dense", "shared-object"],
)
def test_pages_come_back_right(
    guest: Guest,
    pager: PagerProcess,
    cold_host: XenHost,
    kind: str,
    percent: int,
    options: EngineOptions,
    form: str,
) -> None:
    region = guest.fill(kind, PAGES, 11, percent)
    gfns = guest.gfns(region)
    with engine(cold_host, options) as (attached, client):
        done = run_until(attached, lambda: count_out(client, guest, gfns)[form] >= WANTED, TIMEOUT_S)
        print(count_out(client, guest, gfns), client.counters())
        assert done, f"too few pages were {form}"
        assert read_back(client, guest, [region])[form] >= WANTED
    assert guest.change(region).wrong_bytes == 0
    assert guest.check(region).wrong_bytes == 0
    guest.free(region)


def test_swapped_pages_come_back_right(guest: Guest, pager: PagerProcess, cold_host: XenHost) -> None:
    region = guest.fill("words", PAGES, 12)
    gfns = guest.gfns(region)
    with engine(cold_host, FAST) as (attached, client):
        assert run_until(attached, lambda: count_out(client, guest, gfns)["lz4"] >= WANTED, TIMEOUT_S)
        assert swap_out(client, guest) >= WANTED
        assert read_back(client, guest, [region])["swapped"] >= WANTED
    assert guest.change(region).wrong_bytes == 0
    assert guest.check(region).wrong_bytes == 0
    guest.free(region)


def swap_out(client: PagerClient, guest: Guest) -> int:
    """Moves all that is out to disk. How many objects went."""
    entries = client.states(guest.domid, 0, 1 << 15)
    objects = np.unique(entries.objects[entries.states == PageState.EVICTED])
    return int((client.swap_out(objects) == Outcome.DONE).sum())
