# SPDX-License-Identifier: GPL-2.0-or-later
"""Each limit holds on the machine, for the domain that it is meant for, and as soon as it is told."""

from dataclasses import replace

import numpy as np
import pytest

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions, Policy, State, Technique
from diffengine.engine.pace import Work
from diffengine.engine.pages import Place
from diffengine.engine.swapping import BATCH_PAGES, LEFT_BYTES
from diffengine.hypervisor.embedded import Machine, Pager
from diffengine.hypervisor.protocol import Capabilities, Domids, Gfns, Results
from engine_host import PAGE, Bench, Clock, addresses, bench, random_pages, similar_pages, text_pages

ENOUGH_SWEEPS = 16
NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
PATCHING = Policy("patching", dict.fromkeys((State.C3, State.C4), (Technique.REFERENCE, Technique.PATCH)))


def evicted(run: Bench) -> list[int]:
    """Of each domain."""
    return [
        sum(each.pages[place] for place in ("patched", "compressed", "swapped")) for each in run.engine.domain_reports()
    ]


# Watermarks.


def used_bytes(run: Bench) -> int:
    """What is measured by watermarks, from the parts that report it."""
    memory, counters = run.machine.memory(), run.pager.counters()
    tables = run.engine.table_bytes + counters.table_bytes + memory.metadata_bytes
    return memory.used * PAGE + counters.store_bytes + tables


def test_swapping_begins_at_the_high_watermark_and_ends_at_the_low_one() -> None:
    contents = np.concatenate([random_pages(300), text_pages(2000)])
    with bench([contents], replace(NO_LIMITS, high_watermark=1.0, low_watermark=1.0), swap_bytes=16 << 20) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.pager.counters().evicted == 2000
        used, total = used_bytes(run), run.machine.memory().frames * PAGE
        saved = run.engine._table.saved.astype(np.int64)
        run.engine.set_options(replace(NO_LIMITS, high_watermark=1.02 * used / total, low_watermark=0.7 * used / total))
        run.sweep(2)
        assert run.pager.counters().swap_bytes == 0
        run.engine.set_options(replace(NO_LIMITS, high_watermark=0.98 * used / total, low_watermark=0.9 * used / total))
        run.sweep(1)
        payloads = (PAGE - saved - LEFT_BYTES)[run.engine._table.place == Place.SWAPPED]
        wanted = 0.1 * used
        assert wanted <= payloads.sum() <= wanted * 1.05 + BATCH_PAGES * payloads.max()
        assert used_bytes(run) < 0.98 * used
        assert run.read_all(0) == 0


# Refaults.


def test_refaults_of_one_domain_do_not_hold_up_another() -> None:
    options = replace(NO_LIMITS, refault_limit=50, visit_interval_s=0.5)
    with bench([text_pages(200), text_pages(200, 1)], options, ["a", "b"], min_resident=100) as run:
        run.engine.set_min_resident(run.domids[0], 0)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [200, 100]
        assert run.read_all(0, operations=400) == 0
        run.sweep(1)
        run.engine.set_min_resident(run.domids[1], 0)
        run.sweep(2 * ENOUGH_SWEEPS)
        assert evicted(run)[0] < 100
        assert evicted(run)[1] == 200


def test_a_new_refault_limit_holds_at_once() -> None:
    with bench([text_pages(200)], replace(NO_LIMITS, refault_limit=0)) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [0]
        run.engine.set_options(NO_LIMITS)
        run.sweep(3)
        assert evicted(run) == [200]


# What stays resident.


def test_each_domain_keeps_its_own_minimum() -> None:
    with bench([text_pages(100), text_pages(100, 1)], NO_LIMITS, ["a", "b"], min_resident=70) as run:
        run.engine.set_min_resident(run.domids[1], 40)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [30, 60]


def test_patches_and_what_they_refer_to_keep_to_the_minimum() -> None:
    contents = similar_pages(200)
    options = replace(NO_LIMITS, policy=PATCHING)
    with bench([contents[:100].copy(), contents[100:].copy()], options, min_resident=90) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [10, 10]
        run.engine.set_min_resident(run.domids[1], 0)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run)[0] == 10
        assert evicted(run)[1] > 90


def test_a_domain_keeps_its_minimum_when_another_one_needs_references() -> None:
    first = random_pages(100)
    second = first.copy()
    second[:, 1000:1064] += 1
    with bench([first, second], replace(NO_LIMITS, policy=PATCHING), min_resident=90) as run:
        # All pages of the first one are known as cold, and none could become a patch.
        run.engine.set_min_resident(run.domids[1], 100)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [0, 0]
        run.engine.set_min_resident(run.domids[1], 0)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run)[0] <= 10
        assert evicted(run)[1] > 0
        assert run.read_all(0) == run.read_all(1) == 0


def test_references_beside_what_is_let_through_keep_to_the_minimum() -> None:
    first = random_pages(100)
    second = first.copy()
    second[:, 1000:1064] += 1
    with bench([np.concatenate([first, second])], replace(NO_LIMITS, policy=PATCHING), min_resident=190) as run:
        for _ in range(2 * ENOUGH_SWEEPS):
            run.sweep(1)
            assert evicted(run)[0] <= 10


# Nothing takes the place of what could go.


class NoSharing(Machine):
    """A host on an AMD CPU."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), sharing=False)


def test_copies_of_what_cannot_be_saved_take_no_place() -> None:
    contents = np.concatenate([random_pages(20), random_pages(20), text_pages(40)])
    with bench([contents], NO_LIMITS, min_resident=70, machine_type=NoSharing) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [10]


def test_copies_of_what_must_stay_go_alone_and_take_one_place_each() -> None:
    """The first domain is watched when it may have no more pages out."""
    text = text_pages(20)
    contents = [text.copy(), np.concatenate([text, text, text_pages(40, 1)])]
    with bench(contents, NO_LIMITS, machine_type=NoSharing) as run:
        run.sweep(3)
        assert run.engine.domain_reports()[0].pages["watched"] == 20
        run.engine.set_min_resident(run.domids[0], 20)
        run.engine.set_min_resident(run.domids[1], 70)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [0, 10]
        run.engine.set_min_resident(run.domids[1], 0)
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [0, 80]
        # The objects, and their model.
        assert run.store.statistics().objects <= 60 + 1
        assert run.read_all(0) == run.read_all(1) == 0


def test_what_does_not_compress_becomes_a_patch_or_takes_no_place_when_it_is_to_be_compressed_first() -> None:
    options = replace(NO_LIMITS, policy=BUILT_IN_POLICIES["compress-first"])
    with bench([np.concatenate([random_pages(100), similar_pages(100)])], options) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.engine.report().pages["patched"] >= 90
        assert run.read_all(0) == 0
    with bench([np.concatenate([random_pages(100), text_pages(100)])], options, min_resident=190) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [10]


# Faults.


class NotingPager(Pager):
    """Counts what was to be made private."""

    private = 0

    def unshare(self, domids: Domids, gfns: Gfns) -> Results:
        self.private += len(gfns)
        return super().unshare(domids, gfns)


def test_no_more_pages_are_watched_than_the_faults_that_may_come_allow() -> None:
    with bench([text_pages(2000)], replace(NO_LIMITS, fault_limit=0.1)) as run:
        run.sweep(3)
        assert 0 < run.engine.report().pages["watched"] < 1000
        assert run.engine.report().reasons["fault_limit"] > 1000


@pytest.mark.parametrize("sweeps", [4, ENOUGH_SWEEPS])  # touches of watched pages; loads of pages that are out
def test_faults_slow_watching_down_for_the_domain_that_has_them(sweeps: int) -> None:
    with bench([text_pages(300), text_pages(300, 1)], replace(NO_LIMITS, fault_limit=10.0), ["a", "b"]) as run:
        run.sweep(sweeps)
        rates = [run.engine._watch_rates[domid] for domid in run.domids]
        before = [rate.pages_per_s for rate in rates]
        assert run.read_all(0) == 0
        while not run.engine.report().touches[1] + run.engine.report().refaults[1]:
            wait_s = run.engine.step()
            run.clock.time_s += wait_s
        assert rates[0].pages_per_s < before[0] / 2
        assert rates[1].pages_per_s >= before[1]


def test_trials_of_shared_pages_count_as_watching() -> None:
    pages = text_pages(1000)
    with bench([pages, pages.copy()], NO_LIMITS, pager_type=NotingPager) as run:
        for rate in run.engine._watch_rates.values():
            rate.most_per_s = rate.pages_per_s = 1.0
        run.sweep(40)
        assert isinstance(run.pager, NotingPager)
        # One each time that the pager is asked what came back: eight times in a sweep.
        assert 0 < run.pager.private <= 2 * 8 * 40


def test_a_page_that_was_touched_is_not_watched_again_soon() -> None:
    with bench([text_pages(100)], NO_LIMITS) as run:
        run.sweep(3)
        assert run.engine.report().pages["watched"] == 100
        assert run.read_all(0) == 0
        # Eight visits, of which the last ones count for several where nothing changes.
        run.sweep(4)
        assert run.engine.report().pages["watched"] == 0
        run.sweep(2)
        assert run.engine.report().pages["watched"] == 100


def test_a_new_fault_limit_holds_at_once() -> None:
    with bench([text_pages(20)], replace(NO_LIMITS, fault_limit=7.0)) as run:
        run.sweep(1)
        run.engine.set_options(replace(NO_LIMITS, fault_limit=8.0))
        assert [rate.fault_limit for rate in run.engine._watch_rates.values()] == [8.0]


# Trust groups.


def test_each_trust_group_has_a_model_of_its_own() -> None:
    with bench([text_pages(100)], NO_LIMITS, ["a"]) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [100]
        assert run.pager.counters().objects == 100 + 1
        # Of a group that comes when there is another one's model.
        late = text_pages(100, 1)
        domid = run.machine.create_domain(addresses(late))
        run.pager.add_domain(domid, len(late))
        run.engine.add_domain(domid, len(late), "b")
        run.sweep(ENOUGH_SWEEPS)
        assert evicted(run) == [100, 100]
        assert run.pager.counters().objects == 200 + 2


# CPU.


class BusyClock(Clock):
    """Every page that is looked at takes a millisecond of CPU time."""

    used_s = 0.0

    def cpu_s(self) -> float:
        return self.used_s

    def worked(self, work: Work, pages: int) -> None:
        self.used_s += pages / 1000
        self.time_s += pages / 1000


def cpu_use(run: Bench, clock: BusyClock, sweeps: int) -> tuple[float, float]:
    """Share of CPU time, and seconds for a sweep."""
    start_s, used_s = clock.time_s, clock.used_s
    run.sweep(sweeps)
    seconds = clock.time_s - start_s
    return (clock.used_s - used_s) / seconds, seconds / sweeps


def test_the_engine_keeps_to_its_share_of_a_core_and_to_its_interval() -> None:
    clock = BusyClock()
    options = replace(NO_LIMITS, cpu_share=0.1, policy=Policy("nothing", {}))
    with bench([random_pages(2000)], options, clock=clock) as run:
        share, sweep_s = cpu_use(run, clock, 5)
        assert share == pytest.approx(0.1, rel=0.01)
        assert sweep_s == pytest.approx(20, rel=0.01)
        assert run.engine.report().cpu_s == pytest.approx(clock.used_s)
        run.engine.set_options(replace(options, cpu_share=1.0))
        # As many sweeps as are short though nothing changes.
        share, sweep_s = cpu_use(run, clock, 4)
        assert share == pytest.approx(0.5, rel=0.1)
        assert sweep_s == pytest.approx(options.visit_interval_s, rel=0.1)
