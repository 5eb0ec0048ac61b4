# SPDX-License-Identifier: GPL-2.0-or-later
"""An HVM guest, whose QEMU maps and writes its memory at any time and does not say so: nothing of it goes out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evicting import add_domain, domids_of, evict_at_once
from guests import Guest, xl
from stack import STATE, PagerProcess, engine, pager_process

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Outcome
from diffengine.hypervisor.xen import XenHost
from diffengine.service import DomainTerms

PAGES = 400
DISK = Path("/tmp/hvm-disk")
# Through QEMU's emulated IDE controller.
DEVICE = "/dev/sda"
DEVICES = f'disk=["format=raw,vdev=hda,access=rw,backendtype=qdisk,target={DISK}"]\n'
MEMORY_MIB = 192
STEPS = 60
# Of QEMU's map cache, in pages.
BUCKET = 256


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    DISK.write_bytes(bytes(PAGES * 4096))
    with Guest.start("hvm1", MEMORY_MIB, kind="hvm", more=DEVICES) as started:
        started.load_modules()
        yield started


@pytest.fixture(scope="module")
def pager(guest: Guest) -> Iterator[PagerProcess]:
    with pager_process() as process:
        yield process


@pytest.fixture
def client(pager: PagerProcess) -> Iterator[PagerClient]:
    connected = PagerClient(STATE)
    yield connected
    assert connected.counters().corrupt == 0
    connected.close()


def test_a_page_that_was_nominated_before_qemu_mapped_it_stays(
    guest: Guest, client: PagerClient, host: XenHost
) -> None:
    """The pager is not told of QEMU here: what is seen is Xen's own last line, that a page which somebody maps does not
    go. QEMU maps 256 pages at a time, for writing."""
    region = guest.fill("words", PAGES, 93)
    gfns = guest.gfns(region)
    add_domain(client, host, guest.domid)
    watched = gfns[client.watch(domids_of(guest.domid, PAGES), gfns) == Outcome.DONE]
    assert len(watched) > PAGES // 2
    mapped = watched[watched // BUCKET == watched[len(watched) // 2] // BUCKET]
    print(xl("qemu-monitor-command", guest.name, f"xp /4xw {int(mapped[0]) * 4096:#x}"))
    assert evict_at_once(client, host, guest.domid, mapped) == 0
    assert guest.check(region).wrong_bytes == 0
    assert guest.change(region).wrong_bytes == 0
    assert guest.check(region).wrong_bytes == 0
    client.restore(guest.domid)
    client.remove_domain(guest.domid)
    guest.free(region)


def test_nothing_goes_out_and_its_disk_works(guest: Guest, pager: PagerProcess, host: XenHost) -> None:
    region, into = guest.fill("words", PAGES, 91), guest.fill("random", PAGES, 92)
    with engine(host) as (attached, client):
        (info,) = (found for found in host.domains() if found.domid == guest.domid)
        assert info.device_model
        for _step in range(STEPS):
            attached.step()
        assert isinstance(attached.standings[guest.domid], DomainTerms), "it is worked on, as far as it may be"
        assert client.pages_out(guest.domid) == 0
    client = PagerClient(STATE)
    try:
        assert evict_at_once(client, host, guest.domid, guest.gfns(region)) == 0
        results = client.watch(domids_of(guest.domid, PAGES), guest.gfns(region))
        assert set(np.unique(results)) <= {Outcome.NO_HOLDS, Outcome.HELD}
    finally:
        client.close()
    assert guest.write_disk(region, DEVICE).writes == PAGES
    read = guest.read_disk(region, DEVICE, into)
    assert (read.reads, read.wrong_bytes) == (PAGES, 0)
    assert guest.check(region).wrong_bytes == 0
    guest.free(into)
