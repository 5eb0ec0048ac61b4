# SPDX-License-Identifier: GPL-2.0-or-later
"""fill_store.py FILE IMAGE...: fills a store file as `diffengine analyze` does in its pipeline `best`."""

import os
import sys
from collections.abc import Sequence

from diffengine.analysis import AnalysisOptions
from diffengine.analysis.analyze import ALL, pipelines
from diffengine.analysis.census import find_identical, take_census
from diffengine.analysis.pipelines import PipelineRun, Scope, most_store_bytes
from diffengine.analysis.workers import Silent, Workers
from diffengine.images import open_images
from diffengine.native import Digester, Store

SEED = 1


def fill(path: str, image_paths: Sequence[str], jobs: int) -> None:
    """All images in one trust group. The file must not exist."""
    options = AnalysisOptions()
    (best,) = (pipeline for pipeline in pipelines(options) if pipeline.name == "best")
    with open_images(image_paths) as images, Workers(jobs) as workers:
        census = take_census(images, Digester(SEED, options.k, options.s), workers, Silent())
        groups = [[range(image.first_page, image.first_page + image.pages) for image in images.images]]
        identical = find_identical(images, census, groups, None, workers)
        run = PipelineRun(best, Scope(ALL, groups, identical), images, census, SEED, workers, jobs, Silent())
        with Store(most_store_bytes(images.pages), path) as store:
            run.fill(store)


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2:], os.cpu_count() or 1)
