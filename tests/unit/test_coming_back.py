# SPDX-License-Identifier: GPL-2.0-or-later
"""How pages that come back are divided into parts, and what is told of them meanwhile."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from diffengine.cli.coming_back import Bar, Lines, words
from diffengine.hypervisor.protocol import PageState
from diffengine.service.bringing_back import progress_of
from diffengine.service.parts import PART_PAGES, parts_away


@pytest.mark.parametrize("seed", range(8))
def test_parts_have_all_that_is_away_and_no_more_than_so_many_each(seed: int) -> None:
    random = np.random.default_rng(seed)
    states = random.choice(
        np.array([PageState.RESIDENT, PageState.WATCHED, PageState.EVICTED, PageState.LOADING], dtype=np.uint8),
        size=20_000,
        p=[0.9, 0.03, 0.06, 0.01] if seed % 2 else [0.0, 0.1, 0.8, 0.1],
    )
    parts = parts_away(states)
    covered = np.zeros(len(states), dtype=np.bool_)
    for part in parts:
        gfns = slice(part.first, part.first + part.count)
        assert not covered[gfns].any()
        covered[gfns] = True
        away = states[gfns] != PageState.RESIDENT
        assert 0 < away.sum() <= PART_PAGES
        assert part.out == (away & (states[gfns] != PageState.WATCHED)).sum()
    assert (states[~covered] == PageState.RESIDENT).all()
    assert parts_away(np.full(10, PageState.RESIDENT, dtype=np.uint8)) == []


def test_an_estimate_needs_something_to_go_by() -> None:
    assert progress_of("drain", 100, 0, 5.0).left_s is None
    assert progress_of("drain", 100, 25, 5.0).left_s == 15.0
    # Guests may have more out than there was at the beginning.
    assert progress_of("drain", 100, 130, 5.0).left_s == 0.0


def progress(done: int, left_s: float | None) -> dict[str, object]:
    return {"doing": "drain", "pages": 1000, "done": done, "left_s": left_s}


def test_words_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert words(progress(0, None)) == "0 of 1,000 pages are back"
    assert words(progress(500, 31.4)) == "500 of 1,000 pages are back, about 31 s left"
    assert words(progress(500, 600)) == "500 of 1,000 pages are back, about 10 min left"
    with Lines(as_json=False) as lines:
        lines.show(progress(0, None))
        lines.show(progress(1, None))
    with Lines(as_json=True) as lines:
        lines.show(progress(7, 2.0))
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert (said.out, first) == ("", "drain: 0 of 1,000 pages are back")
    assert json.loads(second)["done"] == 7


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=100)) as bar:
        bar.show(progress(500, 31.4))
        bar.refresh()
    assert "50%" in screen.getvalue() and "about 31 s left" in screen.getvalue()
