# SPDX-License-Identifier: GPL-2.0-or-later
"""An HVM guest, whose QEMU maps and writes its memory at any time and does not say so: nothing of it goes out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evicting import domids_of, evict_at_once
from guests import Guest
from stack import STATE, PagerProcess, engine, pager_process

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Outcome
from diffengine.hypervisor.xen import XenHost

PAGES = 400
DISK = Path("/tmp/hvm-disk")
# Through QEMU's emulated IDE controller.
DEVICE = "/dev/sda"
DEVICES = f'disk=["format=raw,vdev=hda,access=rw,backendtype=qdisk,target={DISK}"]\n'
MEMORY_MIB = 192
STEPS = 60


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


def test_nothing_goes_out_and_its_disk_works(guest: Guest, pager: PagerProcess, host: XenHost) -> None:
    region, into = guest.fill("words", PAGES, 91), guest.fill("random", PAGES, 92)
    with engine(host) as (attached, client):
        (info,) = (found for found in host.domains() if found.domid == guest.domid)
        assert info.device_model
        for _step in range(STEPS):
            attached.step()
        assert attached.standings[guest.domid]
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
