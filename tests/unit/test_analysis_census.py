# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages are identical: within groups, for any table memory, and when digests collide."""

from pathlib import Path

import numpy as np
import pytest

from diffengine.analysis.census import Census, find_identical, table_bytes_allowed, take_census
from diffengine.analysis.workers import Silent, Stage, Workers
from diffengine.errors import DiffengineError
from diffengine.images import ImageSet, open_images
from diffengine.native import NONE, SHARING_MIN_BYTES, Digester, PageKind
from page_fixtures import PAGE, word_page, write_image

MIXED = [word_page(n.to_bytes(8, "big")) for n in range(3000)]  # number 0 is the zero page


def census_of(images: ImageSet, workers: Workers) -> Census:
    return take_census(images, Digester(1, 2, 1), workers, Silent())


def expected_leaders(groups: list[list[range]], pages: list[bytes]) -> list[int]:
    leaders = [NONE] * len(pages)
    for group in groups:
        first: dict[bytes, int] = {}
        for number in (number for part in group for number in part):
            if any(pages[number]):
                leaders[number] = first.setdefault(pages[number], number)
    return leaders


@pytest.mark.parametrize("table_memory", [None, SHARING_MIN_BYTES, 5000, 8191, 20_000, 1 << 30])
def test_leaders_do_not_depend_on_the_table(tmp_path: Path, table_memory: int | None) -> None:
    rng = np.random.default_rng(1)
    pages = [MIXED[n] for n in rng.integers(0, 2500, 4000)]
    paths = [write_image(tmp_path / f"{n}.raw", pages[n * 1000 : (n + 1) * 1000]) for n in range(4)]
    ranges = [range(n * 1000, (n + 1) * 1000) for n in range(4)]
    with Workers(2) as workers, open_images(paths) as images:
        census = census_of(images, workers)
        for groups in ([ranges], [[part] for part in ranges], [[ranges[0], ranges[3]], [ranges[1]], [ranges[2]]]):
            identical = find_identical(images, census, groups, table_memory, workers)
            assert identical.leaders.tolist() == expected_leaders(groups, pages)
            assert identical.table_bytes <= (table_memory or 6 * len(pages))
            distinct = [n for n, leader in enumerate(identical.leaders.tolist()) if leader == n]
            assert identical.distinct_pages().tolist() == distinct
            if table_memory == SHARING_MIN_BYTES:
                assert identical.passes >= 2


def test_crowded_digests_only_take_more_passes(tmp_path: Path) -> None:
    """All digests in one thousandth of the hash space: no number of equal intervals that is expected will do."""
    pages = MIXED[1:1501]
    with Workers(1) as workers, open_images([write_image(tmp_path / "a.raw", pages)]) as images:
        digests = np.arange(1, 1501, dtype=np.uint64) << np.uint64(43)
        kinds = np.full(1500, PageKind.SAME_FILLED, np.uint8)
        census = Census(kinds, digests, np.zeros((1500, 2), np.uint64))
        identical = find_identical(images, census, [[range(1500)]], SHARING_MIN_BYTES, workers)
    assert identical.leaders.tolist() == list(range(1500))
    assert identical.passes > 1500 // 448


def test_pages_with_equal_digests_are_compared(tmp_path: Path) -> None:
    pages = [MIXED[1], MIXED[2], MIXED[1], MIXED[2]]
    with Workers(1) as workers, open_images([write_image(tmp_path / "a.raw", pages)]) as images:
        digests = np.full(4, 77, dtype=np.uint64)
        census = Census(np.full(4, PageKind.PLAIN, np.uint8), digests, np.zeros((4, 2), np.uint64))
        identical = find_identical(images, census, [[range(4)]], None, workers)
    assert identical.leaders.tolist() == [0, 1, 0, 3]


def test_the_census_sees_every_page_whatever_its_place(tmp_path: Path) -> None:
    pages = [MIXED[n % 7] for n in range(9000)]  # more than two batches
    with Workers(3) as workers, open_images([write_image(tmp_path / "a.raw", pages)]) as images:
        census = census_of(images, workers)
        assert workers.cpu_seconds[Stage.DIGEST] > 0
    assert census.nonzero.tolist() == [n % 7 != 0 for n in range(9000)]
    assert [len(set(census.digests[n::7].tolist())) for n in range(7)] == [1] * 7
    assert len(set(census.digests[:7].tolist())) == 7
    assert census.keys.shape == (9000, 2)


def test_the_table_is_no_larger_than_needed_and_no_smaller_than_useful() -> None:
    assert table_bytes_allowed(10, 5, None) == SHARING_MIN_BYTES
    assert table_bytes_allowed(10**6, 1000, 1 << 30) < 20_000
    assert table_bytes_allowed(10**6, 10**6, None) == 6 * 10**6
    assert table_bytes_allowed(10**6, 10**6, 10**5) == 10**5
    with pytest.raises(DiffengineError, match=r"--table-memory 30000: too small .*; give at least (\d+) bytes") as told:
        table_bytes_allowed(10**6, 10**6, 30_000)
    assert told.value.exit_code == 2
    least = int(str(told.value).split("at least ")[1].split()[0])
    assert table_bytes_allowed(10**6, 10**6, least) == least


def test_an_image_of_one_page(tmp_path: Path) -> None:
    with Workers(1) as workers, open_images([write_image(tmp_path / "a.raw", [bytes(PAGE)])]) as images:
        identical = find_identical(images, census_of(images, workers), [[range(1)]], None, workers)
    assert identical.leaders.tolist() == [NONE] and len(identical.distinct_pages()) == 0
