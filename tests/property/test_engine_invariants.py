# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever guests hold and do, and however the engine is set: right bytes, exact accounting, closed trust groups."""

import ctypes

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions, Policy, State, Technique
from diffengine.engine.visits import portion, portions_of_sweep
from diffengine.hypervisor.programs import Guest
from engine_host import PAGE, Bench, Pages, addresses, bench, random_pages, similar_pages, text_pages

KINDS = ("zero", "random", "text", "similar", "same")
orders = st.lists(st.sampled_from(list(Technique)), unique=True).map(tuple)
policies = st.one_of(
    st.sampled_from(list(BUILT_IN_POLICIES.values())),
    st.builds(lambda c2, c3, c4: Policy("mine", {State.C2: c2, State.C3: c3, State.C4: c4}), orders, orders, orders),
)
options = st.builds(
    EngineOptions,
    policy=policies,
    seed=st.integers(0, 2**63 - 1),
    passes=st.sampled_from([None, 1, 3]),
    c4_visits=st.integers(1, 4),
    refault_limit=st.sampled_from([0, 20, 10**9]),
    fault_limit=st.sampled_from([10.0, 1e6]),
    evicted_share_limit=st.sampled_from([0.5, 1.0]),
    dense=st.booleans(),
)


def pages_of(kinds: list[str], seed: int) -> Pages:
    """Pages that other domains have too, for each kind."""
    made = {
        "zero": lambda n: np.zeros((n, PAGE), dtype=np.uint8),
        "random": lambda n: random_pages(n, seed),
        "text": lambda n: text_pages(n),
        "similar": lambda n: similar_pages(n),
        "same": lambda n: np.full((n, PAGE), 7, dtype=np.uint8),
    }
    return np.concatenate([made[kind](kinds.count(kind)) for kind in sorted(set(kinds))])


contents = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=60), min_size=1, max_size=3)


@given(
    contents,
    options,
    st.lists(st.sampled_from("ab"), min_size=3, max_size=3),
    st.lists(st.sampled_from([0, 0, 5, 50]), min_size=3, max_size=3),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_guests_read_what_they_wrote_and_all_memory_is_accounted_for(
    kinds: list[list[str]], engine_options: EngineOptions, groups: list[str], least: list[int], seed: int
) -> None:
    filled = [pages_of(each, seed + number) for number, each in enumerate(kinds)]
    with bench(filled, engine_options, groups[: len(filled)]) as run:
        for domid, pages in zip(run.domids, least, strict=False):
            run.engine.set_min_resident(domid, pages)
        run.sweep(2)
        guests = [
            Guest(run.machine, domid, addresses(pages), 400, 0.3, seed=number)
            for number, (domid, pages) in enumerate(zip(run.domids, filled, strict=True))
        ]
        run.sweep(8)
        assert [guest.join().wrong_bytes for guest in guests] == [0] * len(guests)
        check_accounting(run)
        check_groups(run, groups)
        check_limits(run, engine_options, least)


def check_limits(run: Bench, engine_options: EngineOptions, least: list[int]) -> None:
    for each, minimum in zip(run.engine.domain_reports(), least, strict=False):
        out = sum(each.pages[place] for place in ("patched", "compressed", "swapped"))
        assert out <= max(0, each.gfns - minimum)
        assert out <= engine_options.evicted_share_limit * each.gfns
    if not engine_options.refault_limit:
        assert run.pager.counters().evictions == 0


def check_accounting(run: Bench) -> None:
    memory = run.machine.memory()
    assert memory.used * PAGE == run.machine.resident_bytes()
    assert memory.used == sum(map(len, run.contents)) - memory.sharing_saved - run.pager.counters().evicted
    assert run.pager.counters().store_bytes == run.store.statistics().populated_bytes
    assert run.pager.counters().corrupt == 0


def check_groups(run: Bench, groups: list[str]) -> None:
    """Only zero pages have a frame that domains of different groups use."""
    frames = [resident_frames(run, number) for number in range(len(run.domids))]
    for left in range(len(frames)):
        for right in range(left):
            if groups[left] == groups[right]:
                continue
            for address in np.intersect1d(frames[left], frames[right]):
                assert not any(ctypes.string_at(int(address), PAGE))


def resident_frames(run: Bench, number: int) -> NDArray[np.uint64]:
    states = run.pager.states(run.domids[number], 0, len(run.contents[number])).states
    return run.mapped_frames(number, np.flatnonzero(states == 0).tolist())


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_sweep_visits_every_page_of_every_domain_once(largest: int, other: int) -> None:
    portions = portions_of_sweep(max(largest, other))
    for gfns in (largest, other):
        ends = [0]
        for number in range(portions):
            part = portion(gfns, number, portions)
            assert part.start == ends[-1]
            assert len(part) <= -(-gfns // portions)
            ends.append(part.stop)
        assert ends[-1] == gfns
