# SPDX-License-Identifier: GPL-2.0-or-later
"""The sharing table against a dictionary: results do not depend on the number of passes, the ranges or its size."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffengine.native import NONE, SHARING_MIN_BYTES, FullError, NativeError, SharingTable

# Few values, so that many are equal; at the ends of the intervals that passes look at, too.
EDGES = [0, 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 // 3, 2**64 // 5, 2**64 - 1]
digest_values = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1), st.integers(0, 20).map(lambda n: n << 32))


def leaders_by_dictionary(digests: Sequence[int], eligible: Sequence[bool]) -> list[int]:
    first: dict[int, int] = {}
    return [
        first.setdefault(digest, page) if chosen else NONE
        for page, (digest, chosen) in enumerate(zip(digests, eligible, strict=True))
    ]


def leaders_by_table(
    table: SharingTable, digests: Sequence[int], eligible: Sequence[bool], passes: int, ranges: Sequence[range]
) -> NDArray[np.uint32]:
    leaders = np.full(len(digests), NONE, dtype=np.uint32)
    for interval in range(passes):
        table.clear()
        for pages in ranges:
            table.run_pass(
                np.array(digests, dtype=np.uint64), np.array(eligible, np.uint8), pages, interval, passes, leaders
            )
    return leaders


@given(
    st.lists(st.tuples(digest_values, st.booleans()), min_size=1, max_size=200),
    st.integers(1, 300),
    st.integers(0, 200),
    st.integers(0, 300),
)
def test_leaders_are_those_of_a_dictionary(
    pages: list[tuple[int, bool]], passes: int, cut: int, extra_slots: int
) -> None:
    digests, eligible = [digest for digest, _ in pages], [chosen for _, chosen in pages]
    cut = min(cut, len(pages))
    table = SharingTable(SHARING_MIN_BYTES + 8 * extra_slots)
    ranges = [range(cut), range(cut, len(pages))]
    found = leaders_by_table(table, digests, eligible, passes, ranges)
    assert found.tolist() == leaders_by_dictionary(digests, eligible)


@pytest.mark.parametrize("passes", [1, 2, 5, 7, 64, 256])
def test_every_digest_belongs_to_exactly_one_of_the_passes(passes: int) -> None:
    bounds = [edge for n in range(passes) for edge in (-(-n * 2**64 // passes) - 1, -(-n * 2**64 // passes))]
    digests = sorted({bound % 2**64 for bound in bounds})
    visits = np.zeros(len(digests), dtype=int)
    table = SharingTable(1 << 16)
    for interval in range(passes):
        leaders = np.full(len(digests), NONE, dtype=np.uint32)
        table.clear()
        everything = np.ones(len(digests), np.uint8)
        table.run_pass(np.array(digests, np.uint64), everything, range(len(digests)), interval, passes, leaders)
        visited = [digest * passes >> 64 == interval for digest in digests]
        assert (leaders != NONE).tolist() == visited
        visits += leaders != NONE
    assert (visits == 1).all()


def test_a_table_takes_as_many_contents_as_it_says_and_then_is_full() -> None:
    table = SharingTable(SHARING_MIN_BYTES)
    assert table.bytes <= SHARING_MIN_BYTES
    assert table.capacity >= SHARING_MIN_BYTES // 8 * 6 // 8
    count = table.capacity
    digests = np.random.default_rng(1).integers(1, 2**64, count + 1, dtype=np.uint64)
    leaders = np.full(count + 1, NONE, dtype=np.uint32)
    eligible = np.ones(count + 1, np.uint8)
    table.run_pass(digests, eligible, range(count), 0, 1, leaders)
    table.run_pass(digests, eligible, range(count), 0, 1, leaders)  # copies need no more room
    assert (leaders[:count] == np.arange(count)).all()
    with pytest.raises(FullError, match="looking for identical pages: it is full"):
        table.run_pass(digests, eligible, range(count, count + 1), 0, 1, leaders)
    table.clear()
    table.run_pass(digests, eligible, range(count, count + 1), 0, 1, leaders)
    assert leaders[count] == count


def test_a_table_too_small_is_refused() -> None:
    with pytest.raises(NativeError, match="making the sharing table"):
        SharingTable(SHARING_MIN_BYTES - 1)


def test_a_pass_that_is_none_is_refused() -> None:
    digests, leaders = np.zeros(1, np.uint64), np.zeros(1, np.uint32)
    with pytest.raises(NativeError):
        SharingTable(SHARING_MIN_BYTES).run_pass(digests, np.ones(1, np.uint8), range(1), 2, 2, leaders)
