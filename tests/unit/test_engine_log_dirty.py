# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine with the host's log of written pages in the place of most digests."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from diffengine.engine import EngineOptions
from diffengine.engine.written import LOOK_AGAIN_RUN, LOOK_AGAIN_SWEEPS, MOST_MISSED, is_blind, look_again
from diffengine.hypervisor.embedded import Machine
from diffengine.hypervisor.programs import Guest
from diffengine.hypervisor.protocol import Capabilities
from engine_host import PAGE, Bench, Pages, addresses, bench, random_pages, similar_pages, text_pages

OPTIONS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)


def contents() -> list[Pages]:
    """Pages for every technique, in two domains."""
    first = np.concatenate([random_pages(60), text_pages(60), similar_pages(60), np.zeros((20, PAGE), dtype=np.uint8)])
    return [first, first[::-1].copy()]


def run_guest(run: Bench, number: int, seed: int) -> None:
    """Reads and writes of random pages, whatever earlier ones left there."""
    Guest(run.machine, run.domids[number], addresses(run.contents[number]), 60, 0.5, seed).join()


def states(run: Bench) -> dict[str, NDArray[np.generic]]:
    table = run.engine._table
    return {name: getattr(table, name).copy() for name in ("keys", "quiet", "idle", "backoff", "place", "saved")}


def test_a_log_gives_the_same_clock_states_as_digests() -> None:
    with bench(contents(), OPTIONS) as digests, bench(contents(), OPTIONS, log_dirty=True) as log:
        for sweep in range(30):
            for run in (digests, log):
                if sweep % 3 == 2:
                    run_guest(run, sweep % 2, sweep)
                run.sweep(1)
            expected = states(digests)
            for name, values in states(log).items():
                np.testing.assert_array_equal(values, expected[name], err_msg=f"{name} after sweep {sweep}")
        assert digests.pager.counters().evictions > 100
        assert digests.engine.report().saved_by["sharing"] > 0
        reasons = log.engine.report().reasons
        assert not [reason for reason in reasons if reason.startswith("log_dirty")]


def test_an_engine_that_ends_leaves_no_log_on() -> None:
    with bench([random_pages(10)], OPTIONS, log_dirty=True) as run:
        assert not run.machine.log_dirty(run.domids[0], True), "it is on"
        run.engine.close()
        assert run.machine.log_dirty(run.domids[0], True)


def test_pages_that_were_not_written_are_not_digested() -> None:
    with bench([random_pages(100)], OPTIONS, log_dirty=True) as run:
        run.sweep(1)
        written, looked = run.engine._written, [0]
        to_digest = written.to_digest

        def count(*arguments: object) -> NDArray[np.bool_]:
            looked.append(int((needed := to_digest(*arguments)).sum()))  # type: ignore[arg-type]
            return needed

        written.to_digest = count  # type: ignore[method-assign]
        run.sweep(1)
        assert sum(looked) == 0
        run_guest(run, 0, 1)
        run.sweep(1)
        assert 0 < sum(looked) < 60


@pytest.mark.parametrize("log_dirty", [False, True])
def test_what_a_device_model_writes_is_noticed(log_dirty: bool) -> None:
    pages = random_pages(100)
    with bench([pages, pages.copy()], OPTIONS, log_dirty=log_dirty) as run:
        run.sweep(3)
        assert run.machine.memory().sharing_saved == 100
        run.write_pages(0, range(100), 7)
        run.write_pages(1, range(100), 7)
        run.sweep(LOOK_AGAIN_SWEEPS + 3)
        # They are alike again, which only a new digest can tell.
        assert run.machine.memory().sharing_saved >= 190
        missed = run.engine.report().reasons.get("log_dirty_missed_pages", 0)
        # A private copy is told; what was private in place is not.
        assert missed == 0


def test_a_write_that_nobody_told_of_is_noticed_by_and_by() -> None:
    with bench([random_pages(50)], OPTIONS, log_dirty=True) as run:
        run.sweep(2)
        run.write_pages(0, range(50), 9)
        run.sweep(LOOK_AGAIN_SWEEPS + 3)
        # The random pages that it took them for can be neither shared nor evicted.
        assert run.machine.memory().used <= 1


def test_a_log_that_somebody_else_uses_is_left_to_him() -> None:
    with bench([random_pages(10)], OPTIONS) as run:
        domid = run.domids[0]
        run.engine.remove_domain(domid)
        assert run.machine.log_dirty(domid, True)
        run.engine.add_domain(domid, 10, "all", log_dirty=True)
        run.sweep(3)
        assert run.engine.report().reasons["log_dirty_refused"] == 1
        assert not run.machine.log_dirty(domid, True), "it is still on"


def test_a_log_that_fails_is_given_up_for_digests() -> None:
    class Failing(Machine):
        """As a Xen that could not allocate a leaf of its bitmap."""

        fails = False

        def take_dirty(self, domid: int, gfns: int) -> NDArray[np.bool_] | None:
            return None if self.fails else super().take_dirty(domid, gfns)

    with bench([random_pages(50)], OPTIONS, machine_type=Failing, log_dirty=True) as run:
        run.sweep(2)
        run.machine.fails = True  # type: ignore[attr-defined]
        run.write_pages(0, range(50), 9)
        run.sweep(3)
        assert run.engine.report().reasons["log_dirty_failed"] == 1
        assert run.machine.memory().sharing_saved == 49


def test_a_log_that_was_turned_off_by_others_is_found_blind() -> None:
    pages = 2 * MOST_MISSED
    with bench([random_pages(pages)], OPTIONS, log_dirty=True) as run:
        run.sweep(2)
        run.machine.log_dirty(run.domids[0], False)
        run.sweep(LOOK_AGAIN_SWEEPS - 3)
        # The guest's own writes, which nobody logs any more.
        Guest(run.machine, run.domids[0], addresses(run.contents[0]), 10 * pages, 0.5, seed=1).join()
        run.sweep(3)
        assert run.engine.report().reasons["log_dirty_blind"] == 1


def test_a_domain_that_is_to_be_migrated_has_no_log() -> None:
    with bench([random_pages(20)], OPTIONS, log_dirty=True) as run:
        run.sweep(2)
        run.engine.stop_log_dirty(run.domids[0])
        assert run.machine.log_dirty(run.domids[0], True), "the migration gets it"
        run.write_pages(0, range(20), 9)
        run.sweep(3)
        assert run.machine.memory().sharing_saved == 19


def test_a_host_without_a_log_is_said_to_have_none() -> None:
    class WithoutLog(Machine):
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities(), log_dirty=False)

    with bench([random_pages(10)], OPTIONS, machine_type=WithoutLog, log_dirty=True) as run:
        run.sweep(1)
        assert run.engine.report().reasons["log_dirty_host_cannot"] == 1


def test_every_page_has_its_turn_to_be_looked_at_again() -> None:
    gfns = np.arange(2 * LOOK_AGAIN_SWEEPS * LOOK_AGAIN_RUN, dtype=np.uint32)
    turns = sum(look_again(gfns, sweep).astype(int) for sweep in range(LOOK_AGAIN_SWEEPS))
    assert (np.asarray(turns) == 1).all()


def test_a_log_is_blind_when_it_misses_more_than_it_tells() -> None:
    assert not is_blind(0, MOST_MISSED)
    assert is_blind(MOST_MISSED, MOST_MISSED + 1)
    assert not is_blind(1000, 1000)
