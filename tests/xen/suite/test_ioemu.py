# SPDX-License-Identifier: GPL-2.0-or-later
"""HVM guests with an unchanged QEMU under disk I/O over most of their memory: what it keeps mapped without the shim and
with it, and what of that can be evicted meanwhile. The disk gives back every byte."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from device_models import IN_USE_S, Watch, device_model_of, has_hold_table, pinned, watching, wrapper
from evicting import add_domain, domids_of, evict_at_once, resident
from gate import Gate
from guests import Guest, GuestError
from numpy.typing import NDArray
from stack import STATE, PagerProcess, pager_process

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Gfns, Outcome
from diffengine.hypervisor.xen import XenHost

MEMORY_MIB = 192
GUEST_PAGES = MEMORY_MIB * 256
# Each is written to the disk and read into another one: together most of what the guest's kernel leaves.
PAIRS = 5
PAGES = 1600
FEW_PAGES = 64
# The first through QEMU's IDE controller, the second through dom0's kernel.
EMULATED, PV = "/dev/sda", "/dev/xvde"
DEVICES = [EMULATED] * (PAIRS - 1) + [PV]
# Of a PVH guest, whose disks are dom0's all.
PVH_DEVICES = ["/dev/xvda"] * (PAIRS - 1) + [PV]
# Of a pager that was not told that the guest has a device model.
UNAWARE_STATE = Path("/run/diffengine-unaware")
PVH_STATE = Path("/run/diffengine-pvh")
FIGURE = Path("pinned-frames.json")
MOST_UNUSED = 0.02 * GUEST_PAGES
LEAST_SAVED = 0.85
# Between the I/O of one pair and of the next: so not all is in use at any time.
PAUSE_S = 3.0
LEAST_JUDGED = 40
# What QEMU has mapped that is no RAM: pages of requests.
RINGS = 2
DEADLINE_S = 600.0


@dataclass(frozen=True)
class Shimmed:
    guest: Guest
    pager: PagerProcess
    gate: Gate
    pid: int


@pytest.fixture(scope="module")
def out_as_pvh(host: XenHost) -> int:
    """Pages of the same guest without a device model that go out after the same disk I/O."""
    with (
        pager_process(state=PVH_STATE),
        Guest.start("pvh1", MEMORY_MIB, more=disks_of("pvh1", "xvda")) as guest,
        connected(PVH_STATE) as client,
    ):
        load_drivers(guest, PVH_DEVICES)
        for pair, device in zip(fill(guest), PVH_DEVICES, strict=True):
            write_and_read(guest, pair, device)
        add_domain(client, host, guest.domid)
        return out_after_all_was_evicted(client, host, guest)


@pytest.fixture(scope="module")
def shimmed(out_as_pvh: int) -> Iterator[Shimmed]:
    """After the PVH guest: there is no room for both."""
    gate = Gate(Path("/tmp/eviction-gate"))
    with (
        pager_process(environment=gate.environment) as pager,
        Guest.start("shim1", MEMORY_MIB, kind="hvm", more=disks_of("shim1", "hda") + wrapper()) as guest,
    ):
        load_drivers(guest, DEVICES)
        yield Shimmed(guest, pager, gate, device_model_of(guest.domid))


def disks_of(guest: str, first: str) -> str:
    """Of its configuration: a disk that QEMU emulates, if it is called hda, and one that dom0's kernel serves."""
    files = [Path(f"/tmp/{guest}-{device}") for device in (first, "xvde")]
    for file in files:
        file.write_bytes(bytes(PAGES * 4096))
    return (
        f'disk=["format=raw,vdev={first},access=rw,backendtype=qdisk,target={files[0]}", '
        f'"format=raw,vdev=xvde,access=rw,target={files[1]}"]\n'
    )


@contextmanager
def connected(state: Path = STATE) -> Iterator[PagerClient]:
    client = PagerClient(state)
    try:
        yield client
        assert client.counters().corrupt == 0
    finally:
        client.close()


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


def wait_until_unpinned(pid: int) -> None:
    wait_until(lambda: pinned(pid) <= RINGS, f"{pinned(pid)} pages stay mapped")


def fill(guest: Guest) -> list[tuple[int, int]]:
    """Pairs of regions: to the disk, and from it."""
    return [(guest.fill("words", PAGES, 10 + i), guest.fill("random", PAGES, 50 + i)) for i in range(PAIRS)]


def load_drivers(guest: Guest, devices: list[str]) -> None:
    """They find their disks some time after they were loaded."""
    guest.load_modules()
    region = guest.fill("random", 1, 1)
    for device in dict.fromkeys(devices):
        wait_until(partial(can_write, guest, region, device), f"the guest has no {device}")
    guest.free(region)


def can_write(guest: Guest, region: int, device: str) -> bool:
    try:
        guest.write_disk(region, device)
    except GuestError:
        return False
    return True


def round_of_disk_io(guest: Guest, pairs: list[tuple[int, int]], devices: list[str], watch: Watch) -> None:
    for pair, device in zip(pairs, devices, strict=True):
        with watch.use(gfns_of(guest, [pair])):
            write_and_read(guest, pair, device)
        time.sleep(PAUSE_S)


def has_judged_after_a_round(guest: Guest, pairs: list[tuple[int, int]], watch: Watch) -> bool:
    round_of_disk_io(guest, pairs, DEVICES, watch)
    return len(watch.judged()) >= LEAST_JUDGED


def write_and_read(guest: Guest, pair: tuple[int, int], device: str) -> None:
    region, into = pair
    assert guest.write_disk(region, device).writes == PAGES
    read = guest.read_disk(region, device, into)
    assert (read.reads, read.wrong_bytes) == (PAGES, 0)


def gfns_of(guest: Guest, pairs: list[tuple[int, int]]) -> NDArray[np.uint32]:
    return np.concatenate([guest.gfns(region) for pair in pairs for region in pair])


@contextmanager
def eviction_at_the_gate(
    gate: Gate, client: PagerClient, host: XenHost, guest: Guest, gfns: Gfns
) -> Iterator[list[int]]:
    """The pager has had its last look at the first of these pages. In the end: how many went."""
    done = list[int]()

    def evict() -> None:
        done.append(evict_at_once(client, host, guest.domid, gfns))

    gate.shut()
    thread = threading.Thread(target=evict)
    thread.start()
    try:
        gate.wait_for_eviction()
        yield done
    finally:
        gate.open()
        thread.join()


@contextmanager
def evicting(host: XenHost, guest: Guest, gfns: Gfns, total: int) -> Iterator[list[int]]:
    """What is in of these pages goes out meanwhile, over and over."""
    ended, evicted = threading.Event(), list[int]()

    def evict() -> None:
        with connected() as client:
            while not ended.is_set():
                there = np.intersect1d(resident(client, guest.domid, total), gfns).astype(np.uint32)
                evicted.append(evict_at_once(client, host, guest.domid, there))
                ended.wait(0.2)

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        yield evicted
    finally:
        ended.set()
        thread.join()


def out_after_all_was_evicted(client: PagerClient, host: XenHost, guest: Guest) -> int:
    """What the guest and dom0 touched since is in again."""
    evict_at_once(client, host, guest.domid, resident(client, guest.domid, GUEST_PAGES))
    return GUEST_PAGES - len(resident(client, guest.domid, GUEST_PAGES))


def release(guest: Guest, *options: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "diffengine", "release", *options, guest.name, "--state", str(STATE)], check=True
    )


def write_figure(name: str, watch: Watch) -> None:
    figure = json.loads(FIGURE.read_text()) if FIGURE.is_file() else {"guest_pages": GUEST_PAGES}
    figure[name] = watch.figure()
    FIGURE.write_text(json.dumps(figure) + "\n")


def test_without_the_shim_what_was_touched_stays_mapped() -> None:
    with Guest.start("plain1", MEMORY_MIB, kind="hvm", more=disks_of("plain1", "hda")) as guest:
        load_drivers(guest, DEVICES)
        pairs = fill(guest)
        with watching(guest) as watch:
            round_of_disk_io(guest, pairs, DEVICES, watch)
            time.sleep(IN_USE_S)
    write_figure("without", watch)
    last = watch.samples[-1]
    print(f"mapped at the end, without a touch for {IN_USE_S:.0f} s: {last.pinned} of {GUEST_PAGES}")
    # All but what went through the PV disk.
    assert last.pinned > (PAIRS - 1) * 2 * PAGES


def test_a_device_write_between_the_last_look_and_the_eviction_is_lost_without_holds(
    shimmed: Shimmed, host: XenHost
) -> None:
    """What holds are for. The shim maps and unmaps here, but the pager that it asks for holds has not got the domain;
    another one has, which knows of no device model."""
    guest, gate = shimmed.guest, Gate(Path("/tmp/unaware-gate"))
    region, into = guest.fill("words", FEW_PAGES, 5), guest.fill("random", FEW_PAGES, 6)
    guest.write_disk(region, EMULATED)
    wait_until_unpinned(shimmed.pid)
    with pager_process(environment=gate.environment, state=UNAWARE_STATE), connected(UNAWARE_STATE) as client:
        add_domain(client, host, guest.domid)
        with eviction_at_the_gate(gate, client, host, guest, guest.gfns(into)[:1]) as evicted:
            guest.fetch_disk(region, EMULATED, into)
            assert pinned(shimmed.pid) > RINGS
            wait_until_unpinned(shimmed.pid)
        assert evicted == [1]
        assert guest.compare(region, into).wrong_pages == 1
        client.restore(guest.domid)
        client.remove_domain(guest.domid)
    guest.free(region)
    guest.free(into)


def test_with_holds_it_waits_and_is_kept(shimmed: Shimmed, host: XenHost) -> None:
    guest = shimmed.guest
    region, into = guest.fill("words", FEW_PAGES, 7), guest.fill("random", FEW_PAGES, 8)
    guest.write_disk(region, EMULATED)
    with connected() as client:
        add_domain(client, host, guest.domid)
        client.set_device_model(guest.domid)
        wait_until(lambda: has_hold_table(shimmed.pid, guest.domid), "QEMU did not attach to the pager's hold table")
        wait_until_unpinned(shimmed.pid)
        fetch = threading.Thread(target=guest.fetch_disk, args=(region, EMULATED, into))
        with eviction_at_the_gate(shimmed.gate, client, host, guest, guest.gfns(into)[:1]) as evicted:
            fetch.start()
            # It can't be over before the gate opens; how far it is, nobody can tell.
            fetch.join(3.0)
            assert fetch.is_alive()
        fetch.join()
        assert evicted == [1]
        assert guest.compare(region, into).wrong_bytes == 0
    guest.free(region)
    guest.free(into)


def test_with_the_shim_what_was_touched_is_unmapped_and_goes_out(shimmed: Shimmed, host: XenHost) -> None:
    guest = shimmed.guest
    pairs = fill(guest)
    gfns = gfns_of(guest, pairs)
    with connected() as client:
        total = add_domain(client, host, guest.domid)
    with watching(guest) as watch:
        with evicting(host, guest, gfns, total) as evicted:
            round_of_disk_io(guest, pairs, DEVICES, watch)
        shimmed.pager.kill()
        shimmed.pager.start()
        with evicting(host, guest, gfns, total) as evicted_by_successor:
            wait_until(
                partial(has_judged_after_a_round, guest, pairs, watch),
                "samples come late, so nobody can tell what is mapped",
            )
        wait_until_unpinned(shimmed.pid)
    write_figure("with", watch)
    most = max(sample.unused for sample in watch.judged())
    print(f"evicted beside the disk I/O: {sum(evicted)}, {sum(evicted_by_successor)}")
    print(f"most mapped and not in use for {IN_USE_S:.0f} s: {most} of {GUEST_PAGES}, in {len(watch.judged())} samples")
    assert min(sum(evicted), sum(evicted_by_successor)) > PAGES
    assert most <= MOST_UNUSED
    for region, _into in pairs:
        assert guest.check(region).wrong_bytes == 0


def test_as_much_goes_out_as_of_a_guest_without_a_device_model(
    shimmed: Shimmed, out_as_pvh: int, host: XenHost
) -> None:
    guest = shimmed.guest
    with connected() as client:
        client.restore(guest.domid)
        wait_until_unpinned(shimmed.pid)
        out = out_after_all_was_evicted(client, host, guest)
    print(f"out: {out} of {GUEST_PAGES}; as PVH: {out_as_pvh}")
    guest.ping()
    assert out >= LEAST_SAVED * out_as_pvh


def test_released_and_taken_back_it_is_evicted_from_again(shimmed: Shimmed, host: XenHost) -> None:
    """Also with pages that are watched, and that QEMU has mapped since: they can't be evicted."""
    guest = shimmed.guest
    region, into = guest.fill("words", FEW_PAGES, 11), guest.fill("random", FEW_PAGES, 12)
    guest.write_disk(region, EMULATED)
    gfns = guest.gfns(into)
    with connected() as client:
        wait_until_unpinned(shimmed.pid)
        client.watch(domids_of(guest.domid, len(gfns)), gfns)
        guest.fetch_disk(region, EMULATED, into)
        assert pinned(shimmed.pid) > RINGS
        release(guest)
        assert not client.has(guest.domid)
        assert guest.compare(region, into).wrong_bytes == 0
        release(guest, "--undo")
        add_domain(client, host, guest.domid)
        client.set_device_model(guest.domid)
        wait_until_unpinned(shimmed.pid)
        wait_until(
            lambda: Outcome.NO_HOLDS not in client.watch(domids_of(guest.domid, len(gfns)), gfns),
            "QEMU did not attach to the next hold table",
        )
        assert evict_at_once(client, host, guest.domid, gfns) > 0
        assert guest.compare(region, into).wrong_bytes == 0
    guest.free(region)
    guest.free(into)


def test_holds_go_with_the_device_model_that_has_them(shimmed: Shimmed, host: XenHost) -> None:
    """The last one: the guest's devices are dead then, its memory is not."""
    guest = shimmed.guest
    region, into = guest.fill("words", FEW_PAGES, 9), guest.fill("random", FEW_PAGES, 10)
    guest.write_disk(region, EMULATED)
    assert guest.read_disk(region, EMULATED, into).wrong_bytes == 0
    gfns = guest.gfns(into)
    with connected() as client:
        outcomes = client.watch(domids_of(guest.domid, len(gfns)), gfns)
        assert Outcome.BUSY in outcomes
        os.kill(shimmed.pid, signal.SIGKILL)
        wait_until(
            lambda: set(client.watch(domids_of(guest.domid, len(gfns)), gfns).tolist()) == {Outcome.NO_HOLDS},
            "the pager does not see that the device model is gone",
        )
        assert evict_at_once(client, host, guest.domid, gfns) == 0
        assert guest.check(region).wrong_bytes == 0
        assert guest.compare(region, into).wrong_bytes == 0
