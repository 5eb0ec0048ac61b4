# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole analysis: census, then every pipeline on every division into trust groups."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffengine.analysis.census import Census, Identical, find_identical, pages_shared_between, take_census
from diffengine.analysis.pipelines import (
    CLOCK_STATE_BYTES,
    DIGEST_BYTES,
    PAGE_TABLE_BYTES,
    Codec,
    Detector,
    Pipeline,
    PipelineResult,
    PipelineRun,
    Scope,
    expected_cost,
)
from diffengine.analysis.workers import Progress, Silent, Workers
from diffengine.images import PAGE_BYTES, ImageSet
from diffengine.native import Digester, PageKind, random_seed

ALL = "all images in one trust group"
ISOLATED = "each image in its own"
GROUPED = "groups as given"


@dataclass(frozen=True)
class AnalysisOptions:
    """k, s, candidates: the paper's HashSimilarityDetector. detector, codec: of the pipeline "best".

    table_memory: limit of the sharing table in bytes, None for the default. groups: indices of images by group name;
    images in no group are alone. store_file: where each pipeline's store is kept while it runs, None for memory.
    """

    k: int = 2
    s: int = 1
    candidates: int = 1
    detector: Detector = Detector.SHIFT
    codec: Codec = Codec.DENSE
    table_memory: int | None = None
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    store_file: str | None = None
    jobs: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class PageCounts:
    """distinct: different non-zero contents. sharable: non-zero pages less that. same_filled excludes zero."""

    total: int
    zero: int
    same_filled: int
    distinct: int
    sharable: int


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. results[scope name][pipeline name]; shared_between is a matrix by image."""

    images: tuple[tuple[str, int], ...]
    pages: PageCounts
    results: dict[str, dict[str, PipelineResult]]
    metadata_bytes_per_page: float
    cpu_seconds: dict[str, float]
    passes: int
    seed: int
    groups: dict[str, tuple[str, ...]]
    shared_between: NDArray[np.int64]

    @property
    def total_bytes(self) -> int:
        return self.pages.total * PAGE_BYTES


def pipelines(options: AnalysisOptions) -> tuple[Pipeline, ...]:
    """From what KSM and zswap do, through the paper, to our best."""
    return (
        Pipeline("sharing", share=True, codec=Codec.RAW),
        Pipeline("lz4", share=False, codec=Codec.LZ4),
        Pipeline("sharing+lz4", share=True, codec=Codec.LZ4),
        Pipeline(
            "paper",
            share=True,
            codec=Codec.LZ4,
            detector=Detector.HASH,
            candidates=options.candidates,
            patch_limit=PAGE_BYTES // 2,
            patch_first=True,
        ),
        Pipeline(
            "best",
            share=True,
            codec=options.codec,
            detector=options.detector,
            candidates=options.candidates,
        ),
    )


def analyze(
    images: ImageSet,
    options: AnalysisOptions,
    progress: Progress | None = None,
) -> Analysis:
    """Carries out every pipeline on the images. Results depend on the seed, not on jobs or table memory.

    Raises DiffengineError for a table memory that is too small, a store that can't be made, or a page that does not
    come back as it was.
    """
    seed = random_seed() if options.seed is None else options.seed
    progress = progress or Silent()
    with Workers(options.jobs) as workers:
        census = take_census(images, Digester(seed, options.k, options.s), workers, progress)
        images.expect_random()
        scopes = [
            Scope(name, groups, find_identical(images, census, groups, options.table_memory, workers))
            for name, groups in _divisions(images, options).items()
        ]
        runs = [(scope, pipeline) for scope in scopes for pipeline in pipelines(options)]
        progress.expect(sum(expected_cost(pipeline, scope, census) for scope, pipeline in runs))
        results: dict[str, dict[str, PipelineResult]] = {scope.name: {} for scope in scopes}
        for scope, pipeline in runs:
            run = PipelineRun(pipeline, scope, images, census, seed, workers, options.jobs, progress)
            results[scope.name][pipeline.name] = run.run(options.store_file)
    if len(images.images) == 1:
        results[ISOLATED] = results[ALL]
    identical = scopes[0].identical
    cpu_seconds = {str(stage): seconds for stage, seconds in workers.cpu_seconds.items()}
    return Analysis(
        images=tuple((image.path, image.pages) for image in images.images),
        pages=_count_pages(census, identical),
        results=results,
        metadata_bytes_per_page=PAGE_TABLE_BYTES
        + DIGEST_BYTES
        + CLOCK_STATE_BYTES
        + identical.table_bytes / images.pages,
        cpu_seconds={**cpu_seconds, "total": sum(cpu_seconds.values())},
        passes=identical.passes,
        seed=seed,
        groups={name: tuple(images.images[i].path for i in group) for name, group in options.groups.items()},
        shared_between=pages_shared_between(images, census),
    )


def _divisions(images: ImageSet, options: AnalysisOptions) -> dict[str, list[list[range]]]:
    ranges = [range(image.first_page, image.first_page + image.pages) for image in images.images]
    divisions = {ALL: [ranges]}
    if len(ranges) > 1:
        divisions[ISOLATED] = [[pages] for pages in ranges]
    if options.groups:
        named = {i for group in options.groups.values() for i in group}
        alone = [[pages] for i, pages in enumerate(ranges) if i not in named]
        divisions[GROUPED] = [[ranges[i] for i in sorted(group)] for group in options.groups.values()] + alone
    return divisions


def _count_pages(census: Census, identical: Identical) -> PageCounts:
    total = len(census.kinds)
    nonzero = int(census.nonzero.sum())
    distinct = len(identical.distinct_pages())
    return PageCounts(
        total=total,
        zero=total - nonzero,
        same_filled=int((census.kinds == PageKind.SAME_FILLED).sum()),
        distinct=distinct,
        sharable=nonzero - distinct,
    )
