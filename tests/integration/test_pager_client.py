# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's client of diffengine-pager, with the machine in a process of its own, too."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffengine._native import ffi, lib
from numpy.typing import NDArray

from diffengine.errors import DiffengineError
from diffengine.hypervisor.pager_client import BATCH, PagerClient
from diffengine.hypervisor.protocol import HostGoneError, NewObjects, Outcome, PageState, StoreFullError
from diffengine.native import NONE, Encoding, as_addresses, checksums
from diffengine.service.dom0_memory import SparingPager

PAGE = 4096
GFNS = 1500

pytestmark = pytest.mark.filterwarnings("error")


def program(name: str) -> str:
    return str(files("diffengine") / "bin" / name)


def launch(*arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [*arguments, "--parent", str(os.getpid())], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", process.communicate()
    return process


class System:
    """Two processes, one domain of random pages with every tenth page zero, and this process's connections."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        socket = str(directory / "machine")
        self.machine = launch(program("diffengine-machine"), "--socket", socket, "--memory-mib", "16")
        client = ffi.new("struct de_machine_client **")
        assert lib.de_client_connect(socket.encode(), lib.DE_CLIENT_READER, client) == 0
        self.client = client[0]
        self.pages = np.random.default_rng(5).integers(0, 256, size=(GFNS, PAGE), dtype=np.uint8)
        self.pages[::10] = 0
        self.domid = self._create_domain()
        self.start_pager()

    def _create_domain(self) -> int:
        domid = ffi.new("uint16_t *")
        assert lib.de_client_domain_create(self.client, GFNS, domid) == 0
        addresses = self.addresses()
        pages = as_addresses(addresses)
        assert lib.de_client_populate(self.client, domid[0], ffi.NULL, pages, GFNS, ffi.NULL) == GFNS
        return int(domid[0])

    def addresses(self) -> NDArray[np.uint64]:
        return np.uint64(self.pages.ctypes.data) + np.arange(GFNS, dtype=np.uint64) * np.uint64(PAGE)

    def start_pager(self) -> None:
        swap = ("--swap", str(self.directory / "swap"), "--swap-mib", "1")
        machine = str(self.directory / "machine")
        self.pager_process = launch(
            program("diffengine-pager"), "--state", str(self.state), "--machine", machine, "--store-mib", "4", *swap
        )
        self.pager = PagerClient(self.state)

    def used_frames(self) -> int:
        accounting = ffi.new("struct de_machine_accounting *")
        assert lib.de_client_account(self.client, accounting) == 0
        return int(accounting.used)

    def fill_memory(self, leaving: int) -> int:
        """A domain that takes all free frames but so many. Its domid."""
        accounting = ffi.new("struct de_machine_accounting *")
        assert lib.de_client_account(self.client, accounting) == 0
        frames = int(accounting.free) - leaving
        domid = ffi.new("uint16_t *")
        assert lib.de_client_domain_create(self.client, frames, domid) == 0
        addresses = as_addresses(np.resize(self.addresses(), frames))
        assert lib.de_client_populate(self.client, domid[0], ffi.NULL, addresses, frames, ffi.NULL) == frames
        return int(domid[0])

    def destroy(self, domid: int) -> None:
        assert lib.de_client_domain_destroy(self.client, domid) == 0

    def read_guest(self, gfns: NDArray[np.uint32]) -> NDArray[np.uint8]:
        vcpu = ffi.new("struct de_client_vcpu **")
        assert lib.de_client_vcpu_create(self.client, self.domid, vcpu) == 0
        found = np.empty((len(gfns), PAGE), dtype=np.uint8)
        for row, gfn in enumerate(gfns):
            assert lib.de_client_guest_read(vcpu[0], int(gfn), 0, ffi.from_buffer(found[row]), PAGE) == 0
        lib.de_client_vcpu_free(vcpu[0])
        return found

    def close(self) -> None:
        self.pager.close()
        lib.de_client_free(self.client)
        for process in (self.pager_process, self.machine):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    yield made
    made.close()


def raw_objects(system: System, gfns: NDArray[np.uint32]) -> NewObjects:
    addresses = np.ascontiguousarray(system.addresses()[gfns])
    count = len(gfns)
    nothing = np.full(count, NONE, dtype=np.uint32)
    return NewObjects(
        payloads=addresses,
        sizes=np.full(count, PAGE, dtype=np.uint16),
        encodings=np.full(count, Encoding.RAW, dtype=np.uint8),
        checksums=checksums(addresses),
        reference_ids=nothing,
        reference_rows=nothing,
        model_id=NONE,
    )


def domids(system: System, count: int) -> NDArray[np.uint16]:
    return np.full(count, system.domid, dtype=np.uint16)


def evict(system: System, gfns: NDArray[np.uint32]) -> Any:
    """Evicts as raw objects, whose counts are the page table's alone afterwards."""
    objects = system.pager.put(raw_objects(system, gfns))
    results = system.pager.evict(domids(system, len(gfns)), gfns, objects)
    system.pager.release(objects)
    assert (results == Outcome.DONE).all()
    return objects


def test_pages_go_and_come_back(system: System) -> None:
    pager = system.pager
    pager.add_domain(system.domid, GFNS)
    pager.add_domain(system.domid, GFNS)
    gfns = np.arange(600, dtype=np.uint32)  # more than one batch of payloads
    objects = evict(system, gfns)
    assert system.used_frames() == GFNS - 600
    entries = pager.states(system.domid, 0, GFNS)
    assert (entries.states[:600] == PageState.EVICTED).all() and (entries.states[600:] == PageState.RESIDENT).all()
    assert (entries.objects[:600] == objects).all()
    rebuilt = np.empty(600 * PAGE, dtype=np.uint8)
    assert pager.rebuild(objects, rebuilt).all()
    assert (rebuilt.reshape(600, PAGE) == system.pages[:600]).all()
    assert (system.read_guest(gfns[:100]) == system.pages[:100]).all()
    pager.restore_part(system.domid, 100, 100)
    assert system.used_frames() == GFNS - 400
    pager.restore_part(system.domid, 590, 10_000)
    assert system.used_frames() == GFNS - 390
    pager.restore(system.domid)
    assert system.used_frames() == GFNS
    pager.restore_part(system.domid, GFNS, 1)
    pager.remove_domain(system.domid)
    assert (pager.states(system.domid, 0, 5).states == PageState.RESIDENT).all()


def test_proposals_longer_than_a_batch(system: System) -> None:
    pager = system.pager
    pager.add_domain(system.domid, GFNS)
    assert GFNS > BATCH
    gfns = np.arange(GFNS, dtype=np.uint32)
    zero = gfns[::10]
    shared = pager.share(
        domids(system, len(zero) - 1), np.full(len(zero) - 1, zero[0]), domids(system, len(zero) - 1), zero[1:]
    )
    assert (shared == Outcome.DONE).all()
    watched = pager.watch(domids(system, GFNS), gfns)
    assert (watched[::10] == Outcome.BUSY).all() and (np.delete(watched, zero) == Outcome.DONE).all()
    assert (pager.unshare(domids(system, len(zero)), zero) == Outcome.DONE).all()
    assert (pager.watch(domids(system, 1), np.array([GFNS], dtype=np.uint32)) == Outcome.INVALID).all()


def test_references_across_batches_and_swap(system: System) -> None:
    pager = system.pager
    pager.add_domain(system.domid, GFNS)
    count = 700
    gfns = np.arange(count, dtype=np.uint32)
    gfns = gfns[gfns % 10 != 0]
    objects = evict(system, gfns[:200])
    assert (pager.swap_out(objects) == Outcome.DONE).all()
    assert (pager.swap_out(objects[:1]) == Outcome.INVALID).all()
    assert not pager.rebuild(objects[:1], np.empty(PAGE, dtype=np.uint8)).any()
    assert (pager.evict(domids(system, 1), gfns[200:201], objects[:1]) == Outcome.SWAPPED).all()
    # Copies of an earlier row: the empty patch of version 1, against a row of the first batch and one of its own.
    empty_patch = np.array([0x10, 0x00], dtype=np.uint8)
    base = raw_objects(system, gfns[200:600])
    rows = np.array([0, 399], dtype=np.uint32)
    patched = NewObjects(
        payloads=np.concatenate([base.payloads, np.full(2, empty_patch.ctypes.data, dtype=np.uint64)]),
        sizes=np.concatenate([base.sizes, np.full(2, 2, dtype=np.uint16)]),
        encodings=np.concatenate([base.encodings, np.full(2, Encoding.PATCH, dtype=np.uint8)]),
        checksums=np.concatenate([base.checksums, base.checksums[rows]]),
        reference_ids=np.full(402, NONE, dtype=np.uint32),
        reference_rows=np.concatenate([np.full(400, NONE, dtype=np.uint32), rows]),
        model_id=NONE,
    )
    ids = pager.put(patched)
    pages = np.empty(2 * PAGE, dtype=np.uint8)
    assert pager.rebuild(ids[400:], pages).all()
    assert (pages.reshape(2, PAGE) == system.pages[gfns[200 + rows]]).all()
    assert (pager.swap_out(ids[:1]) == Outcome.NEEDED).all()
    pager.release(ids)
    assert (system.read_guest(gfns[:200]) == system.pages[gfns[:200]]).all()


def test_full_store_leaves_nothing(system: System) -> None:
    pager = system.pager
    gfns = np.arange(1, GFNS, dtype=np.uint32)
    with pytest.raises(StoreFullError, match="store is full"):
        pager.put(raw_objects(system, gfns))
    pager.release(pager.put(raw_objects(system, gfns[:500])))


def test_dom0s_memory_bounds_a_store_that_lies_there(system: System) -> None:
    system.pager.close()
    with closing(SparingPager(system.state)) as pager:
        pager.least_available_bytes = 1 << 60
        with pytest.raises(StoreFullError, match="dom0 has only"):
            pager.put(raw_objects(system, np.arange(5, dtype=np.uint32)))
        # What a pager has there whose store lies in a domain's frames.
        (system.state / "store-domain").touch()
        pager.release(pager.put(raw_objects(system, np.arange(5, dtype=np.uint32))))
    (system.state / "store-domain").unlink()
    system.pager = PagerClient(system.state)


def test_successor(system: System) -> None:
    system.pager.add_domain(system.domid, GFNS)
    gfns = np.arange(1, 50, dtype=np.uint32)
    objects = evict(system, gfns)
    assert (system.pager.swap_out(objects[:20]) == Outcome.DONE).all()
    with pytest.raises(DiffengineError, match="in use"):
        PagerClient(system.state)
    system.pager_process.kill()
    system.pager_process.communicate()
    with pytest.raises(HostGoneError):
        system.pager.compact()
    system.pager.close()
    with pytest.raises(HostGoneError):
        PagerClient(system.state)
    system.start_pager()
    assert (system.pager.states(system.domid, 0, 50).states[1:] == PageState.EVICTED).all()
    assert system.pager.counters().evicted == 49
    assert system.pager.counters().swap_bytes == 20 * PAGE
    assert (system.read_guest(gfns) == system.pages[1:50]).all()
    assert system.pager.failure(system.domid) == ""


def written_ns(system: System) -> int:
    content = (system.state / "statistics").read_bytes()
    return int(ffi.cast("struct de_pager_page *", ffi.from_buffer(content)).written_ns)


def test_statistics_go_on_while_a_command_takes_long(system: System) -> None:
    system.pager.add_domain(system.domid, GFNS)
    evict(system, np.arange(10, dtype=np.uint32))
    # Of a machine that stands still, a command waits for the answer.
    system.machine.send_signal(signal.SIGSTOP)
    restore = threading.Thread(target=system.pager.restore, args=(system.domid,))
    restore.start()
    deadline_s = time.monotonic() + 60
    seen: set[int] = set()
    while len(seen) < 5 and time.monotonic() < deadline_s:
        seen.add(written_ns(system))
        time.sleep(0.02)
    waiting = restore.is_alive()
    system.machine.send_signal(signal.SIGCONT)
    restore.join()
    assert waiting
    assert len(seen) == 5
    assert system.pager.counters().evicted == 0


def test_who_has_the_answer_finds_the_command_counted(system: System) -> None:
    system.pager.add_domain(system.domid, GFNS)
    gfns = np.arange(10, dtype=np.uint32)
    for _ in range(50):
        evict(system, gfns)
        assert system.pager.counters().evicted == 10
        system.pager.restore(system.domid)
        assert system.pager.counters().evicted == 0
