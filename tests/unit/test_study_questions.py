# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/study-questions.md: each answer names a run, code or a document that shows it, and what it names is there."""

import re
from pathlib import Path

import pytest

from diffengine.evaluation.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/study-questions.md"
ANSWERS = [part for part in DOCUMENT.read_text().split("\n\n") if part.startswith("**")]
RUNS = re.compile(r"`diffengine evaluate ([\w ]+)`")
CODE = re.compile(r"`((?:daemon|native|ioemu_shim|tests)/[\w/.]*)`")
LINKS = re.compile(r"\]\(([\w-]+\.md)")


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[2:40])
def test_an_answer_names_what_shows_it(answer: str) -> None:
    runs, code, links = (pattern.findall(answer) for pattern in (RUNS, CODE, LINKS))
    assert runs or code or links
    assert {name for names in runs for name in names.split()} <= {each.name for each in EXPERIMENTS}
    assert all((ROOT / path).exists() for path in code)
    assert all((ROOT / "docs" / link).is_file() for link in links)


def test_all_are_answered() -> None:
    assert len(ANSWERS) == 29


def test_code_is_named_from_the_top() -> None:
    names = re.findall(r"`([\w./]+\.(?:py|c|h))`", DOCUMENT.read_text())
    assert names == [name for name in names if (ROOT / name).exists()]
