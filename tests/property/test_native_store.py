# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages encoded, put into a store and rebuilt: each codec, any page, any reference; and wrong pages are told."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffengine.native import (
    NONE,
    PAGE_BYTES,
    TRAINING_ROUNDS,
    DenseCounter,
    DenseCounts,
    DenseModel,
    EncodedBatch,
    EncodeOptions,
    Encoding,
    FullError,
    NativeError,
    PageEncoder,
    Rebuilder,
    Store,
    checksums,
)
from page_fixtures import PAGE, Pages, fresh_pages, page_lists, random_page, text_page, word_page

LZ4 = ctypes.CDLL("liblz4.so.1")

CODECS = [Encoding.RAW, Encoding.LZ4, Encoding.ZSTD, Encoding.DENSE]
LIMITS = st.sampled_from([0, 1, 100, 2048, 4095])


def trained_on(pages: Pages, references: Sequence[int | None], parts: int = 1) -> DenseModel:
    """A model of these pages; they are counted in so many parts."""
    numbers, model = np.arange(len(pages)), DenseModel()
    for _ in range(TRAINING_ROUNDS):
        total = DenseCounts()
        for part in np.array_split(numbers, parts):
            addresses = pages.addresses_or_none(references)[part]
            total.add(DenseCounter().count(model, pages.addresses[part], addresses))
        model = DenseModel(total)
    return model


def options_for(codec: Encoding, pages: Pages, references: Sequence[int | None], **others: object) -> EncodeOptions:
    """Dense pages are encoded with a model trained on them."""
    model = trained_on(pages, references) if codec is Encoding.DENSE else None
    return EncodeOptions(codec, model=model, **others)  # type: ignore[arg-type]


def put(
    store: Store, pages: Pages, references: Sequence[int | None], options: EncodeOptions
) -> tuple[EncodedBatch, NDArray[np.uint32]]:
    """Encodes all pages and puts them; the batch, and the objects' ids."""
    batch = PageEncoder().encode(options, pages.addresses, pages.addresses_or_none(references))
    model = store.put_model(options.model) if options.model else NONE
    needed = np.array([NONE if n is None else n for n in references], dtype=np.uint32)
    needed[~batch.patched] = NONE
    ids = np.full(len(pages), NONE, dtype=np.uint32)
    numbers = np.arange(len(pages), dtype=np.uint32)
    sums = checksums(pages.addresses)
    store.put(batch.addresses(), batch.sizes, batch.encodings, sums, numbers, needed, ids, model)
    return batch, ids


def depths_of(references: Sequence[int | None]) -> list[int]:
    depths: list[int] = []
    for reference in references:
        depths.append(0 if reference is None else 1 + depths[reference])
    return depths


@st.composite
def pages_with_references(draw: st.DrawFn) -> tuple[list[bytes], list[int | None]]:
    """Pages, and for each an earlier one or None; chains no longer than the store takes (three)."""
    pages = draw(page_lists(max_size=12))
    references: list[int | None] = []
    for page in range(len(pages)):
        depths = depths_of(references)
        near = [None, *(n for n in range(page) if depths[n] < 3)]
        references.append(draw(st.sampled_from(near)))
    return pages, references


@given(pages_with_references(), st.sampled_from(CODECS), LIMITS, st.booleans())
def test_every_page_comes_back(
    given_pages: tuple[list[bytes], list[int | None]], codec: Encoding, limit: int, patch_first: bool
) -> None:
    pages, references = Pages(given_pages[0]), given_pages[1]
    options = options_for(codec, pages, references, patch_limit=limit, patch_first=patch_first)
    with Store(64 << 20) as store:
        batch, ids = put(store, pages, references, options)
        rebuilder = Rebuilder(store)
        assert rebuilder.verify(ids, pages.addresses).all()
        for page in range(len(pages)):
            # Each id gives its page and no other.
            same = [other == pages.contents[page] for other in pages.contents]
            assert rebuilder.verify(np.full(len(pages), ids[page], np.uint32), pages.addresses).tolist() == same
        del rebuilder
        statistics = store.statistics()
        models = int(codec is Encoding.DENSE)
        assert statistics.objects == len(pages) + models
        assert statistics.payload_bytes >= batch.sizes.sum(dtype=int)
        assert (statistics.payload_bytes == batch.sizes.sum(dtype=int)) == (not models)
    assert (batch.sizes <= PAGE_BYTES).all()
    alone = [n is None for n in references]
    assert not batch.patched[alone].any()
    if codec is not Encoding.DENSE:
        assert (batch.sizes[batch.patched] <= limit).all()
        assert (batch.encodings == Encoding.PATCH).tolist() == batch.patched.tolist()
    assert ((batch.encodings == Encoding.RAW) == (batch.sizes == PAGE_BYTES)).all()


@given(st.lists(fresh_pages, min_size=1, max_size=6), st.sampled_from(CODECS), st.data())
def test_a_page_with_one_other_byte_is_told(given_pages: list[bytes], codec: Encoding, data: st.DataObject) -> None:
    pages = Pages(given_pages)
    wrong = data.draw(st.integers(0, len(pages) - 1))
    place = data.draw(st.integers(0, PAGE - 1))
    changed = bytearray(pages.contents[wrong])
    changed[place] ^= data.draw(st.integers(1, 255))
    others = Pages([*pages.contents[:wrong], bytes(changed), *pages.contents[wrong + 1 :]])
    alone = [None] * len(pages)
    with Store(64 << 20) as store:
        _, ids = put(store, pages, alone, options_for(codec, pages, alone))
        right = Rebuilder(store).verify(ids, others.addresses)
    assert right.tolist() == [n != wrong for n in range(len(pages))]


def test_an_id_that_is_none_of_the_store_s_rebuilds_nothing() -> None:
    pages = Pages([text_page(1)])
    with Store(1 << 20) as store:
        _, ids = put(store, pages, [None], EncodeOptions(Encoding.LZ4))
        unknown = np.array([int(ids[0]) + 1000], dtype=np.uint32)
        assert Rebuilder(store).verify(unknown, pages.addresses).tolist() == [False]
        store.release(ids)
        assert Rebuilder(store).verify(ids, pages.addresses).tolist() == [False]


@given(st.lists(fresh_pages, min_size=1, max_size=8))
def test_the_lz4_package_reads_lz4_payloads_and_they_are_as_short_as_the_library_s(given_pages: list[bytes]) -> None:
    pages = Pages(given_pages)
    batch = PageEncoder().encode(EncodeOptions(Encoding.LZ4), pages.addresses, np.zeros(len(pages), np.uint64))
    for n, page in enumerate(pages.contents):
        payload = batch.payloads[n * PAGE : n * PAGE + int(batch.sizes[n])].tobytes()
        raw = batch.encodings[n] == Encoding.RAW
        assert (payload if raw else lz4.block.decompress(payload, uncompressed_size=PAGE)) == page
        assert raw or batch.encodings[n] == Encoding.LZ4
        # By the library that is linked, too: the package brings an LZ4 of its own, of another version.
        alone = LZ4.LZ4_compress_default(page, ctypes.create_string_buffer(2 * PAGE), PAGE, 2 * PAGE)
        assert len(payload) == min(alone, PAGE)


@given(st.lists(fresh_pages, min_size=1, max_size=8), st.sampled_from([1, 3, 19]))
def test_zstd_payloads_are_frames_that_the_zstandard_package_reads(given_pages: list[bytes], level: int) -> None:
    pages = Pages(given_pages)
    encoder = PageEncoder(zstd_level=level)
    batch = encoder.encode(EncodeOptions(Encoding.ZSTD), pages.addresses, np.zeros(len(pages), np.uint64))
    reader = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    for n, page in enumerate(pages.contents):
        payload = batch.payloads[n * PAGE : n * PAGE + int(batch.sizes[n])].tobytes()
        raw = batch.encodings[n] == Encoding.RAW
        assert (payload if raw else reader.decompress(payload, max_output_size=PAGE)) == page
        assert raw or batch.encodings[n] == Encoding.ZSTD


def test_a_patch_of_a_lightly_edited_page_is_short_and_wins() -> None:
    page = random_page(1)
    edited = page[:1000] + b"changed" + page[1007:]
    pages = Pages([page, edited, page[40:] + bytes(40)])
    references = [None, 0, 0]
    for codec in CODECS:
        options = options_for(codec, pages, references, patch_limit=2048)
        batch = PageEncoder().encode(options, pages.addresses, pages.addresses_or_none(references))
        assert batch.patched.tolist() == [False, True, True]
        assert (batch.sizes[1:] < 80).all()


def test_a_patch_must_win_by_more_than_its_reference_costs() -> None:
    pages = Pages([word_page(b"ABCDEFGH"), word_page(b"ABCDEFGH")])
    references = [None, 0]
    encoder = PageEncoder()
    alone = encoder.encode(EncodeOptions(Encoding.LZ4), pages.addresses, np.zeros(2, np.uint64)).sizes[0]
    patch = encoder.patch_sizes(pages.addresses[1:], pages.addresses[:1].reshape(1, 1), 4095)[0, 0]
    assert 0 < patch < alone
    for cost in (int(alone - patch) - 1, int(alone - patch)):
        options = EncodeOptions(Encoding.LZ4, patch_limit=4095, reference_bytes=cost)
        batch = encoder.encode(options, pages.addresses, pages.addresses_or_none(references))
        assert bool(batch.patched[1]) == (patch + cost < alone)
    first = EncodeOptions(Encoding.LZ4, patch_limit=4095, reference_bytes=255, patch_first=True)
    assert encoder.encode(first, pages.addresses, pages.addresses_or_none(references)).patched[1]


def test_patch_sizes_keep_to_the_limit_and_pass_over_what_is_not_there() -> None:
    page = random_page(1)
    pages = Pages([page, page[:2000] + random_page(2)[:500] + page[2500:]])
    encoder = PageEncoder()
    candidates = np.array([[0, pages.addresses[0]]], dtype=np.uint64)
    absent, size = encoder.patch_sizes(pages.addresses[1:], candidates, 4095)[0].tolist()
    assert absent == 0 and 500 <= size < 600
    assert encoder.patch_sizes(pages.addresses[1:], candidates, size - 1)[0].tolist() == [0, 0]
    assert encoder.patch_sizes(pages.addresses[1:], candidates, size)[0].tolist() == [0, size]


@settings(max_examples=10)
@given(pages_with_references(), st.integers(2, 5))
def test_a_dense_model_does_not_depend_on_how_its_pages_are_cut(
    given_pages: tuple[list[bytes], list[int | None]], parts: int
) -> None:
    pages, references = Pages(given_pages[0]), given_pages[1]
    assert trained_on(pages, references, parts).save() == trained_on(pages, references).save()


def test_a_dense_model_of_like_pages_makes_them_shorter() -> None:
    pages = Pages([text_page(n) for n in range(100)])
    alone = np.zeros(100, np.uint64)
    models = [DenseModel(), trained_on(pages, [None] * 100)]
    default, trained = (
        PageEncoder().encode(EncodeOptions(Encoding.DENSE, model=model), pages.addresses, alone).sizes.sum(dtype=int)
        for model in models
    )
    assert trained < 0.95 * default


def test_dense_needs_a_model_and_levels_have_limits() -> None:
    pages = Pages([text_page(1)])
    with pytest.raises(NativeError, match="encoding pages"):
        PageEncoder().encode(EncodeOptions(Encoding.DENSE), pages.addresses, np.zeros(1, np.uint64))
    with pytest.raises(NativeError, match="making an encoder"):
        PageEncoder(lz4_level=13)


def test_a_full_store_says_so_and_keeps_what_it_has() -> None:
    pages = Pages([random_page(n) for n in range(400)])
    alone = [None] * 200
    with Store(1 << 20) as store:
        first = Pages(pages.contents[:200])
        _, ids = put(store, first, alone, EncodeOptions(Encoding.RAW))
        with pytest.raises(FullError, match="putting pages into the store: it is full"):
            put(store, Pages(pages.contents[200:]), alone, EncodeOptions(Encoding.RAW))
        assert store.statistics().populated_bytes <= 1 << 20
        assert Rebuilder(store).verify(ids, first.addresses).all()


def test_a_store_smaller_than_a_chunk_is_refused() -> None:
    with pytest.raises(NativeError, match="making the store in memory"):
        Store(4096)


def test_statistics_of_a_store_file_are_what_the_kernel_says(tmp_path: Path) -> None:
    path = tmp_path / "store"
    pages = Pages([text_page(n) for n in range(600)] + [random_page(n) for n in range(300)])
    with Store(64 << 20, str(path)) as store:
        assert path.stat().st_mode & 0o777 == 0o600
        _, ids = put(store, pages, [None] * len(pages), EncodeOptions(Encoding.LZ4))
        full = store.statistics()
        assert full.populated_bytes == path.stat().st_blocks * 512
        assert full.populated_bytes >= full.payload_bytes + full.header_bytes
        store.release(ids[::2].copy())
        store.compact()
        half = store.statistics()
        assert half.populated_bytes == path.stat().st_blocks * 512
        assert half.populated_bytes < 0.7 * full.populated_bytes
        assert half.objects == len(pages) // 2
        assert Rebuilder(store).verify(ids[1::2].copy(), pages.addresses[1::2].copy()).all()
        store.release(ids[1::2].copy())
        store.compact()
        assert store.statistics().objects == 0
        assert store.statistics().payload_bytes == store.statistics().header_bytes == 0


def test_a_store_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(b"somebody's")
    with pytest.raises(NativeError, match=f"making the store {path}: File exists"):
        Store(64 << 20, str(path))
    assert path.read_bytes() == b"somebody's"


def test_a_byte_damaged_in_the_store_s_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    page = random_page(1)
    pages = Pages([page, page[:500] + b"another" + page[507:]])
    with Store(1 << 20, str(path)) as store:
        batch, ids = put(store, pages, [None, 0], EncodeOptions(Encoding.RAW, patch_limit=2048))
        assert batch.patched.tolist() == [False, True]
        rebuilder = Rebuilder(store)
        at = path.read_bytes().index(page[:64]) + 3000  # of the reference, which is kept as it is
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([page[3000] ^ 1]))
        assert rebuilder.verify(ids, pages.addresses).tolist() == [False, False]
