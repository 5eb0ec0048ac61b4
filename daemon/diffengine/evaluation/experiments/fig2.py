# SPDX-License-Identifier: GPL-2.0-or-later
"""Figure 2: what the similarity detector's parameters bring."""

from dataclasses import asdict, replace
from functools import partial

from matplotlib.figure import Figure

from diffengine.analysis.pipelines import Detector, Pipeline
from diffengine.evaluation import drawing, paper
from diffengine.evaluation.carrying_out import Keys, trial
from diffengine.evaluation.experiment import (
    Basis,
    Column,
    Experiment,
    Outcome,
    Picture,
    Result,
    Results,
    Step,
    Table,
)
from diffengine.evaluation.pipelines import PAPERS_PATCHING
from diffengine.evaluation.setting import Setting
from diffengine.images import PAGE_BYTES

PAPERS_BITS = 18
# (k, s), candidates, bits of a key, blocks of one byte indexed.
AS_IN_THE_PAPER = [(k, s, 1, PAPERS_BITS, True) for k, s in paper.FIGURE_2]
FURTHER = [
    (2, 1, 2, PAPERS_BITS, True),
    (2, 1, 8, PAPERS_BITS, True),
    (2, 1, 1, 32, True),
    (2, 1, 1, PAPERS_BITS, False),
    (2, 1, 1, None, False),
    (2, 1, 8, None, False),
    (4, 1, 1, None, False),
    (8, 1, 1, None, False),
    (16, 1, 1, None, False),
    (32, 1, 1, None, False),
]
QUICK_FURTHER = [FURTHER[i] for i in (1, 2, 3, 4, 7, 9)]
SHIFT = "shift-tolerant (ours)"
# Of the bars, where the values stand.
MARKS_ABOVE = 0.42
# The choice of offsets decides which pages are found: several seeds tell by how much.
SEEDS = {True: 3, False: 5}


def patching(detector: Detector, candidates: int = 1) -> Pipeline:
    """Patches of at most half a page, and nothing else."""
    return replace(PAPERS_PATCHING, detector=detector, candidates=candidates)


def label(k: int, s: int, candidates: int, bits: int | None, uniform_blocks: bool) -> str:
    width = f"{bits} bits" if bits else "wide keys"
    return f"({k},{s}) c={candidates}, {width}{', uniform blocks' if uniform_blocks else ''}"


def run(paths: list[str], detectors: list[tuple[int, int, int, int | None, bool]], seeds: int, seed: int) -> Result:
    with trial(paths, seed, 1) as images:
        pages = images.pages
        found = [
            {
                "name": label(k, s, c, bits, uniform),
                "keys": asdict(keys := Keys(k, s, bits, uniform)),
                "candidates": c,
                **_patched(images.run(patching(Detector.HASH, c), keys), pages),
            }
            for k, s, c, bits, uniform in detectors
        ]
        shift = _patched(images.run(patching(Detector.SHIFT)), pages)
        found.append({"name": SHIFT, "keys": None, "candidates": 1, **shift})
    by_seed = []
    for other in range(seed + 1, seed + seeds):
        with trial(paths, other, 1) as images:
            by_seed.append(_patched(images.run(patching(Detector.HASH), Keys()), pages)["saved_of_distinct"])
    return {"pages": pages, "detectors": found, "by_seed": by_seed}


def _patched(result: Result, pages: dict[str, int]) -> Result:
    """What patching saved, of what sharing had left and of all memory."""
    distinct_bytes = pages["distinct"] * PAGE_BYTES
    saved = distinct_bytes - result["bytes_after_patching"]
    return {
        "patched": result["patched_pages"],
        "references": result["reference_pages"],
        "mean_patch_bytes": result["mean_patch_bytes"],
        "saved_of_distinct": saved / distinct_bytes,
        "saved_of_all": saved / (pages["total"] * PAGE_BYTES),
    }


def plan(setting: Setting) -> list[Step]:
    detectors = AS_IN_THE_PAPER + (QUICK_FURTHER if setting.quick else FURTHER)
    seeds = SEEDS[setting.quick]
    return [
        Step(
            subset.name,
            run,
            {"paths": subset.paths, "detectors": detectors, "seeds": seeds, "seed": setting.seed},
            seconds=(len(detectors) + seeds)
            * sum(image.path.stat().st_size for image in subset.images)
            / (1 << 30)
            * 3,
        )
        for subset in setting.images.need_subsets()
    ]


def conclude(results: Results) -> Outcome:
    return Outcome(
        tables=[_table(name, result) for name, result in results.items()],
        pictures=[
            Picture(
                "fig2",
                "What patching saves of the memory that sharing left, by the detector's parameters: (keys, blocks in a "
                "key), candidates per key, width of a key. Hollow marks: the paper's MIXED-1 and MIXED-2.",
                partial(_draw, results),
            )
        ],
        verdict=_verdict(results),
    )


def _table(name: str, result: Result) -> Table:
    rows = [
        [
            found["name"],
            found["patched"],
            found["references"],
            found["mean_patch_bytes"],
            found["saved_of_distinct"] * 100,
            found["saved_of_all"] * 100,
        ]
        for found in result["detectors"]
    ]
    columns = [
        Column("detector"),
        Column("patches", ",d"),
        Column("references", ",d"),
        Column("mean patch, B", ",.0f"),
        Column("saved of what sharing left, %", ".1f"),
        Column("saved of all memory, %", ".1f"),
    ]
    return Table(f"{name}: {result['pages']['distinct']:,} different pages after sharing", columns, rows)


def _savings(result: Result) -> dict[str, float]:
    return {found["name"]: found["saved_of_distinct"] * 100 for found in result["detectors"]}


def _verdict(results: Results) -> list[str]:
    parts = []
    for name, result in results.items():
        saved = _savings(result)
        standard, wide = label(2, 1, 1, PAPERS_BITS, True), label(2, 1, 1, None, False)
        offsets = [saved[wide], *(100 * each for each in result["by_seed"])]
        parts.append(
            f"{name}: the paper's choice, (2,1) with one candidate and 18-bit keys, saves {saved[standard]:.1f} % of "
            "what sharing left (the paper: 20.1 and 38.8). Eight candidates change that by "
            f"{saved[label(2, 1, 8, PAPERS_BITS, True)] - saved[standard]:+.1f} points if keys stay narrow; keys of "
            f"32 bits save {saved[label(2, 1, 1, 32, True)]:.1f} % (the paper's MIXED-1: {paper.FIGURE_2_WIDE_KEYS}), "
            f"wide keys without blocks of one byte save {saved[wide]:.1f} %, and "
            f"{saved[label(32, 1, 1, None, False)]:.1f} % with 32 keys. Other random offsets move (2,1) between "
            f"{min(offsets):.1f} and {max(offsets):.1f} %. The shift-tolerant detector saves {saved[SHIFT]:.1f} %."
        )
    parts.append(
        "As in the paper, more keys find more. Blocks of one byte matter much here, where nothing is compressed: they "
        "lead sparse pages to each other, whose patches are small; but compression makes just those pages small by "
        "itself, so their patches do not pay once it is there (see hypothesis), and ours leaves such keys out."
    )
    return parts


def _draw(results: Results) -> Figure:
    figure, axes = drawing.figure(columns=len(results), height=5, same_y=True)
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        saved = _savings(result)
        colours = [drawing.BLUE if each == SHIFT else drawing.SKY for each in saved]
        texts = [f"{value:.1f}" for value in saved.values()]
        places = drawing.horizontal_bars(axis, list(saved), list(saved.values()), texts, colours)
        printed = [(place, values) for place, values in zip(places, paper.FIGURE_2.values(), strict=False)]
        for number, (which, marker) in enumerate((("MIXED-1", "D"), ("MIXED-2", "s"))):
            drawing.draw_paper(
                axis,
                [values[number] for _, values in printed],
                [place + MARKS_ABOVE for place, _ in printed],
                marker,
                f"paper, {which}",
            )
        axis.set_xlim(0, 45)
        drawing.titles(axis, f"{name} guests", "saved (% of what sharing left)")
        drawing.legend(axis, loc="lower right")
    return figure


EXPERIMENT = Experiment(
    name="fig2",
    title="Figure 2: the similarity detector",
    question="How much do the number of keys, their length, candidates, the width of hashes and blocks of one repeated "
    "byte matter, and what does another detector find?",
    method="Patches of at most 2 KB in the fast form, taken unseen, after sharing; nothing is compressed. "
    "HashSimilarityDetector(k, s) indexes k keys of s 64-byte blocks each at random offsets. In the paper's own "
    "configuration keys are cut to 18 bits and blocks of one byte (most are zero) are indexed as all others.",
    basis=Basis.COUNTED,
    plan=plan,
    conclude=conclude,
)
