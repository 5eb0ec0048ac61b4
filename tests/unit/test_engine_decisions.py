# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's pure decisions: Clock states, policies, limits."""

import math
from enum import EnumType

import numpy as np
import pytest

from diffengine.array_enum import ArrayEnum
from diffengine.engine import BUILT_IN_POLICIES, Policy, State, Technique, clock
from diffengine.engine.limits import RefaultLimit, WatchRate, least_idle, room_to_evict
from diffengine.engine.pages import Place
from diffengine.engine.report import split_net
from diffengine.engine.sharing import passes_needed, table_bytes_needed
from diffengine.engine.swapping import bytes_to_free
from diffengine.hypervisor.protocol import Outcome, PageState


def u8(*values: int) -> "np.typing.NDArray[np.uint8]":
    return np.array(values, dtype=np.uint8)


@pytest.mark.parametrize("kind", [Outcome, PageState, Place, State])
def test_arrays_are_compared_with_members_as_with_their_numbers(
    kind: type[ArrayEnum], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = list(kind)
    numbers = np.array([int(member) for member in members], dtype=np.int8)

    def look_up(_kind: EnumType, name: str) -> object:
        raise AssertionError(f"{name} is looked up in Python")

    monkeypatch.setattr(EnumType, "__getattr__", look_up, raising=False)
    for index, member in enumerate(members):
        assert np.flatnonzero(numbers == member).tolist() == [index]


def test_states_follow_from_visits() -> None:
    quiet = u8(0, 1, 9, 9, 9, 9)
    idle = u8(0, 0, 0, 1, 2, 3)
    assert clock.classify(quiet, idle, 3).tolist() == [State.C1, State.C2, State.C2, State.C3, State.C3, State.C4]


def test_counts_of_visits_stop_at_their_limit() -> None:
    visits = u8(0, 254, 255)
    clock.count_visit(visits, np.array([True, True, True]))
    assert visits.tolist() == [1, 255, 255]
    clock.count_visit(visits, np.array([0]))
    assert visits.tolist() == [2, 255, 255]


def test_a_page_that_was_touched_is_watched_later_each_time() -> None:
    backoff = u8(0, 0, 0)
    clock.back_off(backoff, np.array([1, 2]), 2)
    clock.back_off(backoff, np.array([2]), 9)
    assert backoff.tolist() == [0, 2, clock.MOST_BACKOFF]
    assert clock.watchable(u8(1, 7, 127), backoff, 1).tolist() == [False, False, False]
    assert clock.watchable(u8(2, 8, 128), backoff, 1).tolist() == [True, True, True]


def test_no_page_is_watched_before_its_pass_had_its_turn() -> None:
    assert clock.watchable(u8(4, 5), u8(0, 0), 5).tolist() == [False, True]


def test_default_policy_is_the_papers_table() -> None:
    default = BUILT_IN_POLICIES["default"]
    assert default.allows(Technique.SHARE).tolist() == [False, True, True, True]
    assert default.allows(Technique.PATCH).tolist() == [False, False, True, True]
    assert default.allows(Technique.COMPRESS).tolist() == [False, False, False, True]
    assert default.allows(Technique.SWAP).tolist() == [False, False, False, True]


def test_aggressive_takes_every_page_for_c4_and_compress_first_compresses_first() -> None:
    assert all(BUILT_IN_POLICIES["aggressive"].allows(technique).all() for technique in Technique)
    first = BUILT_IN_POLICIES["compress-first"]
    assert first.compresses_first(State.C3) and first.compresses_first(State.C4)
    assert not BUILT_IN_POLICIES["default"].compresses_first(State.C4)


def test_a_policy_that_only_shares_evicts_nothing() -> None:
    assert not Policy("mine", {State.C2: (Technique.SHARE,)}).evicts


def test_watching_slows_down_with_faults_and_recovers() -> None:
    rate = WatchRate(fault_limit=10)
    for _ in range(40):
        rate.observe(faults=0, seconds=0.5)
    fast = rate.pages_per_s
    rate.observe(faults=100, seconds=0.5)
    assert rate.pages_per_s < fast / 10
    assert rate.take(100) == 0
    rate.observe(faults=0, seconds=0.5)
    assert 0 < rate.take(10**6) <= rate.pages_per_s


@pytest.mark.parametrize(
    ("refaults", "patience"), [(0, 1), (15, 4 / 3), (30, 2), (54, 10), (60, math.inf), (90, math.inf)]
)
def test_patience_grows_as_refaults_near_their_limit(refaults: int, patience: float) -> None:
    limit = RefaultLimit(per_minute=60)
    limit.observe(1.0, refaults)
    assert limit.patience == pytest.approx(patience)
    limit.observe(60.5, 0)
    assert limit.patience == pytest.approx(patience)
    limit.observe(61.5, 0)
    assert limit.patience == 1


def test_a_limit_of_no_refaults_evicts_nothing() -> None:
    assert RefaultLimit(per_minute=0).patience == math.inf


def test_with_patience_a_page_must_be_idle_for_longer() -> None:
    assert [least_idle(patience, 3) for patience in (1, 2, 10, math.inf)] == [1, 4, 28, math.inf]


def test_shared_pages_are_not_tried_while_too_many_pages_are_watched() -> None:
    assert clock.has_room_for_trials(0, 1) and clock.has_room_for_trials(9, 100)
    assert not clock.has_room_for_trials(10, 100)


def test_room_to_evict_is_the_smaller_of_both_limits() -> None:
    assert room_to_evict(100, 20, 50, 0.9).pages == 30
    assert room_to_evict(100, 20, 50, 0.9).by_min_resident
    assert room_to_evict(100, 20, 10, 0.5).pages == 30
    assert not room_to_evict(100, 20, 10, 0.5).by_min_resident
    assert room_to_evict(100, 90, 50, 0.5).pages == 0


def test_the_net_saving_is_divided_without_rest() -> None:
    parts = split_net({"sharing": 300, "patching": 100, "compression": 0, "swapping": 0}, 0.4)
    assert parts == pytest.approx({"sharing": 0.3, "patching": 0.1, "compression": 0, "swapping": 0})
    nothing_yet = split_net({"sharing": 0, "patching": 0, "compression": 0, "swapping": 0}, -0.03)
    assert sum(nothing_yet.values()) == pytest.approx(-0.03)


def test_less_table_memory_means_more_passes() -> None:
    whole = table_bytes_needed(100_000, 1)
    assert passes_needed(100_000, whole) == 1
    assert passes_needed(100_000, whole // 4) in (4, 5, 6)


@pytest.mark.parametrize(("used", "freed"), [(0, 0), (79, 0), (90, 0), (91, 11), (100, 20)])
def test_swapping_starts_above_the_high_watermark_and_ends_at_the_low_one(used: int, freed: int) -> None:
    assert bytes_to_free(used, 100, 0.9, 0.8) == freed
