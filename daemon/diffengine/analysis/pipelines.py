# SPDX-License-Identifier: GPL-2.0-or-later
"""One way to save memory, carried out on all pages as if all were cold.

Find references, encode, store, rebuild, compare: every pipeline fills a store of its own and is measured by what that
store takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import Census, Identical
from diffengine.analysis.references import (
    ENCODE_BATCH_PAGES,
    Found,
    find_by_hash,
    find_by_shift,
    optional_addresses,
)
from diffengine.analysis.verification import VERIFY_COST, verify_pages
from diffengine.analysis.workers import Pool, Progress, Stage, Workers
from diffengine.images import PAGE_BYTES, ImageSet
from diffengine.native import (
    NONE,
    TRAINING_ROUNDS,
    DenseCounter,
    DenseCounts,
    DenseModel,
    EncodedBatch,
    EncodeOptions,
    Encoding,
    PageEncoder,
    PageKind,
    PageNumbers,
    Rebuilder,
    Store,
    checksums,
)

# A model is trained on every n-th page, for about this many.
MODEL_SAMPLE_PAGES = 1500
MODEL_PART_PAGES = 128
FILL_BYTES = 8
PAGE_TABLE_BYTES = 8
DIGEST_BYTES = 8
CLOCK_STATE_BYTES = 1


class Detector(StrEnum):
    """How candidates for references are found."""

    NONE = "none"
    HASH = "hash"
    SHIFT = "shift"


class Codec(StrEnum):
    """What a page becomes that is not patched."""

    RAW = "raw"
    LZ4 = "lz4"
    ZSTD = "zstd"
    DENSE = "dense"


# Expected microseconds per page, for the progress display only.
ENCODE_COST = {Codec.RAW: 2.0, Codec.LZ4: 9.0, Codec.ZSTD: 22.0, Codec.DENSE: 110.0}

ENCODINGS = {
    Codec.RAW: Encoding.RAW,
    Codec.LZ4: Encoding.LZ4,
    Codec.ZSTD: Encoding.ZSTD,
    Codec.DENSE: Encoding.DENSE,
}


@dataclass(frozen=True)
class Pipeline:
    """Which techniques take part.

    share: identical pages become one object. candidates: the paper's c. patch_limit: longest fast patch, in bytes.
    patch_first: a patch within the limit is taken without a look at what the codec makes of the page, as in the paper.
    """

    name: str
    share: bool
    codec: Codec
    detector: Detector = Detector.NONE
    candidates: int = 1
    patch_limit: int = PAGE_BYTES - 1
    patch_first: bool = False


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline came to. Bytes but for counts of pages; `saving` is a fraction of all pages' bytes."""

    encoded_bytes: int
    bytes_left: int
    saving: float
    patched_pages: int
    mean_patch_bytes: float
    reference_pages: int
    compressed_pages: int
    raw_pages: int
    fill_pages: int
    store_bytes: int
    store_loss: float
    payload_bytes: int
    metadata_bytes: int
    verified_pages: int
    bytes_after_patching: int


@dataclass(frozen=True)
class Scope:
    """One division of the pages into trust groups, and what is identical within each."""

    name: str
    groups: Sequence[Sequence[range]]
    identical: Identical


@dataclass(frozen=True)
class Filled:
    """By page number: ids, the object that has the page's content (NONE if it has none of its own); is it a patch."""

    ids: NDArray[np.uint32]
    patched: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """pages: in order. references: for each the page it may be patched against, or NONE; always an earlier one."""

    pages: PageNumbers
    references: PageNumbers
    options: EncodeOptions
    model_id: int


@dataclass
class _Tally:
    """Counts of objects, kept up batch by batch."""

    patched: int = 0
    patch_bytes: int = 0
    compressed: int = 0
    raw: int = 0
    fill: int = 0

    def add(self, batch: EncodedBatch) -> None:
        raw = (batch.encodings == Encoding.RAW) & ~batch.patched
        self.raw += int(raw.sum())
        self.patched += int(batch.patched.sum())
        self.patch_bytes += int(batch.sizes[batch.patched].sum(dtype=np.int64))
        self.compressed += int((~batch.patched & ~raw).sum())


def expected_cost(pipeline: Pipeline, scope: Scope, census: Census) -> float:
    """Expected microseconds of a run, for the progress display."""
    nonzero = int(census.nonzero.sum())
    members = len(scope.identical.distinct_pages()) if pipeline.share else nonzero
    return members * ENCODE_COST[pipeline.codec] + nonzero * VERIFY_COST


def most_store_bytes(pages: int) -> int:
    """A limit that no pipeline's store reaches: every page raw, with its header, and some room."""
    return pages * (PAGE_BYTES + 64) + (64 << 20)


class PipelineRun:
    """One pipeline on one scope. `run` does everything; the steps after it are its parts, in order."""

    def __init__(
        self,
        pipeline: Pipeline,
        scope: Scope,
        images: ImageSet,
        census: Census,
        seed: int,
        workers: Workers,
        jobs: int,
        progress: Progress,
    ) -> None:
        self._pipeline = pipeline
        self._scope = scope
        self._images = images
        self._census = census
        self._seed = seed
        self._workers = workers
        self._jobs = jobs
        self._progress = progress
        self._ids = np.full(images.pages, NONE, dtype=np.uint32)
        self._patched = np.zeros(images.pages, dtype=np.bool_)
        self._is_reference = np.zeros(images.pages, dtype=np.bool_)
        self._tally = _Tally()
        self._index_bytes = 0
        self._encoders = Pool([PageEncoder() for _ in range(jobs)])

    def run(self, store_file: str | None, inspect: Callable[[Store, Filled], None] | None = None) -> PipelineResult:
        """`inspect` is called with the full store, once all of it was verified.

        Raises DiffengineError if a single page does not come back as it was.
        """
        self._progress.begin(f"{self._pipeline.name}, {self._scope.name}")
        with Store(most_store_bytes(self._images.pages), store_file) as store:
            if store_file is not None:
                # The file lives as long as the store has it open, and no crash leaves it behind.
                Path(store_file).unlink()
            try:
                self.fill(store)
                verified = self._verify(store)
                if inspect:
                    inspect(store, self.filled)
            finally:
                self._workers.settle()
            return self._result(store, verified)

    def _verify(self, store: Store) -> int:
        leaders = self._scope.identical.leaders
        nonzero = self._census.nonzero
        ids = np.full(self._images.pages, NONE, dtype=np.uint32)
        ids[nonzero] = self._ids[leaders[nonzero]] if self._pipeline.share else self._ids[nonzero]
        rebuilders = [Rebuilder(store) for _ in range(self._jobs)]
        try:
            return verify_pages(self._images, ids, Pool(rebuilders), self._workers, self._progress, self._pipeline.name)
        finally:
            self._workers.settle()
            for rebuilder in rebuilders:
                rebuilder.close()

    def fill(self, store: Store) -> Filled:
        """Puts an object for every page that gets one into the store."""
        for group in self._scope.groups:
            plan = self.plan(store, group)
            self.put(store, plan, np.ones(len(plan.pages), dtype=np.bool_))
        return self.filled

    @property
    def filled(self) -> Filled:
        return Filled(self._ids, self._patched)

    def plan(self, store: Store, group: Sequence[range]) -> Plan:
        """Finds references for a group's pages, and what to encode with. Same-filled pages are put right away."""
        members = np.concatenate([self._members(part) for part in group])
        same_filled = self._census.kinds[members] == PageKind.SAME_FILLED
        self._put_same_filled(store, members[same_filled])
        plain = members[~same_filled]
        references = self._find_references(plain)
        return Plan(plain, references, *self._options(store, plain, references))

    def _members(self, part: range) -> PageNumbers:
        """The pages of a range that get an object of their own."""
        numbers = np.arange(part.start, part.stop, dtype=np.uint32)
        if self._pipeline.share:
            chosen = self._scope.identical.leaders[numbers] == numbers
        else:
            chosen = self._census.nonzero[numbers]
        members: PageNumbers = numbers[chosen]
        return members

    def _put_same_filled(self, store: Store, pages: PageNumbers) -> None:
        if not len(pages):
            return
        addresses = self._images.addresses(pages)
        store.put(
            addresses,  # a page's first word is the whole payload
            np.full(len(pages), FILL_BYTES, dtype=np.uint16),
            np.full(len(pages), Encoding.FILL, dtype=np.uint8),
            checksums(addresses),
            pages,
            np.full(len(pages), NONE, dtype=np.uint32),
            self._ids,
        )
        self._tally.fill += len(pages)

    def _find_references(self, pages: PageNumbers) -> PageNumbers:
        found = Found(np.full(len(pages), NONE, dtype=np.uint32), 0)
        if self._pipeline.detector is Detector.SHIFT and len(pages):
            found = find_by_shift(self._images, pages, self._seed, self._workers)
        elif self._pipeline.detector is Detector.HASH and len(pages):
            found = find_by_hash(
                self._images,
                pages,
                self._census.keys,
                self._pipeline.candidates,
                self._pipeline.patch_limit,
                self._encoders,
                self._workers,
            )
        # One group after the other is looked at, so the largest index is what is needed.
        self._index_bytes = max(self._index_bytes, found.index_bytes)
        return found.references

    def _options(self, store: Store, pages: PageNumbers, references: PageNumbers) -> tuple[EncodeOptions, int]:
        pipeline = self._pipeline
        if pipeline.codec is not Codec.DENSE:
            codec = ENCODINGS[pipeline.codec]
            return EncodeOptions(codec, pipeline.patch_limit, pipeline.patch_first), NONE
        step = max(1, len(pages) // MODEL_SAMPLE_PAGES)
        model = self._train(pages[::step], references[::step])
        return EncodeOptions(Encoding.DENSE, model=model), store.put_model(model)

    def _train(self, pages: PageNumbers, references: PageNumbers) -> DenseModel:
        """A model for these pages. The sum of the parts' counts does not depend on how the sample is cut."""
        addresses, reference_addresses = self._images.addresses(pages), optional_addresses(self._images, references)
        parts = [slice(i, i + MODEL_PART_PAGES) for i in range(0, len(pages), MODEL_PART_PAGES)]
        model = DenseModel()
        for _ in range(TRAINING_ROUNDS if parts else 0):

            def count(part: slice, current: DenseModel = model) -> DenseCounts:
                return DenseCounter().count(current, addresses[part], reference_addresses[part])

            total = DenseCounts()
            for counts in self._workers.map(Stage.ENCODE, count, parts):
                total.add(counts)
            model = DenseModel(total)
        return model

    def put(self, store: Store, plan: Plan, chosen: NDArray[np.bool_]) -> None:
        """Encodes and puts the chosen pages of a plan. What they refer to must be chosen too, or be there."""
        pages, references = plan.pages[chosen], plan.references[chosen]

        def encode(part: slice) -> tuple[slice, EncodedBatch, NDArray[np.uint32]]:
            addresses = self._images.addresses(pages[part])
            with self._encoders.borrow() as encoder:
                batch = encoder.encode(plan.options, addresses, optional_addresses(self._images, references[part]))
            return part, batch, checksums(addresses)

        parts = [slice(i, i + ENCODE_BATCH_PAGES) for i in range(0, len(pages), ENCODE_BATCH_PAGES)]
        for part, batch, sums in self._workers.map(Stage.ENCODE, encode, parts):
            with self._workers.clock(Stage.ENCODE):
                self._put(store, pages[part], references[part], batch, sums, plan.model_id)
            self._progress.advance(len(batch.sizes), len(batch.sizes) * ENCODE_COST[self._pipeline.codec])

    def _put(
        self,
        store: Store,
        pages: PageNumbers,
        references: PageNumbers,
        batch: EncodedBatch,
        sums: NDArray[np.uint32],
        model_id: int,
    ) -> None:
        needed = np.where(batch.patched, references, np.uint32(NONE))
        self._is_reference[needed[batch.patched]] = True
        self._patched[pages] = batch.patched
        store.put(batch.addresses(), batch.sizes, batch.encodings, sums, pages, needed, self._ids, model_id)
        self._tally.add(batch)

    def _result(self, store: Store, verified: int) -> PipelineResult:
        statistics = store.statistics()
        tally = self._tally
        store_bytes = statistics.populated_bytes + statistics.table_bytes
        encoded = statistics.payload_bytes + statistics.header_bytes
        metadata = self._metadata_bytes()
        zero_frame = 0 if self._census.nonzero.all() else PAGE_BYTES
        left = store_bytes + zero_frame + metadata
        unpatched = tally.raw + tally.compressed
        return PipelineResult(
            encoded_bytes=encoded,
            bytes_left=left,
            saving=1 - left / (self._images.pages * PAGE_BYTES),
            patched_pages=tally.patched,
            mean_patch_bytes=tally.patch_bytes / tally.patched if tally.patched else 0.0,
            reference_pages=int(self._is_reference.sum()),
            compressed_pages=tally.compressed,
            raw_pages=tally.raw,
            fill_pages=tally.fill,
            store_bytes=store_bytes,
            store_loss=1 - encoded / store_bytes if store_bytes else 0.0,
            payload_bytes=statistics.payload_bytes,
            metadata_bytes=metadata,
            verified_pages=verified,
            bytes_after_patching=unpatched * PAGE_BYTES + tally.patch_bytes,
        )

    def _metadata_bytes(self) -> int:
        """What stays in memory beside the store: all of it by page but for the tables."""
        per_page = PAGE_TABLE_BYTES
        tables = self._index_bytes
        if self._pipeline.share:
            per_page += DIGEST_BYTES + CLOCK_STATE_BYTES
            tables += self._scope.identical.table_bytes
        return per_page * self._images.pages + tables
