# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine demo`: guests' memory is really freed, and every byte they read is right."""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from command import output_of, refusal_of
from diffengine.analysis.census import Census, Identical
from diffengine.demo import DemoResult, Memory, check_result
from diffengine.demo.run import MOST_SHARERS, pages_alone, sharing_pairs
from diffengine.errors import DiffengineError
from diffengine.hypervisor.embedded import PagerStatistics
from diffengine.hypervisor.programs import GuestResult
from diffengine.native import NONE, PageKind
from page_fixtures import PAGE, random_page, text_page, word_page, write_image

STEPS = ["all pages resident", "share identical pages", "patch similar pages", "compress the others"]


@dataclass(frozen=True)
class Told:
    """What a run printed. Memory in MiB by step; faults counted; bytes wrong."""

    frames: dict[str, float]
    store: dict[str, float]
    process: dict[str, float]
    reads: int
    writes: int
    wrong: int
    faults: int
    text: str


def number(text: str) -> float:
    return float(text.replace(",", ""))


def demo(*arguments: str | Path) -> Told:
    text = output_of("demo", *arguments)
    rows = re.findall(
        r"^  (\w[\w ]*?) +frames +([\d.,]+) MiB, store +([\d.,]+) MiB; by the .*? +([\d.,]+) MiB$", text, re.M
    )
    assert [row[0] for row in rows] == [*STEPS, "after the guests ran"]
    columns = [{row[0]: number(row[n]) for row in rows} for n in (1, 2, 3)]
    guests = re.search(r"([\d,]+) reads and ([\d,]+) writes, every byte read compared: ([\d,]+) wrong", text)
    faults = re.search(r"([\d,]+) faults on evicted pages", text)
    assert guests and faults
    counts = [int(number(value)) for value in (*guests.groups(), faults[1])]
    return Told(columns[0], columns[1], columns[2], counts[0], counts[1], counts[2], counts[3], text)


@pytest.fixture(scope="module")
def pair(samples: dict[str, Path]) -> Sequence[Path]:
    return samples["d12a-work"], samples["d12b-work"]


@pytest.fixture(scope="module")
def run(pair: Sequence[Path]) -> Told:
    return demo(*pair, "--operations", "1500")


def test_guests_read_what_they_last_wrote(run: Told) -> None:
    assert run.wrong == 0
    assert run.reads + run.writes == 2 * 1500
    assert 0.15 < run.writes / 3000 < 0.25
    assert run.faults > 100


def test_each_step_frees_frames_and_the_kernel_says_so(run: Told, pair: Sequence[Path]) -> None:
    total = sum(path.stat().st_size for path in pair) / 2**20
    assert run.frames[STEPS[0]] == pytest.approx(total, abs=0.2)
    frames = [run.frames[step] for step in STEPS]
    assert frames == sorted(frames, reverse=True) and len(set(frames)) == len(frames)
    # What the process has given back, by the kernel's count, is what frames and store say, but for its own heap.
    for step, heap in ((STEPS[1], 6), ("after the guests ran", 12)):
        freed = run.frames[STEPS[0]] - run.frames[step] - run.store[step]
        assert run.process[STEPS[0]] - run.process[step] == pytest.approx(freed, abs=heap)
    assert run.frames[STEPS[-1]] + run.store[STEPS[-1]] < 0.4 * total
    assert run.frames["after the guests ran"] > run.frames[STEPS[-1]]


def test_it_ends_with_latencies_and_the_analysis(run: Told) -> None:
    for words in ("rebuild the page", "as the guest waits", "Pages of 2 images", "each image in its own"):
        assert words in run.text
    rebuild = re.search(r"rebuild the page\D+([\d.,]+)\D+([\d.,]+)", run.text)
    assert rebuild and 0 < number(rebuild[1]) <= number(rebuild[2])


@pytest.mark.parametrize(("writes", "share"), [("0", 0.0), ("100", 1.0)])
def test_only_reads_or_only_writes(pair: Sequence[Path], writes: str, share: float) -> None:
    told = demo(pair[0], "--operations", "2000", "--writes", writes)
    assert told.wrong == 0
    assert told.writes == 2000 * share
    assert told.reads == 2000 - told.writes
    assert told.faults > 0


def test_a_single_operation(pair: Sequence[Path]) -> None:
    told = demo(pair[0], "--operations", "1", "--jobs", "1")
    assert told.reads + told.writes == 1 and told.wrong == 0


ODD = {
    "zero": [bytes(PAGE)] * 300,
    "one-zero-page": [bytes(PAGE)],
    "one-page": [text_page(1)],
    "words": [word_page(bytes([n]) * 8) for n in range(1, 65)],
    "noise": [random_page(n) for n in range(64)],
    # More copies of one content than a frame may have sharers.
    "copies": [text_page(1)] * 700,
    "similar": [random_page(1)[:n] + b"#" + random_page(1)[n + 1 :] for n in range(0, 4000, 50)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_guests(tmp_path: Path, name: str) -> None:
    told = demo(write_image(tmp_path / f"{name}.raw", ODD[name]), "--operations", "1000")
    assert told.wrong == 0 and told.reads + told.writes == 1000
    # One frame for every 256 zero pages, or copies of another content, and nothing else.
    assert told.frames[STEPS[-1]] <= 0.05


def test_odd_guests_together(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{name}.raw", pages) for name, pages in ODD.items()]
    told = demo(*paths, "--operations", "1000", "--writes", "50")
    assert told.wrong == 0 and told.reads + told.writes == 1000 * len(ODD)
    assert told.frames[STEPS[-1]] <= 0.05


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_is_drawn(tmp_path: Path, suffix: str) -> None:
    directory = tmp_path / "[b]" / "[i]"
    directory.mkdir(parents=True)
    picture = directory / f"demo.{suffix}"
    told = demo(write_image(tmp_path / "a.raw", ODD["similar"]), "--operations", "100", "--plot", picture)
    assert f"Drawn into {picture}" in told.text.replace("\n", "")
    assert picture.stat().st_size > 10_000
    if suffix == "png":
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--operations", "0"], "'0' is not a whole number from 1"),
        (["--writes", "101"], "'101' is not a whole number from 0 to 100"),
        (["--plot", "demo.gif"], "can only write .png and .svg"),
    ],
    ids=" ".join,
)
def test_options_that_can_not_be(pair: Sequence[Path], options: list[str], complaint: str) -> None:
    assert complaint in refusal_of("demo", pair[0], *options)


@given(st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 1000)), min_size=1, max_size=1200))
@example([0] * 257)
@example([1] * 512 + [2] * 513)
def test_sharing_pairs_join_equal_pages_at_most_256_to_a_frame(contents: list[int]) -> None:
    """Content 0 is the zero page."""
    kinds = np.array([PageKind.PLAIN if content else PageKind.ZERO for content in contents], dtype=np.uint8)
    first: dict[int, int] = {}
    leaders = [first.setdefault(content, n) if content else NONE for n, content in enumerate(contents)]
    census = Census(kinds, np.array(contents, np.uint64), np.zeros((len(contents), 0), np.uint64))
    sources, clients = sharing_pairs(census, Identical(np.array(leaders, np.uint32), 1, 0))
    assert [contents[n] for n in sources] == [contents[n] for n in clients]
    assert len(set(clients.tolist())) == len(clients)
    assert not set(clients.tolist()) & set(sources.tolist())
    users = Counter(sources.tolist())
    assert all(count <= MOST_SHARERS - 1 for count in users.values())
    # As few frames as there can be.
    copies = Counter(contents)
    assert len(contents) - len(clients) == sum(-(-count // MOST_SHARERS) for count in copies.values())
    alone = set(np.flatnonzero(pages_alone(len(contents), sources, clients)).tolist())
    assert alone == set(range(len(contents))) - set(clients.tolist()) - set(sources.tolist())


def test_a_wrong_byte_fails_the_demo() -> None:
    memory = Memory(0, 0, 0)
    guests = [GuestResult(10, 0, wrong, 0, 0, 0, 0, np.zeros(0, np.uint64)) for wrong in (0, 3)]
    pager = PagerStatistics(0, 0, 0, 0, 0, 0, 0, {}, {})
    check_result(DemoResult(memory, (), (guests[0],), pager, memory))
    with pytest.raises(DiffengineError, match="guests read 3 wrong bytes"):
        check_result(DemoResult(memory, (), tuple(guests), pager, memory))
