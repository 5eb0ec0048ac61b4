# SPDX-License-Identifier: GPL-2.0-or-later
"""A new engine on a host where another one has worked: it goes on from the pager's page table."""

from dataclasses import replace

import numpy as np

from diffengine.engine import Engine, EngineOptions
from diffengine.hypervisor.protocol import PageState
from engine_host import Bench, addresses, bench, random_pages, similar_pages, text_pages

NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
ENOUGH_SWEEPS = 16


def replace_engine(run: Bench, options: EngineOptions = NO_LIMITS) -> None:
    """As after a kill: nothing is closed."""
    run.engine = Engine(run.machine, run.pager, options, run.clock)
    for domid, pages in zip(run.domids, run.contents, strict=True):
        run.engine.add_domain(domid, len(pages), "all")


def places(run: Bench) -> dict[str, int]:
    return run.engine.report().pages


def test_pages_that_are_out_stay_out() -> None:
    pages = np.concatenate([similar_pages(100), text_pages(200)])
    with bench([pages], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        before, saved = places(run), run.engine.report().saved_by
        assert before["patched"]
        assert before["compressed"]
        replace_engine(run)
        # Known from the start, and by technique to the byte.
        assert places(run) == before
        assert run.engine.report().saved_by == saved
        run.sweep(3)
        assert run.pager.counters().loads == 0
        assert places(run) == before
        assert run.read_all(0) == 0


def test_watched_pages_are_evicted_by_the_next_engine() -> None:
    with bench([text_pages(200)], NO_LIMITS) as run:
        while not places(run)["watched"]:
            run.sweep(1)
        watched = places(run)["watched"]
        assert run.pager.counters().evictions == 0
        replace_engine(run, replace(NO_LIMITS, dense=False))
        assert places(run)["watched"] == watched
        run.sweep(6)
        assert run.pager.counters().evictions == 200
        assert (run.pager.states(run.domids[0], 0, 200).states == PageState.EVICTED).all()
        assert run.read_all(0) == 0


def test_a_page_equal_to_one_that_is_out_takes_its_object() -> None:
    pages = random_pages(50) // 16
    with bench([pages, text_pages(10)], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        objects = run.pager.counters().objects
        replace_engine(run)
        run.contents = [*run.contents, pages]
        run.domids.append(run.machine.create_domain(addresses(pages)))
        run.pager.add_domain(run.domids[2], len(pages))
        run.engine.add_domain(run.domids[2], len(pages), "all")
        run.sweep(ENOUGH_SWEEPS)
        assert (run.pager.states(run.domids[2], 0, len(pages)).states == PageState.EVICTED).all()
        assert run.pager.counters().objects == objects
        assert run.read_all(2) == 0


def test_the_page_table_of_another_policy() -> None:
    with bench([text_pages(100)], NO_LIMITS) as run:
        run.sweep(ENOUGH_SWEEPS)
        share_only = replace(NO_LIMITS, policy=replace(NO_LIMITS.policy, name="share", allowed={}))
        replace_engine(run, share_only)
        run.sweep(3)
        assert run.pager.counters().loads == 0
        assert run.read_all(0) == 0
