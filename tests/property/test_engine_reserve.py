# SPDX-License-Identifier: GPL-2.0-or-later
"""What may come back at once finds frames, as far as the reserve goes, whatever another domain takes."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffengine.engine import Engine, EngineOptions, Policy, State, Technique
from diffengine.engine.reserve import LEAST_TRIM, PAGES_PER_MIB, is_due, shares_of_reserve
from diffengine.hypervisor.embedded import Machine
from engine_host import Bench, bench, random_pages, text_pages

PATIENCE_S = 60.0
NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
SHARING = Policy("sharing", dict.fromkeys((State.C2, State.C3, State.C4), (Technique.SHARE,)))
COMPRESSION = Policy("compression", {State.C4: (Technique.COMPRESS,)})
EVERYTHING = Policy("everything", {State.C2: (Technique.SHARE,), State.C4: (Technique.SHARE, Technique.COMPRESS)})


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(0, 10**6), st.integers(-5, 10**6))
def test_nobody_gets_more_than_it_may_need_and_all_together_not_more_than_there_is(
    needs: list[int], reserve: int, free: int
) -> None:
    shares = shares_of_reserve(np.array(needs, dtype=np.int64), reserve, free)
    there_is = max(0, min(reserve, free))
    assert all(0 <= share <= need for share, need in zip(shares, needs, strict=True))
    assert there_is - len(needs) < shares.sum() <= there_is or shares.sum() == sum(needs) <= there_is


def test_a_claim_is_changed_when_it_is_far_from_what_it_should_be() -> None:
    assert is_due(0, 1) and is_due(74, 100) and not is_due(75, 100) and not is_due(164, 100) and is_due(165, 100)
    assert is_due(1, 0) and not is_due(0, 0) and not is_due(1250, 1000) and is_due(1251, 1000)


class Hog:
    """A domain that takes every frame that it can have."""

    def __init__(self, run: Bench) -> None:
        self._machine, self._lib, ffi = run.machine, run.machine.binding.lib, run.machine.binding.ffi
        self._gfns, self._taken = run.machine.memory().frames, 0
        domid = ffi.new("uint16_t *")
        assert self._lib.de_machine_domain_create(self._machine.handle, self._gfns, domid) == 0
        self.domid = int(domid[0])

    def take(self) -> None:
        ffi = self._machine.binding.ffi
        rest = ffi.new("uint32_t[]", list(range(self._taken, self._gfns)))
        taken = self._lib.de_machine_populate(self._machine.handle, self.domid, rest, ffi.NULL, len(rest), ffi.NULL)
        assert taken >= 0
        self._taken += taken


def touch(run: Bench, number: int, gfns: Sequence[int], after_each: Callable[[], None]) -> list[int] | None:
    """The guest writes a byte to each page. Errors; None: it waits for a frame."""
    lib, ffi = run.machine.binding.lib, run.machine.binding.ffi
    vcpu = ffi.new("struct de_vcpu **")
    assert lib.de_vcpu_create(run.machine.handle, run.domids[number], vcpu) == 0
    errors: list[int] = []

    def write() -> None:
        for gfn in gfns:
            errors.append(int(lib.de_machine_guest_write(vcpu[0], gfn, 0, b"x", 1)))
            after_each()

    guest = threading.Thread(target=write, daemon=True)
    guest.start()
    guest.join(PATIENCE_S)
    if guest.is_alive():
        return None
    lib.de_vcpu_free(vcpu[0])
    return errors


def claimed(run: Bench) -> list[int]:
    frames = [run.machine.domain_frames(domid) for domid in run.domids]
    return [each.claimed for each in frames if each]


@given(st.sampled_from([SHARING, COMPRESSION, EVERYTHING]), st.integers(1, 80), st.integers(1, 100), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_burst_as_large_as_the_reserve_finds_frames_while_another_domain_takes_all_it_can(
    policy: Policy, pages: int, reserve: int, seed: int
) -> None:
    content = text_pages(pages, seed)
    with bench(
        [content, content.copy()], replace(NO_LIMITS, policy=policy, reserve_mib=reserve / PAGES_PER_MIB)
    ) as run:
        run.sweep(16)
        places = run.engine.report().pages
        without_frames = places["shared"] + places["patched"] + places["compressed"]
        assert without_frames > 0
        promised = claimed(run)
        assert sum(promised) >= min(reserve, without_frames) * 3 // 4 - len(promised)
        hog = Hog(run)
        hog.take()
        memory = run.machine.memory()
        assert memory.free == memory.claimed == sum(promised)
        for number, count in enumerate(promised):
            burst = np.random.default_rng(seed).permutation(pages)[:count].tolist()
            errors = touch(run, number, burst, hog.take)
            if errors is None:
                # Lets it go on, for the test to end.
                run.machine.destroy_domain(hog.domid)
            assert errors == [0] * len(burst)
        run.machine.destroy_domain(hog.domid)


def test_a_claim_that_has_grown_with_evictions_is_trimmed() -> None:
    reserve = 100
    with bench([text_pages(2000)], replace(NO_LIMITS, reserve_mib=reserve / PAGES_PER_MIB)) as run:
        run.sweep(16)
        assert run.pager.counters().evicted == 2000
        run.sweep(1)
        assert reserve * 3 // 4 <= claimed(run)[0] <= reserve + LEAST_TRIM
        run.engine.set_options(replace(NO_LIMITS, reserve_mib=0))
        run.sweep(1)
        assert claimed(run) == [0]


def test_the_reserve_is_what_is_free_if_that_is_less_and_is_asked_for_again() -> None:
    with bench([text_pages(400)], replace(NO_LIMITS, reserve_mib=0)) as run:
        run.sweep(16)
        assert run.pager.counters().evicted == 400
        hog = Hog(run)
        hog.take()
        run.engine.set_options(replace(NO_LIMITS, reserve_mib=300 / PAGES_PER_MIB))
        run.sweep(1)
        assert claimed(run) == [0]
        run.machine.destroy_domain(hog.domid)
        run.sweep(1)
        assert claimed(run) == [300]


class RefusingMachine(Machine):
    """Promises at most so many frames, as if somebody else had taken the others just now."""

    most = 100

    def claim(self, domid: int, frames: int) -> bool:
        own = self.domain_frames(domid)
        return own is not None and frames <= own.own + self.most and super().claim(domid, frames)


def test_what_is_refused_is_counted_as_its_own_domain_s() -> None:
    options = replace(NO_LIMITS, reserve_mib=300 / PAGES_PER_MIB)
    # All that the second one has comes back at once: it needs no reserve.
    with bench([text_pages(400), random_pages(40)], options, machine_type=RefusingMachine) as run:
        run.sweep(20)
        by_domain = {each.domid: each.reasons or {} for each in run.engine.domain_reports()}
        assert "reserve_refused" not in by_domain[run.domids[1]]


def test_what_is_refused_is_counted_and_less_is_asked_for() -> None:
    options = replace(NO_LIMITS, reserve_mib=300 / PAGES_PER_MIB)
    with bench([text_pages(400)], options, machine_type=RefusingMachine) as run:
        run.sweep(20)
        assert 0 < claimed(run)[0] <= RefusingMachine.most
        assert run.engine.report().reasons["reserve_refused"] > 0
        machine = run.machine
        assert isinstance(machine, RefusingMachine)
        machine.most = 10**6
        run.sweep(1)
        assert claimed(run) == [300]


def test_what_somebody_else_has_claimed_is_not_asked_for() -> None:
    with bench([text_pages(400), random_pages(50)], replace(NO_LIMITS, reserve_mib=0)) as run:
        run.sweep(16)
        assert run.pager.counters().evicted == 400
        free, left = run.machine.memory().free, 30 + 2 * run.machine.capabilities().least_unclaimed
        own = run.machine.domain_frames(run.domids[1])
        assert own and run.machine.claim(run.domids[1], own.own + free - left)
        run.engine.set_options(replace(NO_LIMITS, reserve_mib=free / PAGES_PER_MIB))
        run.sweep(1)
        assert claimed(run) == [30, free - left]
        assert "reserve_refused" not in run.engine.report().reasons


def test_a_claim_of_somebody_else_is_left_alone_and_a_domain_that_is_left_keeps_none() -> None:
    with bench([text_pages(100), random_pages(50)], NO_LIMITS) as run:
        assert run.machine.claim(run.domids[1], 60)
        run.sweep(16)
        assert claimed(run) == [100, 10]
        run.engine.remove_domain(run.domids[0])
        run.engine.remove_domain(run.domids[1])
        assert claimed(run) == [0, 10]


def test_an_engine_that_ends_gives_its_claims_back_and_no_others() -> None:
    with bench([text_pages(100), random_pages(50)], NO_LIMITS) as run:
        assert run.machine.claim(run.domids[1], 60)
        run.sweep(16)
        assert claimed(run) == [100, 10]
        run.engine.close()
        assert claimed(run) == [0, 10]


def test_claims_of_a_killed_engine_are_the_next_one_s() -> None:
    with bench([text_pages(100), text_pages(100, 1)], NO_LIMITS) as run:
        run.sweep(16)
        assert claimed(run) == [100, 100]
        run.engine = Engine(run.machine, run.pager, NO_LIMITS, run.clock)
        for domid in run.domids:
            run.engine.add_domain(domid, 100, "all")
        run.engine.remove_domain(run.domids[0])
        assert claimed(run) == [0, 100]
        # All of the second one's pages come back before the new engine looks.
        run.pager.restore(run.domids[1])
        run.sweep(1)
        assert claimed(run) == [0, 0]


def test_a_full_host_begins_with_what_takes_no_frame_and_its_reserve_leaves_some_to_share_with() -> None:
    cold, same = text_pages(200), random_pages(50)
    options = replace(NO_LIMITS, policy=EVERYTHING)
    assert options.reserve_mib * PAGES_PER_MIB > 2 * 250
    with bench([np.concatenate([cold, same]), np.concatenate([text_pages(200, 1), same])], options) as run:
        Hog(run).take()
        assert run.machine.memory().free == 0
        run.sweep(24)
        report = run.engine.report()
        assert report.reasons["share_no_memory"] > 0
        assert report.pages["compressed"] == 400
        memory = run.machine.memory()
        assert 0 < memory.free - memory.claimed <= 100
        # What could not be shared is watched since; touched, it is shared when it is quiet again.
        assert [run.read_all(number) for number in (0, 1)] == [0, 0]
        run.sweep(24)
        pages = run.engine.report().pages
        assert (pages["compressed"], pages["shared"]) == (400, 100)
        assert [run.read_all(number) for number in (0, 1)] == [0, 0]
