# SPDX-License-Identifier: GPL-2.0-or-later
"""Small images and settings for the evaluation's tests, and experiments run on them in this process."""

from pathlib import Path

from diffengine.evaluation.experiment import Experiment, Outcome, Results
from diffengine.evaluation.setting import Setting, read_corpus

SMALL_PAGES = 256
NAMES = ("d12a-work", "d12b-work", "d13a-work")


def small_images(samples: dict[str, Path], folder: Path, pages: int = SMALL_PAGES) -> Path:
    """The first pages of each sample; the copies among them are those of the samples."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        with samples[name].open("rb") as image:
            (folder / f"{name}.raw").write_bytes(image.read(pages * 4096))
    return folder


def small_setting(folder: Path, seed: int = 1) -> Setting:
    corpus = read_corpus([folder])
    return Setting(corpus, corpus, seed, quick=True, jobs=1)


def run_here(experiment: Experiment, setting: Setting) -> tuple[Results, Outcome]:
    results = {step.name: step.run(**step.arguments) for step in experiment.plan(setting)}
    return results, experiment.conclude(results)
