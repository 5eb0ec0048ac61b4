# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever else reads and writes a guest's pages while they are out: PV devices through grants, the balloon, and a QEMU
that emulates a disk."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from evicting import add_domain, evict_at_once, resident
from guests import Guest, xl
from stack import STATE, PagerProcess, pager_process

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost

PAGES = 600
NET_PAGES = 100
DISK = Path("/tmp/guest-disk")
DEVICE = "/dev/xvda"
DOM0, GUEST = "10.0.0.1", "10.0.0.2"
DEVICES = f"""\
disk=["format=raw,vdev=xvda,access=rw,target={DISK}"]
vif=["script=/opt/rig/suite/vif"]
"""
# Most of the guest, its kernel included.
LEAST_OUT = 10_000
BALLOONED_MIB = 96
TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    DISK.write_bytes(bytes(PAGES * 4096))
    with Guest.start("guest1", more=DEVICES) as started:
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


def evict_everything(client: PagerClient, host: XenHost, guest: Guest) -> int:
    """Also the rings, buffers and page tables of the guest's kernel. How many pages went."""
    gfns = add_domain(client, host, guest.domid)
    return evict_at_once(client, host, guest.domid, resident(client, guest.domid, gfns))


@contextmanager
def echo_server() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((DOM0, 7))
        server.settimeout(0.2)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    data, sender = server.recvfrom(4096)
                    server.sendto(data, sender)
                except TimeoutError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def test_pv_disk_reads_and_writes_pages_that_are_out(guest: Guest, client: PagerClient, host: XenHost) -> None:
    region, into = guest.fill("words", PAGES, 51), guest.fill("random", PAGES, 52)
    assert evict_everything(client, host, guest) >= LEAST_OUT
    assert guest.write_disk(region, DEVICE).writes == PAGES
    assert evict_everything(client, host, guest) >= PAGES
    assert client.pages_out(guest.domid) >= LEAST_OUT
    read = guest.read_disk(region, DEVICE, into)
    assert (read.reads, read.wrong_bytes) == (PAGES, 0)
    assert guest.check(region).wrong_bytes == 0
    guest.free(into)


def test_pv_network_sends_and_receives_pages_that_are_out(guest: Guest, client: PagerClient, host: XenHost) -> None:
    region, into = guest.fill("words", NET_PAGES, 53), guest.fill("random", NET_PAGES, 54)
    with echo_server():
        for _round in range(2):
            assert evict_everything(client, host, guest) >= NET_PAGES
            found = guest.echo(GUEST, DOM0, region, into)
            assert (found.reads, found.wrong_bytes) == (NET_PAGES, 0)
    guest.free(into)


def test_pages_ballooned_out_and_populated_again(guest: Guest, client: PagerClient, host: XenHost) -> None:
    """Most of them are out when the guest gives them up."""
    region = guest.fill("words", PAGES, 55)
    full = frames(host, guest)
    for _round in range(2):
        assert evict_everything(client, host, guest) >= PAGES
        xl("mem-set", guest.name, str(BALLOONED_MIB))
        wait_for_frames(host, guest, full - (128 - BALLOONED_MIB) * 256)
        xl("mem-set", guest.name, "128")
        wait_for_frames(host, guest, full)
        assert guest.check(region).wrong_bytes == 0
        other = guest.fill("similar", PAGES, 56, 50)
        assert guest.check(other).wrong_bytes == 0
        guest.free(other)
    assert guest.check(region).wrong_bytes == 0


def frames(host: XenHost, guest: Guest) -> int:
    """What the guest has, whether there is a frame for it or not."""
    (found,) = (domain for domain in host.connection.domains() if domain.domid == guest.domid)
    return found.pages + found.paged


def wait_for_frames(host: XenHost, guest: Guest, wanted: int, leeway: int = 64) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while abs(frames(host, guest) - wanted) > leeway:
        assert time.monotonic() < deadline_s, f"the guest has {frames(host, guest)} pages, not {wanted}"
        time.sleep(0.2)
