# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine on the embedded machine: what it saves, what it leaves, what its limits stop."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions, Policy, State, Technique
from diffengine.engine.limits import least_idle
from diffengine.hypervisor.embedded import Machine, Pager
from diffengine.hypervisor.protocol import Capabilities, Domids, Gfns, NewObjects, ObjectIds, Outcome, Results
from diffengine.native import NONE, Encoding, checksums
from engine_host import PAGE, Bench, Pages, addresses, bench, random_pages, similar_pages, text_pages

# Enough sweeps for the default policy: two quiet visits, C3, C4, a model.
ENOUGH_SWEEPS = 16
NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
ALL = {state: tuple(Technique) for state in State}


def saved_frames(run: Bench) -> int:
    return sum(map(len, run.contents)) - run.machine.memory().used


def only(*techniques: Technique) -> EngineOptions:
    allowed = dict.fromkeys((State.C2, State.C3, State.C4), techniques)
    return replace(NO_LIMITS, policy=Policy("only", allowed))


def test_identical_and_zero_pages_share_frames() -> None:
    pages = np.concatenate([random_pages(100), random_pages(100), np.zeros((50, PAGE), dtype=np.uint8)])
    with bench([pages, pages.copy()], only(Technique.SHARE)) as run:
        run.sweep(2)
        # 400 pages of 100 contents, and 100 zero pages.
        assert saved_frames(run) == 300 + 99
        assert run.engine.report().saved_by["sharing"] == 399 * PAGE
        assert run.read_all(0) == run.read_all(1) == 0


def test_a_frame_has_no_more_sharers_than_the_host_allows() -> None:
    with bench([np.zeros((1000, PAGE), dtype=np.uint8)], only(Technique.SHARE)) as run:
        run.sweep(5)
        assert saved_frames(run) == 1000 - 4
        assert "share_full" not in run.engine.report().reasons


def test_a_mapped_page_does_not_keep_others_from_sharing() -> None:
    pages = np.concatenate([np.zeros((50, PAGE), dtype=np.uint8), random_pages(10)])
    with bench([pages, pages.copy()], only(Technique.SHARE)) as run:
        # The first page of each content, as a device model holds it.
        mapped = np.array([0, *range(50, 60)], dtype=np.uint32)
        with run.machine.map(run.domids[0], mapped):
            run.sweep(3)
            assert saved_frames(run) == 98
        run.sweep(2)
        assert saved_frames(run) == 99 + 10
        assert run.read_all(0) == run.read_all(1) == 0


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_the_number_of_passes_does_not_matter(passes: int) -> None:
    pages = random_pages(300)[np.random.default_rng(1).integers(0, 200, 600)].copy()
    contents = len(np.unique(pages[:, :16], axis=0))
    with bench([pages], replace(only(Technique.SHARE), passes=passes)) as run:
        run.sweep(2 * passes + 1)
        assert run.machine.memory().used == contents


def test_nothing_but_zero_pages_leaves_its_trust_group() -> None:
    pages = np.concatenate([random_pages(40), np.zeros((10, PAGE), dtype=np.uint8)])
    with bench([pages, pages.copy(), pages.copy()], only(Technique.SHARE), ["a", "b", "b"]) as run:
        run.sweep(3)
        frames = [run.mapped_frames(number, range(50)) for number in range(3)]
        assert np.intersect1d(frames[0][:40], frames[1][:40]).size == 0
        assert (frames[1][:40] == frames[2][:40]).all()
        assert len(np.unique(np.concatenate([each[40:] for each in frames]))) == 1


def test_patches_stay_within_their_trust_group() -> None:
    pages = similar_pages(2)
    with bench([pages[:1].copy(), pages[1:].copy()], only(Technique.REFERENCE, Technique.PATCH), ["a", "b"]) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 0
    with bench([pages[:1].copy(), pages[1:].copy()], only(Technique.REFERENCE, Technique.PATCH)) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 2


def test_similar_pages_become_patches_of_one_that_is_out_too() -> None:
    with bench([similar_pages(200)], only(Technique.REFERENCE, Technique.PATCH)) as run:
        run.sweep(ENOUGH_SWEEPS)
        report = run.engine.report()
        assert report.pages["patched"] >= 190
        assert run.pager.counters().store_bytes < 200 * 300
        assert run.read_all(0) == 0


def test_c3_pages_take_the_fast_patch_form_and_c4_pages_the_dense_one() -> None:
    with bench([np.concatenate([similar_pages(100), text_pages(200)])], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        pages = run.engine.report().pages
        assert pages["patched"] >= 90 and pages["compressed"] >= 200
        # LZ4 needs 1,500 bytes for these texts.
        assert run.pager.counters().store_bytes < 200 * 1300 + 100 * 300
        assert run.read_all(0) == 0


def test_what_does_not_compress_stays_and_is_tried_once() -> None:
    with bench([random_pages(64)], only(Technique.COMPRESS)) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 0
        assert run.engine.report().reasons["incompressible"] == 64


def test_pages_that_come_back_are_left_alone_for_longer() -> None:
    with bench([text_pages(100)], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 100
        assert run.read_all(0) == 0
        run.sweep(5)
        report = run.engine.report()
        assert sum(report.refaults.values()) == 100
        assert report.pages["resident"] == 100
        run.sweep(8)
        assert run.pager.counters().evicted == 100


def test_refault_limit_stops_evictions() -> None:
    options = replace(NO_LIMITS, refault_limit=50, visit_interval_s=0.5)
    with bench([text_pages(200)], options) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.read_all(0, operations=400) == 0
        out = run.pager.counters().evicted
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == out
        assert run.engine.report().reasons["refault_limit"] > 0


class NotingPager(Pager):
    """Knows which gfns were to be evicted since it was last asked."""

    asked: list[int] = []

    def evict(self, domids: Domids, gfns: Gfns, objects: ObjectIds) -> Results:
        self.asked = [*self.asked, *gfns.tolist()]
        return super().evict(domids, gfns, objects)


def test_near_the_refault_limit_only_pages_go_that_were_idle_for_long() -> None:
    limit, c4_visits = 230, 3
    options = replace(NO_LIMITS, refault_limit=limit, c4_visits=c4_visits, visit_interval_s=0.5)
    with bench([text_pages(200)], options, pager_type=NotingPager) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 200
        assert run.read_all(0, operations=400) == 0
        run.sweep(2)
        (refaults,) = run.engine.report().refaults.values()
        assert limit / 2 < refaults < limit
        needed = least_idle(limit / (limit - refaults), c4_visits)
        run.pager.asked = []  # type: ignore[attr-defined]
        while not run.pager.asked:  # type: ignore[attr-defined]
            idle = run.engine._table.idle.copy()
            run.sweep(1)
        # They are visited once more before they go, and a visit may count for several.
        assert min(idle[run.pager.asked]) + run.engine._length.weight >= needed  # type: ignore[attr-defined]
        assert max(idle) > c4_visits + 2


def test_shared_pages_are_not_made_private_in_numbers_when_nothing_may_be_evicted() -> None:
    pages = text_pages(200)
    with bench([pages, pages.copy()], replace(NO_LIMITS, refault_limit=0)) as run:
        run.sweep(4)
        assert run.machine.memory().used == 200
        for _ in range(80):
            run.sweep(1)
            assert run.machine.memory().used <= 235
        assert run.pager.counters().evictions == 0


def test_min_resident_and_evicted_share_are_kept_to() -> None:
    with bench([text_pages(100)], NO_LIMITS, min_resident=70) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 30
        assert run.engine.report().reasons["min_resident"] > 0
    with bench([text_pages(100)], replace(NO_LIMITS, evicted_share_limit=0.4)) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 40
        assert run.engine.report().reasons["evicted_share_limit"] > 0


def test_a_full_store_stops_evictions_and_nothing_else() -> None:
    with bench([text_pages(1500)], NO_LIMITS, store_bytes=1 << 19) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.engine.report().reasons["store_full"] > 0
        assert 0 < run.pager.counters().evicted < 1500
        assert run.read_all(0) == 0


class NoSharing(Machine):
    """A host on an AMD CPU."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), sharing=False)


def test_cold_shared_pages_become_one_object() -> None:
    pages = text_pages(80)
    with bench([pages, pages.copy(), pages.copy()], NO_LIMITS) as run:
        run.sweep(3)
        assert run.machine.memory().used == 80
        run.sweep(80)
        assert run.machine.memory().used == 0
        # The objects, and their model.
        assert run.store.statistics().objects <= 80 + 1
        assert run.read_all(2) == 0


def test_shared_pages_that_are_read_stay_shared() -> None:
    pages = text_pages(20)
    with bench([pages, pages.copy()], NO_LIMITS) as run:
        run.sweep(5)
        for _ in range(60):
            run.sweep(1)
            assert run.read_all(0, 400) == run.read_all(1, 400) == 0
        assert run.pager.counters().evicted == 0
        assert run.machine.memory().used <= 22


def test_where_frames_cannot_be_shared_cold_copies_become_one_object() -> None:
    pages: Pages = np.repeat(text_pages(20), 10, axis=0)
    with bench([pages, pages.copy()], NO_LIMITS, machine_type=NoSharing) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.machine.memory().sharing_saved == 0
        assert run.pager.counters().evicted == 400
        # The objects, and their model.
        assert run.store.statistics().objects <= 20 + 1
        assert run.engine.report().reasons["host_cannot_share"] > 0
        assert run.read_all(1) == 0


def test_a_domain_that_goes_is_forgotten_and_its_pages_numbers_are_used_again() -> None:
    with bench([text_pages(100, seed=1), text_pages(60, seed=2)], NO_LIMITS) as run:
        run.sweep(4)
        run.machine.destroy_domain(run.domids[0])
        run.sweep(ENOUGH_SWEEPS)
        assert list(run.engine.report().refaults) == [run.domids[1]]
        assert run.pager.counters().evicted == 60
        before = run.engine.table_bytes
        again = text_pages(80, seed=3)
        domid = run.machine.create_domain(
            np.uint64(again.ctypes.data) + np.arange(80, dtype=np.uint64) * np.uint64(PAGE)
        )
        run.pager.add_domain(domid, 80)
        run.engine.add_domain(domid, 80, "all")
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 140
        assert run.engine.table_bytes <= before * 1.2


def test_aggressive_evicts_at_the_first_visit() -> None:
    with bench([text_pages(50)], replace(NO_LIMITS, policy=BUILT_IN_POLICIES["aggressive"])) as run:
        run.sweep(1)
        assert run.pager.counters().evicted == 50
        assert run.read_all(0) == 0


def test_compress_first_compresses_what_could_be_a_patch() -> None:
    half_random = text_pages(100)
    with bench([half_random], replace(NO_LIMITS, policy=BUILT_IN_POLICIES["compress-first"])) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.engine.report().pages["patched"] == 0
        assert run.engine.report().pages["compressed"] == 100


def test_a_user_policy_that_allows_everything_everywhere_is_aggressive() -> None:
    with bench([text_pages(30)], replace(NO_LIMITS, policy=Policy("mine", ALL))) as run:
        run.sweep(1)
        assert run.pager.counters().evicted == 30


def test_all_memory_is_accounted_for() -> None:
    with bench([np.concatenate([text_pages(200), np.zeros((100, PAGE), dtype=np.uint8)])], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        memory = run.machine.memory()
        assert memory.used * PAGE == run.machine.resident_bytes()
        counters, report = run.pager.counters(), run.engine.report()
        assert counters.store_bytes == run.store.statistics().populated_bytes
        pages = report.pages
        with_frame = pages["resident"] + pages["watched"] + pages["shared"]
        assert memory.used == with_frame - memory.sharing_saved
        saved = sum(report.saved_by.values())
        assert 300 * PAGE - saved == pytest.approx(memory.used * PAGE + counters.store_bytes, rel=0.1)


class ForgetfulPager(Pager):
    """References go between their rebuild and the put of the patches against them."""

    def put(self, objects: NewObjects) -> ObjectIds:
        gone = np.where(objects.reference_ids != NONE, np.uint32(NONE - 1), objects.reference_ids)
        return super().put(replace(objects, reference_ids=gone))


def test_references_that_go_meanwhile_cost_a_patch_and_no_more() -> None:
    with bench([similar_pages(60), similar_pages(60)], NO_LIMITS, pager_type=ForgetfulPager) as run:
        run.sweep(4)
        objects = run.store.statistics().objects
        run.sweep(ENOUGH_SWEEPS)
        assert run.engine.report().reasons["reference_gone"] > 0
        assert run.store.statistics().objects <= 120 + 1 and objects <= 120
        assert run.read_all(0) == run.read_all(1) == 0


class ReplacingPager(Pager):
    """Before the first patches are put, something happens to their references."""

    happens: Callable[[ObjectIds], None] | None = None

    def put(self, objects: NewObjects) -> ObjectIds:
        ids = objects.reference_ids[objects.reference_ids != NONE]
        if self.happens and len(ids):
            happens, self.happens = self.happens, None
            happens(ids)
        return super().put(objects)


def test_no_patch_refers_to_a_page_of_another_group_that_got_its_references_number() -> None:
    text = text_pages(1)
    similar = text.copy()
    similar[0, 1000:1064] += 1
    with bench([text, similar, text.copy()], NO_LIMITS, ["a", "a", "b"], 1, pager_type=ReplacingPager) as run:
        assert isinstance(run.pager, ReplacingPager)

        def give_number_away(ids: ObjectIds) -> None:
            assert run.read_all(0) == 0
            none = np.full(1, NONE, dtype=np.uint32)
            others = addresses(run.contents[2])
            raw = np.full(1, Encoding.RAW, dtype=np.uint8)
            new = NewObjects(others, np.full(1, PAGE, dtype=np.uint16), raw, checksums(others), none, none, NONE)
            # A number that comes free may be used again as soon as nobody can be reading the former object, and
            # after those that came free later: so some are taken before any is given back.
            while True:
                taken = [run.pager.put(new) for _ in range(32)]
                others_taken = [one for one in taken if one.tolist() != ids.tolist()]
                for one in others_taken:
                    run.pager.release(one)
                if len(others_taken) < len(taken):
                    break
                time.sleep(0.001)
            put = ids.copy()
            domids, gfns = np.array(run.domids[2:], dtype=np.uint16), np.zeros(1, dtype=np.uint32)
            assert run.pager.evict(domids, gfns, put).tolist() == [Outcome.DONE]
            run.pager.release(put)

        run.pager.happens = give_number_away
        run.engine.set_min_resident(run.domids[0], 0)
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 1
        run.engine.set_min_resident(run.domids[1], 0)
        run.sweep(2 * ENOUGH_SWEEPS)
        assert run.pager.happens is None
        assert run.engine.report().pages["patched"] == 0
        assert [run.read_all(number) for number in range(3)] == [0] * 3
