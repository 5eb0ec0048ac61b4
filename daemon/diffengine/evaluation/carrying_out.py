# SPDX-License-Identifier: GPL-2.0-or-later
"""Pipelines of `analyze` on a set of images, as one trust group, with the detector's switches that only matter here."""

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import Census, find_identical, take_census
from diffengine.analysis.pipelines import Filled, Pipeline, PipelineRun, Scope, most_store_bytes
from diffengine.analysis.references import optional_addresses
from diffengine.analysis.workers import Silent, Workers
from diffengine.evaluation.experiment import TIMINGS
from diffengine.images import PAGE_BYTES, ImageSet, open_images
from diffengine.native import NONE, Addresses, Digester, PageEncoder, PageKind, PageNumbers, Rebuilder, Store

# How many objects of a kind are rebuilt for the time that one takes.
TIMED_OBJECTS = 4096
REBUILD_BATCH = 64
SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Keys:
    """HashSimilarityDetector(k, s). bits: of a key, None for all of them. uniform_blocks: keys of blocks of one
    repeated byte, zero most of all, are indexed too."""

    k: int = 2
    s: int = 1
    bits: int | None = None
    uniform_blocks: bool = False


class Trial:
    """Images that pipelines are carried out on."""

    def __init__(self, images: ImageSet, seed: int, jobs: int, workers: Workers) -> None:
        self._images = images
        self._seed = seed
        self._jobs = jobs
        self._workers = workers
        self._censuses: dict[Keys, Census] = {}
        census = self.census(Keys())
        images.expect_random()
        whole = [[range(image.first_page, image.first_page + image.pages) for image in images.images]]
        self._scope = Scope("all", whole, find_identical(images, census, whole, None, workers))
        self.pages = self._count_pages(census)

    def census(self, keys: Keys) -> Census:
        if keys not in self._censuses:
            digester = Digester(self._seed, keys.k, keys.s, keys.uniform_blocks)
            census = take_census(self._images, digester, self._workers, Silent())
            if keys.bits is not None:
                census = replace(census, keys=narrowed(census.keys, keys.bits))
            self._censuses = {keys: census}  # the keys of one at a time: they are large
        return self._censuses[keys]

    def _count_pages(self, census: Census) -> dict[str, int]:
        """By class, as `analyze` names them; unique, shared: contents that one page has, or more; copies: pages with
        the latter."""
        leaders = self._scope.identical.leaders
        _, copies = np.unique(leaders[leaders != NONE], return_counts=True)
        nonzero = int(census.nonzero.sum())
        return {
            "total": len(leaders),
            "zero": len(leaders) - nonzero,
            "nonzero": nonzero,
            "distinct": len(copies),
            "unique": int((copies == 1).sum()),
            "shared": int((copies > 1).sum()),
            "copies": int(copies[copies > 1].sum()),
            "same_filled": int((census.kinds == PageKind.SAME_FILLED).sum()),
        }

    def references(self, pipeline: Pipeline) -> tuple[PageNumbers, PageNumbers]:
        """The distinct pages that are not same-filled, and for each the page it may be patched against, or NONE."""
        run = self._pipeline_run(pipeline)
        with Store(most_store_bytes(self._images.pages)) as store:
            plan = run.plan(store, self._scope.groups[0])
        return plan.pages, plan.references

    def copies(self) -> tuple[PageNumbers, PageNumbers]:
        """Pages that have the content of an earlier page, none of which is zero or same-filled: (earlier, later)."""
        leaders = self._scope.identical.leaders
        numbers = np.arange(len(leaders), dtype=np.uint32)
        plain = self.census(Keys()).kinds == PageKind.PLAIN
        _, first = np.unique(leaders, return_index=True)
        followers = numbers[(leaders != NONE) & (leaders != numbers) & plain]
        # One follower for each content: a second one would find its frame shared already.
        _, index = np.unique(leaders[followers], return_index=True)
        later = followers[index]
        return leaders[later], later

    def unique(self) -> PageNumbers:
        """Plain pages that lead: one of each content."""
        leaders = self._scope.identical.leaders
        numbers = np.arange(len(leaders), dtype=np.uint32)
        plain = self.census(Keys()).kinds == PageKind.PLAIN
        chosen: PageNumbers = numbers[(leaders == numbers) & plain]
        return chosen

    def addresses(self) -> Addresses:
        """Of all pages."""
        return self._images.addresses(np.arange(self._images.pages, dtype=np.uint32))

    def put(self, pipeline: Pipeline, store: Store, pages: PageNumbers) -> NDArray[np.uint32]:
        """Puts the objects of these pages, which need no others; ids by page number."""
        run = self._pipeline_run(pipeline)
        plan = run.plan(store, self._scope.groups[0])
        run.put(store, plan, np.isin(plan.pages, pages))
        return run.filled.ids

    def encode_us(self, pipeline: Pipeline, patched: bool) -> float:
        """Microseconds to encode a page, of those with a reference or of those without: the median over batches."""
        run, encoder = self._pipeline_run(pipeline), PageEncoder()
        with Store(most_store_bytes(self._images.pages)) as store:
            plan = run.plan(store, self._scope.groups[0])
        chosen = np.flatnonzero((plan.references != NONE) == patched)
        chosen = np.random.default_rng(self._seed).permutation(chosen)[:TIMED_OBJECTS]
        spent = []
        for start in range(0, len(chosen), REBUILD_BATCH):
            part = chosen[start : start + REBUILD_BATCH]
            pages, references = plan.pages[part], plan.references[part]
            addresses = self._images.addresses(pages)
            reference_addresses = optional_addresses(self._images, references)
            begin = time.perf_counter()
            encoder.encode(plan.options, addresses, reference_addresses)
            spent.append((time.perf_counter() - begin) / len(part) * 1e6)
        return float(np.median(spent)) if spent else float("nan")

    def _pipeline_run(self, pipeline: Pipeline, keys: Keys = Keys()) -> PipelineRun:  # noqa: B008
        census = self.census(keys)
        return PipelineRun(pipeline, self._scope, self._images, census, self._seed, self._workers, self._jobs, Silent())

    def content(self, page: int) -> bytes:
        address = int(self._images.addresses(np.array([page], dtype=np.uint32))[0])
        return ctypes.string_at(address, PAGE_BYTES)

    def run(self, pipeline: Pipeline, keys: Keys = Keys(), timed: bool = False) -> dict[str, Any]:  # noqa: B008
        """What a pipeline came to. timed: with the CPU time that its encoding and rebuilding took."""
        before = dict(self._workers.cpu_seconds)
        times: dict[str, float] = {}

        def inspect(store: Store, filled: Filled) -> None:
            if timed:
                times.update(time_rebuilding(store, filled, self._seed))

        run = self._pipeline_run(pipeline, keys)
        result = run.run(None, inspect)
        nonzero_bytes = self.pages["nonzero"] * PAGE_BYTES
        found = {**asdict(result), "saving_of_nonzero": 1 - result.bytes_left / nonzero_bytes}
        if timed:
            after = self._workers.cpu_seconds
            found[TIMINGS] = {**times, "cpu_s": sum(after[stage] - before[stage] for stage in before)}
        return found


def narrowed(keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Keys as if they had only so many bits: what agrees in those is one key. 0, "not to be indexed", stays 0."""
    low = keys & np.uint64((1 << bits) - 1)
    # Spread over all bits again, since the index chooses slots by them; an odd factor keeps different keys different.
    spread: NDArray[np.uint64] = np.maximum(low, 1) * SPREAD
    return np.where(keys == 0, keys, spread)


@contextmanager
def trial(paths: Sequence[str], seed: int, jobs: int) -> Iterator[Trial]:
    with open_images(paths) as images, Workers(jobs) as workers:
        yield Trial(images, seed, jobs, workers)


def time_rebuilding(store: Store, filled: Filled, seed: int) -> dict[str, float]:
    """Microseconds per page to rebuild patched pages, and others, from a store: the median over batches."""
    there = filled.ids != NONE
    rebuilder = Rebuilder(store)
    times = {}
    try:
        for name, chosen in (("patched", there & filled.patched), ("alone", there & ~filled.patched)):
            ids = np.random.default_rng(seed).permutation(filled.ids[chosen])[:TIMED_OBJECTS]
            if len(ids):
                times[f"rebuild_{name}_us"] = _median_us(rebuilder, ids)
    finally:
        rebuilder.close()
    return times


def _median_us(rebuilder: Rebuilder, ids: NDArray[np.uint32]) -> float:
    pages = np.empty(REBUILD_BATCH * PAGE_BYTES, dtype=np.uint8)
    spent = []
    for start in range(0, len(ids), REBUILD_BATCH):
        batch = np.ascontiguousarray(ids[start : start + REBUILD_BATCH])
        begin = time.perf_counter()
        rebuilder.rebuild(batch, pages)
        spent.append((time.perf_counter() - begin) / len(batch) * 1e6)
    return float(np.median(spent))
