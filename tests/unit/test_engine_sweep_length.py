# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps take longer while nothing happens, and nothing is decided later for it."""

import numpy as np
import pytest

from diffengine.engine import EngineOptions
from diffengine.engine.clock import count_visit, count_visit_of_all
from diffengine.engine.visits import LONGEST_SWEEP, QUIET_SWEEPS, SweepLength
from engine_host import Bench, bench, random_pages, text_pages

INTERVAL_S = 4.0
OPTIONS = EngineOptions(seed=1, visit_interval_s=INTERVAL_S, c4_visits=2, fault_limit=1e5, reserve_mib=0)


def sweep_s(run: Bench) -> float:
    before_s = run.clock.time_s
    run.sweep(1)
    return run.clock.time_s - before_s


def test_a_quiet_sweep_makes_the_next_one_twice_as_long_and_an_event_ends_that() -> None:
    length = SweepLength()
    seen = []
    for _ in range(QUIET_SWEEPS + 3):
        length.begin_sweep(length.intervals)
        length.found(10)
        length.end_sweep(10_240, True)
        seen.append(length.intervals)
    assert seen == [1] * QUIET_SWEEPS + [2, 4, LONGEST_SWEEP]
    length.begin_sweep(4)
    assert length.weight == 4
    length.come_back(10, 10_240)
    assert length.intervals == 4
    length.come_back(11, 10_240)
    assert length.intervals == 1
    length.end_sweep(10_240, True)
    length.begin_sweep(1)
    assert (length.intervals, length.weight) == (1, 1)


def test_a_visit_counts_for_no_more_than_the_time_that_has_passed() -> None:
    length = SweepLength()
    for _ in range(QUIET_SWEEPS + 2):
        length.begin_sweep(0.0)
        length.end_sweep(1, True)
    length.begin_sweep(0.0)
    assert (length.intervals, length.weight) == (LONGEST_SWEEP, 1)
    length.begin_sweep(2.2)
    assert length.weight == 2


def test_cycles_of_several_sweeps_are_not_drawn_out() -> None:
    length = SweepLength()
    for _ in range(QUIET_SWEEPS + 2):
        length.begin_sweep(1)
        length.end_sweep(1, may_grow=False)
    length.begin_sweep(1)
    assert length.intervals == 1


@pytest.mark.parametrize("weight", [1, 3, 4])
def test_visits_are_counted_up_to_a_limit(weight: int) -> None:
    visits = np.array([0, 7, 251, 254, 255], dtype=np.uint8)
    chosen = np.array([True, False, True, True, True])
    right = [weight, 7, min(255, 251 + weight), 255, 255]
    of_all, of_some = visits.copy(), visits.copy()
    count_visit_of_all(of_all, chosen, weight)
    count_visit(of_some, np.flatnonzero(chosen), weight)
    assert of_all.tolist() == of_some.tolist() == right


def test_idle_guests_are_visited_less_often_until_they_touch_something() -> None:
    with bench([text_pages(200, 1), random_pages(50, 2)], OPTIONS) as run:
        for _ in range(40):
            if sweep_s(run) == LONGEST_SWEEP * INTERVAL_S:
                break
        else:
            raise AssertionError("sweeps do not get longer")
        assert run.engine.report().pages["compressed"] > 150
        assert run.read_all(0) == 0
        assert sweep_s(run) < LONGEST_SWEEP * INTERVAL_S
        assert sweep_s(run) == INTERVAL_S


def test_what_was_touched_often_is_watched_again_as_soon_as_ever() -> None:
    """In an idle guest with a page that was touched too soon: visits that come less often count for more."""
    with bench([random_pages(40, 2), text_pages(40, 3)], OPTIONS) as run:
        while run.engine.report().pages["compressed"] < 35:
            run.sweep(1)
        run.read_all(1)
        start_s = run.clock.time_s
        while run.engine.report().pages["compressed"] < 35:
            run.sweep(1)
            assert run.clock.time_s - start_s < 60 * INTERVAL_S
        # It has to be quiet for 2 << 2 visits, then untouched for two, and each may have to wait for a sweep's end.
        assert run.clock.time_s - start_s <= (8 + 2 + 3 + 2 * LONGEST_SWEEP) * INTERVAL_S
