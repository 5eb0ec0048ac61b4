# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine, its pager and its guests as Python calls them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from diffengine._native import lib
from numpy.typing import NDArray

from diffengine.hypervisor.embedded import Machine, Pager
from diffengine.hypervisor.machine import MachineError
from diffengine.hypervisor.programs import Guest, GuestResult
from diffengine.hypervisor.protocol import Outcome
from diffengine.native import NONE, EncodeOptions, Encoding, NativeError, PageEncoder, Store, checksums
from page_fixtures import PAGE, Pages, random_page, text_page

PAGES = [text_page(1), text_page(2), random_page(3), text_page(1), bytes(PAGE)]


@dataclass
class Host:
    """Domains with equal pages on one machine, a pager for them, and objects of the pages in a store."""

    machine: Machine
    pager: Pager
    store: Store
    pages: Pages
    domids: Sequence[int]
    objects: NDArray[np.uint32]

    def evict(self, domid: int, gfns: Sequence[int], objects: Sequence[int]) -> list[int]:
        return self.pager.evict(
            np.full(len(gfns), domid, np.uint16), np.array(gfns, np.uint32), np.array(objects, np.uint32)
        ).tolist()

    def share(self, source: tuple[int, int], client: tuple[int, int]) -> int:
        (source_domid, source_gfn), (client_domid, client_gfn) = source, client
        (result,) = self.pager.share(
            np.array([source_domid], np.uint16),
            np.array([source_gfn], np.uint32),
            np.array([client_domid], np.uint16),
            np.array([client_gfn], np.uint32),
        )
        return int(result)

    def run_guest(self, domid: int, content: Pages, write_fraction: float = 0.2) -> GuestResult:
        return Guest(self.machine, domid, content.addresses, 2000, write_fraction, seed=1).join()


@contextmanager
def host(pages: Sequence[bytes] = PAGES, domains: int = 2) -> Iterator[Host]:
    machine, held = Machine(len(pages) * domains + 16), Pages(pages)
    domids = [machine.create_domain(held.addresses) for _ in range(domains)]
    with Store(1 << 20) as store:
        batch = PageEncoder().encode(EncodeOptions(Encoding.LZ4), held.addresses, np.zeros(len(held), np.uint64))
        none, objects = np.full(len(held), NONE, np.uint32), np.full(len(held), NONE, np.uint32)
        numbers = np.arange(len(held), dtype=np.uint32)
        sums = checksums(held.addresses)
        store.put(batch.addresses(), batch.sizes, batch.encodings, sums, numbers, none, objects)
        pager = Pager(machine, store)
        for domid in domids:
            pager.add_domain(domid, len(pages))
        try:
            yield Host(machine, pager, store, held, domids, objects)
        finally:
            pager.close()


def test_a_domain_s_frames_are_counted_by_the_kernel() -> None:
    machine = Machine(1000)
    assert machine.resident_bytes() < 100 * PAGE
    before = machine.resident_bytes()
    machine.create_domain(Pages(PAGES * 20).addresses)
    assert machine.resident_bytes() - before == 100 * PAGE
    accounting = machine.accounting()
    assert (accounting.frames, accounting.used, accounting.free) == (1000, 100, 900)


def test_a_machine_that_is_too_small_says_so_and_keeps_nothing() -> None:
    machine = Machine(3)
    with pytest.raises(MachineError, match="the machine has no frames left for 2 pages; make it larger"):
        machine.create_domain(Pages(PAGES).addresses)
    assert (machine.accounting().free, machine.domains()) == (3, ())
    with pytest.raises(MachineError, match="making a machine of 0 frames"):
        Machine(0)
    with pytest.raises(MachineError, match="creating a domain"):
        Machine(3).create_domain(np.empty(0, np.uint64))


def test_sharing_frees_the_client_s_frame_and_a_write_brings_a_copy() -> None:
    with host() as on:
        one, two = on.domids
        before = on.machine.resident_bytes()
        assert on.share((one, 0), (two, 0)) == Outcome.DONE
        assert on.share((one, 0), (one, 3)) == Outcome.DONE
        assert on.machine.resident_bytes() == before - 2 * PAGE
        assert on.machine.accounting().sharing_saved == 2
        result = on.run_guest(one, on.pages)
        assert result.wrong_bytes == 0 and result.cow_breaks == 2
        assert on.run_guest(two, on.pages, write_fraction=0).wrong_bytes == 0


def test_outcomes_are_the_pager_s() -> None:
    names = [name for name in dir(lib) if name.startswith("DE_PROPOSAL_")]
    assert {name: getattr(lib, name) for name in names} == {f"DE_PROPOSAL_{each.name}": each.value for each in Outcome}


def test_proposals_are_checked() -> None:
    with host() as on:
        one, two = on.domids
        unknown = int(on.objects.max()) + 1000
        objects = on.objects.tolist()
        assert on.evict(one, [0, 1, 2], [objects[1], unknown, objects[2]]) == [
            Outcome.DIFFERS,
            Outcome.NO_OBJECT,
            Outcome.DONE,
        ]
        assert on.evict(one, [2], [objects[2]]) == [Outcome.NO_PAGE]
        assert on.evict(99, [0], [objects[0]]) == [Outcome.NO_DOMAIN]
        assert on.share((two, 0), (two, 1)) == Outcome.DIFFERS
        assert on.share((two, 0), (99, 0)) == Outcome.NO_DOMAIN
        assert on.share((two, 0), (two, len(PAGES))) == Outcome.INVALID
        # A page stays nominated for the one or the other.
        assert on.evict(two, [0], [objects[0]]) == [Outcome.BUSY]
        assert on.share((one, 0), (two, 3)) == Outcome.BUSY
        assert on.run_guest(two, on.pages).wrong_bytes == 0
        assert on.run_guest(one, on.pages).wrong_bytes == 0


def test_evicted_pages_come_back_at_the_guest_s_touch() -> None:
    with host() as on:
        one, two = on.domids
        before = on.machine.resident_bytes()
        assert on.evict(one, range(5), on.objects.tolist()) == [Outcome.DONE] * 5
        assert on.machine.resident_bytes() == before - 5 * PAGE
        assert on.pager.statistics().evicted == 5
        # Its own references keep the objects.
        on.store.release(on.objects)
        result = on.run_guest(one, on.pages)
        assert (result.wrong_bytes, result.faults, len(result.fault_ns)) == (0, 5, 5)
        assert (result.fault_ns > 0).all()
        assert result.reads + result.writes == 2000
        statistics = on.pager.statistics()
        assert (statistics.evicted, statistics.loads, statistics.corrupt) == (0, 5, 0)
        assert 0 < statistics.rebuild_us["p50"] <= statistics.rebuild_us["p99"]
        assert on.machine.resident_bytes() == before


def test_restore_brings_everything_back() -> None:
    with host() as on:
        on.evict(on.domids[1], range(5), on.objects.tolist())
        on.pager.restore(on.domids[1])
        assert on.pager.statistics().evicted == 0
        result = on.run_guest(on.domids[1], on.pages)
        assert (result.wrong_bytes, result.faults) == (0, 0)
        with pytest.raises(NativeError, match="bringing back the pages of domain 99"):
            on.pager.restore(99)


def test_a_guest_counts_every_byte_that_is_not_what_it_must_be() -> None:
    with host() as on:
        wrong = bytearray(PAGES[2])
        wrong[5] ^= 1
        wrong[4095] ^= 1
        expected = Pages([*PAGES[:2], bytes(wrong), *PAGES[3:]])
        result = on.run_guest(on.domids[0], expected, write_fraction=0)
        assert result.reads == 2000
        assert 300 < result.wrong_bytes / 2 < 500
        assert result.wrong_bytes % 2 == 0


def test_a_domain_has_one_pager() -> None:
    with host() as on:
        with pytest.raises(NativeError, match=f"taking over the paging of domain {on.domids[0]}"):
            on.pager.add_domain(on.domids[0], len(PAGES))
        with pytest.raises(NativeError, match="taking over the paging of domain 99"):
            on.pager.add_domain(99, 5)
