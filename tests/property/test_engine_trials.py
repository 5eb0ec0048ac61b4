# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials of shared pages: what they may take and what they win, and that whoever looks finds little less saved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffengine.engine import EngineOptions
from diffengine.engine.trials import LEAST_TAKEN, MOST_SHARERS, MOST_TAKEN, affordable, frames_won
from diffengine.native import PAGE_BYTES
from engine_host import PAGE, Bench, bench, random_pages, text_pages

NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
sharers = st.lists(st.integers(1, MOST_SHARERS), max_size=50)


@given(sharers, st.integers(0, 200))
def test_the_smallest_groups_are_tried_as_long_as_there_is_something_to_spend(sizes: list[int], frames: int) -> None:
    sizes_array = np.array(sizes, dtype=np.uint16)
    chosen = affordable(sizes_array, frames)
    takes = int((sizes_array[chosen] - 1).sum())
    assert takes <= frames
    if not chosen.all():
        next_one = int(sizes_array[~chosen].min())
        assert takes + next_one - 1 > frames
        assert not chosen.any() or sizes_array[chosen].max() <= next_one


@given(st.lists(st.tuples(st.integers(1, MOST_SHARERS), st.sampled_from("toc")), max_size=50))
def test_what_was_won_is_what_whole_groups_show(groups: list[tuple[int, str]]) -> None:
    """Of groups of so many sharers: t: all private; o: out as one object; c: changed since."""
    object_bytes, won = 1000, 0.0
    others, has_frame, out = [], [], []
    for size, state in groups:
        others += [size - 1] * size
        has_frame += [state == "t"] * size
        out += [state == "o"] * size
        won += {"t": 1 - size, "o": 1 - object_bytes / PAGE_BYTES}.get(state, 0.0)
    saved = np.where(out, PAGE_BYTES - object_bytes, 0).astype(np.uint16)
    counted = frames_won(np.array(others, dtype=np.uint8), np.array(has_frame, bool), np.array(out, bool), saved)
    assert counted == pytest.approx(won)


# Frames that the store takes before it has anything, and between objects.
LOSSES = 16


def used_frames(run: Bench) -> float:
    return run.machine.memory().used + run.pager.counters().store_bytes / PAGE


@pytest.mark.parametrize("guests", [2, 4])
def test_at_no_moment_trials_take_more_than_they_may(guests: int) -> None:
    pages = text_pages(2000)
    with bench([pages.copy() for _ in range(guests)], NO_LIMITS) as run:
        run.sweep(3)
        assert run.machine.memory().used == 2000
        may_take = max(MOST_TAKEN * 2000 * guests, LEAST_TAKEN)
        lowest = highest = used_frames(run)
        for _ in range(150):
            run.sweep(1)
            highest = max(highest, used_frames(run))
            lowest = min(lowest, used_frames(run))
        assert 2000 + may_take / 2 < highest <= 2000 + may_take + LOSSES
        assert lowest < 1000
        assert run.read_all(0) == 0


def test_shared_pages_that_do_not_compress_take_as_much_as_before() -> None:
    pages = random_pages(200)
    with bench([pages, pages.copy(), pages.copy()], NO_LIMITS) as run:
        run.sweep(3)
        for _ in range(100):
            run.sweep(1)
            assert used_frames(run) <= 200 + LEAST_TAKEN + LOSSES
        assert 0 < run.machine.memory().used < 200
        assert used_frames(run) <= 200 + LOSSES
        assert run.read_all(0) == 0
