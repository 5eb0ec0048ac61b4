# SPDX-License-Identifier: GPL-2.0-or-later
"""What every analysis must keep to, whatever the images: counts, sums, trust groups; nothing hangs on threads."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffengine.analysis import AnalysisOptions, analyze
from diffengine.analysis.analyze import ALL, GROUPED, ISOLATED, Analysis
from diffengine.analysis.pipelines import Codec, Detector
from diffengine.images import open_images
from page_fixtures import PAGE, edited, page_lists, pieces, random_page, text_page, word_page, write_image

ZERO = bytes(PAGE)
Images = list[list[bytes]]
# Each example is ten pipelines; this many find what there is to find in some seconds.
EXAMPLES = settings(max_examples=25)


def analysis_of(images: Sequence[Sequence[bytes]], options: AnalysisOptions) -> Analysis:
    with tempfile.TemporaryDirectory() as directory:
        paths = [write_image(Path(directory, f"{n}.raw"), pages) for n, pages in enumerate(images)]
        with open_images(paths) as opened:
            return analyze(opened, options)


@st.composite
def image_lists(draw: st.DrawFn, least: int = 1, most: int = 3) -> Images:
    """Images whose pages come from one pool, so that they share. With a zero page none is taken for a text file."""
    pool = [ZERO, *draw(page_lists(max_size=14))]
    pages = st.lists(st.sampled_from(pool), max_size=23).map(lambda others: [ZERO, *others])
    return draw(st.lists(pages, min_size=least, max_size=most))


@st.composite
def options_of(draw: st.DrawFn) -> AnalysisOptions:
    return AnalysisOptions(
        k=draw(st.sampled_from([1, 2, 4, 32])),
        s=draw(st.sampled_from([1, 2])),
        candidates=draw(st.sampled_from([1, 3])),
        detector=draw(st.sampled_from(Detector)),
        codec=draw(st.sampled_from([Codec.LZ4, Codec.ZSTD, Codec.DENSE])),
        seed=draw(st.integers(0, 2**64 - 1)),
        jobs=draw(st.integers(1, 3)),
    )


def is_filled(page: bytes) -> bool:
    return page == page[:8] * (PAGE // 8)


def different(pages: Sequence[bytes]) -> set[bytes]:
    return set(pages) - {ZERO}


def check_counts(analysis: Analysis, images: Images) -> None:
    pages = [page for image in images for page in image]
    nonzero = [page for page in pages if page != ZERO]
    counts = analysis.pages
    assert counts.total == len(pages)
    assert counts.zero == len(pages) - len(nonzero)
    assert counts.same_filled == sum(map(is_filled, nonzero))
    assert counts.distinct == len(set(nonzero))
    assert counts.sharable == len(nonzero) - len(set(nonzero))
    assert [count for _, count in analysis.images] == list(map(len, images))


def check_shared_between(analysis: Analysis, images: Images) -> None:
    for row, left in enumerate(images):
        for column, right in enumerate(images):
            copies = Counter(page for page in left if page != ZERO)
            among_each_other = sum(copies.values()) - len(copies)
            with_other = sum(count for page, count in copies.items() if page in right)
            assert analysis.shared_between[row, column] == (among_each_other if row == column else with_other)


def check_scope(analysis: Analysis, scope: str, groups: Sequence[Sequence[bytes]]) -> None:
    """groups: the pages of each trust group."""
    results, pages = analysis.results[scope], [page for group in groups for page in group]
    nonzero = [page for page in pages if page != ZERO]
    contents = [page for group in groups for page in different(group)]
    filled = sum(map(is_filled, contents))
    for name, result in results.items():
        objects = nonzero if name == "lz4" else contents
        assert result.verified_pages == len(pages)
        assert result.fill_pages == sum(map(is_filled, objects))
        # Each content is one object in each group that has it: none serves two groups, none is missing.
        assert result.fill_pages + result.raw_pages + result.compressed_pages + result.patched_pages == len(objects)
        zero_frame = PAGE if ZERO in pages else 0
        assert result.bytes_left == result.store_bytes + zero_frame + result.metadata_bytes
        assert result.saving == pytest.approx(1 - result.bytes_left / (len(pages) * PAGE))
        assert result.encoded_bytes >= result.payload_bytes
        assert result.store_bytes >= result.encoded_bytes
        assert result.reference_pages <= result.patched_pages
        assert (result.reference_pages > 0) == (result.patched_pages > 0)
    assert results["sharing"].raw_pages == len(contents) - filled
    assert results["sharing"].compressed_pages == results["sharing"].patched_pages == 0
    assert results["lz4"].patched_pages == results["sharing+lz4"].patched_pages == 0
    assert results["paper"].mean_patch_bytes <= PAGE / 2
    assert results["paper"].patched_pages + results["paper"].reference_pages <= len(contents)
    assert results["best"].payload_bytes <= results["sharing"].payload_bytes + 8192 * len(groups)


@EXAMPLES
@given(image_lists(), options_of())
def test_counts_and_sums_are_right(images: Images, options: AnalysisOptions) -> None:
    analysis = analysis_of(images, options)
    check_counts(analysis, images)
    check_shared_between(analysis, images)
    check_scope(analysis, ALL, [[page for image in images for page in image]])
    check_scope(analysis, ISOLATED, images)
    if options.detector is Detector.NONE:
        assert all(results["best"].patched_pages == 0 for results in analysis.results.values())
    if len(images) == 1:
        assert analysis.results[ALL] == analysis.results[ISOLATED]


@EXAMPLES
@given(image_lists(), options_of(), st.integers(2, 5))
def test_results_do_not_depend_on_threads(images: Images, options: AnalysisOptions, jobs: int) -> None:
    one = analysis_of(images, replace(options, jobs=1))
    several = analysis_of(images, replace(options, jobs=jobs))
    assert one.results == several.results
    assert one.pages == several.pages


@EXAMPLES
@given(image_lists(least=2, most=4), options_of(), st.data())
def test_groups_keep_to_themselves(images: Images, options: AnalysisOptions, data: st.DataObject) -> None:
    group_of = [data.draw(st.sampled_from(["alone", "web", "db"])) for _ in images]
    groups = {
        name: tuple(n for n, group in enumerate(group_of) if group == name)
        for name in ("web", "db")
        if name in group_of
    }
    analysis = analysis_of(images, replace(options, groups=groups))
    members = [[page for n in group for page in images[n]] for group in groups.values()]
    members += [images[n] for n, group in enumerate(group_of) if group == "alone"]
    if groups:
        check_scope(analysis, GROUPED, members)
    else:
        assert GROUPED not in analysis.results


@EXAMPLES
@given(image_lists(least=2, most=3), options_of())
def test_all_images_in_one_given_group_is_what_all_means(images: Images, options: AnalysisOptions) -> None:
    groups = {"everything": tuple(range(len(images)))}
    analysis = analysis_of(images, replace(options, groups=groups))
    assert analysis.results[GROUPED] == analysis.results[ALL]


def test_no_patch_leans_on_another_group() -> None:
    """Pages that are each similar to one of the other image, and to none of their own."""
    left = [random_page(n) for n in range(64)]
    right = [page[:600] + b"edited" + page[606:] for page in left]
    options = AnalysisOptions(seed=1, k=8, groups={"left": (0,), "right": (1,)})
    results = analysis_of([left, right], options).results
    for scope in (ISOLATED, GROUPED):
        assert results[scope]["paper"].patched_pages == results[scope]["best"].patched_pages == 0
    assert results[ALL]["best"].patched_pages > 32
    assert results[ALL]["paper"].patched_pages > 56


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, PAGE - 1), pieces), min_size=1, max_size=12))
def test_the_paper_s_patches_are_at_most_half_a_page(edits: list[tuple[int, object]]) -> None:
    base = random_page(1)
    pages = [base, *(edited(base, offset, piece, False) for offset, piece in edits)]  # type: ignore[arg-type]
    paper = analysis_of([pages], AnalysisOptions(seed=1, k=32)).results[ALL]["paper"]
    if paper.patched_pages == 1:
        assert 0 < paper.mean_patch_bytes <= PAGE // 2
    assert paper.mean_patch_bytes * paper.patched_pages <= paper.patched_pages * PAGE // 2


def test_equal_seeds_give_equal_results_and_others_other_patches() -> None:
    pages = [text_page(n) for n in range(60)] + [edited_copy(n) for n in range(60)]
    same = [analysis_of([pages], AnalysisOptions(seed=1)) for _ in range(2)]
    assert same[0].results == same[1].results
    papers = {analysis_of([pages], AnalysisOptions(seed=seed)).results[ALL]["paper"].encoded_bytes for seed in range(6)}
    assert len(papers) > 1


def edited_copy(number: int) -> bytes:
    page = bytearray(text_page(number))
    for block in range(number % 7, 64, 3):
        page[64 * block] ^= 1
    return bytes(page)


def test_word_pages_take_eight_bytes_each() -> None:
    pages = [word_page(n.to_bytes(8, "little")) for n in range(1, 201)]
    result = analysis_of([pages, pages], AnalysisOptions(seed=1)).results[ALL]["sharing"]
    assert (result.fill_pages, result.raw_pages) == (200, 0)
    assert result.payload_bytes == 200 * 8
