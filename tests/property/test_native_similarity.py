# SPDX-License-Identifier: GPL-2.0-or-later
"""Both detectors as Python calls them, and the choice among candidates, against plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffengine.native import NONE, SHIFT_MAX_FEATURES, KeyIndex, ShiftIndex, choose_references, shift_features
from page_fixtures import PAGE, Pages, page_lists, random_page, word_page

# Different in both halves: an entry keeps 32 bits of its key.
keys_values = st.integers(0, 12).map(lambda n: n * 0x9E3779B97F4A7C15 % 2**64)


@given(
    st.integers(1, 4).flatmap(lambda k: st.lists(st.lists(keys_values, min_size=k, max_size=k), min_size=1)),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_key_index_proposes_the_first_c_pages_of_each_key(rows: list[list[int]], candidates: int, batch: int) -> None:
    index = KeyIndex(64, candidates)
    pages_of: dict[int, list[int]] = {}
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        pages = np.arange(start, start + len(part), dtype=np.uint32)
        found = index.candidates_of(np.array(part, dtype=np.uint64), pages)
        for page, keys, proposed in zip(pages.tolist(), part, found.tolist(), strict=True):
            expected = {other for key in keys for other in pages_of.get(key, [])}
            real = [other for other in proposed if other != NONE]
            assert set(real) == expected and len(real) == len(expected)
            for key in {key for key in keys if key}:
                pages_of.setdefault(key, [])
                if len(pages_of[key]) < candidates:
                    pages_of[key].append(page)


sizes = st.one_of(st.just(0), st.integers(1, 30))


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(st.tuples(st.integers(0, 40), sizes), min_size=width, max_size=width))
    )
)
def test_the_smallest_patch_against_a_page_that_is_no_patch_wins(rows: list[list[tuple[int, int]]]) -> None:
    if not rows:
        return
    is_patch: list[bool] = []
    expected = []
    candidates, lengths = [], []
    for page, row in enumerate(rows):
        # Candidates are earlier pages; there is no patch against a page that is not there.
        known = [(other % page, size) if page else (NONE, 0) for other, size in row]
        possible = [(size, other) for other, size in known if size and not is_patch[other]]
        best = min(possible, key=lambda pair: pair[0], default=None)
        expected.append(NONE if best is None else best[1])
        is_patch.append(best is not None)
        candidates.append([other for other, _ in known])
        lengths.append([size for _, size in known])
    patched = np.full(len(rows), 9, dtype=np.uint8)
    references = choose_references(
        np.arange(len(rows), dtype=np.uint32),
        np.array(candidates, dtype=np.uint32),
        np.array(lengths, dtype=np.uint16),
        patched,
    )
    assert references.tolist() == expected
    assert patched.tolist() == is_patch


def test_moved_content_is_found_again() -> None:
    page = random_page(1)
    moved = random_page(2)[:24] + page[:-24]
    others = [random_page(n) for n in range(3, 20)]
    pages = Pages([page, *others, moved])
    features, counts = shift_features(7, pages.addresses)
    index = ShiftIndex(1 << 16, 1)
    depths = np.zeros(len(pages), dtype=np.uint8)
    found = index.references_of(features, counts, np.arange(len(pages), dtype=np.uint32), depths)
    assert found.tolist() == [NONE] * (len(pages) - 1) + [0]
    assert depths[-1] == 1


def test_pages_of_one_word_have_no_features() -> None:
    _, counts = shift_features(7, Pages([bytes(PAGE), word_page(b"ABCDEFGH"), random_page(1)]).addresses)
    assert counts[:2].tolist() == [0, 0]
    assert 0 < counts[2] <= SHIFT_MAX_FEATURES


@given(page_lists(max_size=24), st.integers(0, 3), st.integers(1, 7))
def test_chains_of_references_are_no_deeper_than_allowed(pages: list[bytes], max_depth: int, batch: int) -> None:
    held = Pages(pages)
    features, counts = shift_features(7, held.addresses)
    numbers = np.arange(len(held), dtype=np.uint32)
    found = {}
    for size in (batch, len(held)):
        index = ShiftIndex(4096, max_depth)
        depths = np.zeros(len(held), dtype=np.uint8)
        parts = [slice(start, start + size) for start in range(0, len(held), size)]
        found[size] = [index.references_of(features[p], counts[p], numbers[p], depths) for p in parts]
        references = np.concatenate(found[size]).tolist()
        for page, reference in enumerate(references):
            assert reference == NONE or reference < page
            assert depths[page] == (0 if reference == NONE else 1 + depths[reference])
        assert depths.max() <= max_depth
    assert np.array_equal(np.concatenate(found[batch]), np.concatenate(found[len(held)]))
