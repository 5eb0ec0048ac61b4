# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine tells of each domain adds up, and what it is told while it works holds."""

from dataclasses import fields, replace

import numpy as np

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions
from diffengine.engine.options import LIVE_OPTIONS
from diffengine.engine.reasons import Reason
from diffengine.hypervisor.protocol import Outcome
from diffengine.service.explain import OUTCOMES, WORDS
from engine_host import bench, random_pages, similar_pages, text_pages

NO_LIMITS = EngineOptions(fault_limit=1e6, refault_limit=10**9, evicted_share_limit=1.0)
ENOUGH_SWEEPS = 16


def test_domains_add_up_to_the_whole() -> None:
    first = np.concatenate([similar_pages(100), text_pages(200), random_pages(50, 9)])
    second = np.concatenate([random_pages(30, 8), random_pages(50, 9)])
    with bench([first, second], NO_LIMITS) as run:
        assert [each.reasons for each in run.engine.domain_reports()] == [None, None]
        run.sweep(ENOUGH_SWEEPS)
        whole, parts = run.engine.report(), run.engine.domain_reports()
        assert [(part.domid, part.gfns) for part in parts] == [(run.domids[0], 350), (run.domids[1], 80)]
        for place, count in whole.pages.items():
            assert sum(part.pages[place] for part in parts) == count
        for technique, saved in whole.saved_by.items():
            assert abs(sum(part.saved_by[technique] for part in parts) - saved) <= 1
        assert whole.saved_by["sharing"] > 0 and whole.saved_by["compression"] > 0
        # Two that share a frame have half of it each.
        assert parts[1].saved_by["sharing"] == whole.saved_by["sharing"] // 2


def test_reasons_are_of_the_latest_sweep_and_of_one_domain() -> None:
    with bench([text_pages(60), random_pages(40)], replace(NO_LIMITS, evicted_share_limit=0.0)) as run:
        run.sweep(ENOUGH_SWEEPS)
        first, second = (part.reasons for part in run.engine.domain_reports())
        assert first is not None and second is not None
        # Each page once, however many sweeps there were.
        assert first[Reason.EVICTED_SHARE] == 60
        assert Reason.MODIFIED not in first
        assert sum(second.values()) <= 40
        assert Reason.MODIFIED not in second
        assert run.engine.report().reasons[Reason.EVICTED_SHARE] > 100


def test_what_does_not_get_smaller_is_told_of_at_each_sweep() -> None:
    with bench([random_pages(40)], NO_LIMITS) as run:
        run.sweep(2 * ENOUGH_SWEEPS)
        (part,) = run.engine.domain_reports()
        assert part.reasons is not None
        assert part.reasons[Reason.INCOMPRESSIBLE] == 40


def test_what_is_told_holds_at_once() -> None:
    with bench([text_pages(100)], replace(NO_LIMITS, evicted_share_limit=0.0)) as run:
        run.sweep(ENOUGH_SWEEPS)
        assert run.engine.report().pages["compressed"] == 0
        assert run.engine.set_options(replace(NO_LIMITS, evicted_share_limit=0.5))
        run.sweep(4)
        assert run.engine.report().pages["compressed"] == 50
        assert run.engine.set_options(NO_LIMITS)
        run.engine.set_min_resident(run.domids[0], 20)
        run.sweep(4)
        assert run.engine.report().pages["compressed"] == 80


def test_what_the_engine_is_built_of_takes_another_one() -> None:
    with bench([text_pages(10)], NO_LIMITS) as run:
        assert {field.name for field in fields(EngineOptions)} > set(LIVE_OPTIONS)
        assert not run.engine.set_options(replace(NO_LIMITS, policy=BUILT_IN_POLICIES["aggressive"]))
        assert not run.engine.set_options(replace(NO_LIMITS, seed=5, cpu_share=0.1))
        assert run.engine.set_options(replace(NO_LIMITS, cpu_share=0.1))


def test_reasons_read_as_words() -> None:
    assert {outcome.name.lower() for outcome in Outcome} - set(OUTCOMES) == {"done"}
    assert set(Reason) == set(WORDS)
