# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments that count on images: hypothesis, table1, fig2, on the beginnings of real ones."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffengine.evaluation.carrying_out import Keys, narrowed, trial
from diffengine.evaluation.experiment import TIMINGS, Outcome, Result, Results
from diffengine.evaluation.experiments import fig2, hypothesis, table1
from diffengine.evaluation.setting import Setting
from evaluation_runs import run_here, small_images, small_setting


@pytest.fixture(scope="module")
def setting(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return small_setting(small_images(samples, tmp_path_factory.mktemp("small")))


def without_times(result: Result) -> Result:
    return {k: without_times(v) if isinstance(v, dict) else v for k, v in result.items() if k != TIMINGS}


def pages_of(setting: Setting, name: str) -> list[bytes]:
    """The pages of a subset, read as a plain file."""
    (subset,) = [each for each in setting.images.subsets if each.name == name]
    content = b"".join(image.path.read_bytes() for image in subset.images)
    return [content[i : i + 4096] for i in range(0, len(content), 4096)]


def test_classes_of_pages_are_what_plain_counting_finds(setting: Setting) -> None:
    results, _ = run_here(table1.EXPERIMENT, setting)
    pages = pages_of(setting, "alike")
    contents: dict[bytes, int] = {}
    for page in pages:
        if any(page):
            contents[page] = contents.get(page, 0) + 1
    found = results["alike"]["pages"]
    assert found["total"] == len(pages)
    assert found["nonzero"] == sum(contents.values())
    assert found["distinct"] == len(contents)
    assert found["unique"] == sum(n == 1 for n in contents.values())
    assert found["copies"] == sum(n for n in contents.values() if n > 1)


def test_table1_puts_the_paper_beside(setting: Setting) -> None:
    results, outcome = run_here(table1.EXPERIMENT, setting)
    (table,) = outcome.tables
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["left after patching"][0] == 88_422
    patching, pages = results["unlike"]["patching"], results["unlike"]["pages"]
    unpatched = pages["distinct"] - patching["patched_pages"]
    left = unpatched + patching["patched_pages"] * patching["mean_patch_bytes"] / 4096 + 1
    assert rows["left after patching"][2] == pytest.approx(left, abs=1)


@pytest.fixture(scope="module")
def hypothesis_run(setting: Setting) -> tuple[Results, Outcome]:
    return run_here(hypothesis.EXPERIMENT, setting)


def test_equal_seeds_find_equal_things(setting: Setting, hypothesis_run: tuple[Results, Outcome]) -> None:
    step = hypothesis.EXPERIMENT.plan(setting)[0]
    assert without_times(step.run(**step.arguments)) == without_times(hypothesis_run[0][step.name])


def test_hypothesis_is_judged_by_its_own_numbers(hypothesis_run: tuple[Results, Outcome]) -> None:
    results, outcome = hypothesis_run
    assert [target.claim.split()[0] for target in outcome.targets] == ["alike", "unlike"]
    for target, name in zip(outcome.targets, hypothesis.TARGETS, strict=True):
        pipelines = results[name]["pipelines"]
        nonzero = results[name]["pages"]["nonzero"] * 4096
        saved = {p: nonzero - pipelines[p]["bytes_left"] for p in ("ours", "sharing only")}
        assert target.met == (saved["ours"] >= hypothesis.TARGETS[name] * saved["sharing only"])
        assert pipelines["ours"]["verified_pages"] == results[name]["pages"]["total"]


def test_a_target_that_is_not_reached_is_not_met(hypothesis_run: tuple[Results, Outcome]) -> None:
    results = copy.deepcopy(hypothesis_run[0])
    pipelines: dict[str, Any] = results["alike"]["pipelines"]
    pipelines["ours"]["saving_of_nonzero"] = 2.04 * pipelines["sharing only"]["saving_of_nonzero"]
    alike, _ = hypothesis.conclude(results).targets
    assert (alike.met, alike.measured) == (False, "2.04 times")
    assert "holds as far as it goes" in hypothesis.conclude(results).verdict[-1]
    pipelines["ours"]["saving_of_nonzero"] = 0.9 * pipelines["sharing only"]["saving_of_nonzero"]
    assert "does not hold for all" in hypothesis.conclude(results).verdict[-1]


def test_a_range_is_said_once_if_it_is_one_number() -> None:
    assert hypothesis.span([3.14, 2.0], ".1f") == "2.0 to 3.1"
    assert hypothesis.span([3.14, 3.12], ".1f") == "3.1"


def test_figure_2_finds_more_with_more_keys(setting: Setting) -> None:
    results, _ = run_here(fig2.EXPERIMENT, setting)
    for result in results.values():
        patched = {found["name"]: found["patched"] for found in result["detectors"]}
        assert patched[fig2.label(1, 1, 1, 18, True)] <= patched[fig2.label(32, 1, 1, None, False)]
        assert patched[fig2.label(2, 2, 1, 18, True)] <= patched[fig2.label(4, 1, 1, 18, True)]
    assert sum(found["patched"] for found in results["alike"]["detectors"]) > 0


def test_blocks_of_one_byte_are_indexed_only_if_asked_for(setting: Setting) -> None:
    (subset,) = [each for each in setting.images.subsets if each.name == "alike"]
    with trial(subset.paths, 1, 1) as images:
        without, with_them = (images.census(Keys(8, 1, None, uniform)).keys for uniform in (False, True))
        plain = images.census(Keys()).kinds == 0
    assert (with_them[plain] != 0).all()
    assert (without[plain] == 0).any()
    same = without != 0
    assert (without[same] == with_them[same]).all()


def test_narrow_keys_agree_where_their_low_bits_do() -> None:
    keys = np.array([0, 5, 5 + (1 << 18), 6, 1 << 18], dtype=np.uint64)
    narrow = narrowed(keys, 18)
    assert narrow[0] == 0
    assert narrow[1] == narrow[2] != narrow[3]
    assert narrow[4] != 0
    assert len(np.unique(narrowed(np.arange(1, 1 << 12, dtype=np.uint64), 32))) == (1 << 12) - 1
