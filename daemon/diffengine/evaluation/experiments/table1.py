# SPDX-License-Identifier: GPL-2.0-or-later
"""Table 1: classes of pages, and what is left after each step."""

from functools import partial

from matplotlib.figure import Figure

from diffengine.evaluation import drawing, paper
from diffengine.evaluation.carrying_out import trial
from diffengine.evaluation.experiment import (
    Basis,
    Cell,
    Column,
    Experiment,
    Outcome,
    Picture,
    Result,
    Results,
    Step,
    Table,
)
from diffengine.evaluation.pipelines import OURS, PAPERS_PATCHING
from diffengine.evaluation.setting import Setting
from diffengine.evaluation.texts import percent
from diffengine.images import PAGE_BYTES

PAPER = "paper: XP, Debian, Slackware"


def run(paths: list[str], seed: int, jobs: int) -> Result:
    with trial(paths, seed, jobs) as images:
        pages = images.pages
        return {"pages": pages, "patching": images.run(PAPERS_PATCHING), "ours": images.run(OURS)}


def plan(setting: Setting) -> list[Step]:
    return [
        Step(
            subset.name,
            run,
            {"paths": subset.paths, "seed": setting.seed, "jobs": setting.jobs},
            seconds=sum(image.path.stat().st_size for image in subset.images) / (1 << 30) * 9 + 1,
            alone=True,
        )
        for subset in setting.images.need_subsets()
    ]


def _counts(result: Result) -> dict[str, float]:
    """In pages, patches as the pages that they fill, by the paper's own way of counting."""
    pages, patching, ours = result["pages"], result["patching"], result["ours"]
    return {
        "all pages": pages["total"],
        "zero": pages["zero"],
        "unique": pages["unique"],
        "shared: contents": pages["shared"],
        "shared: their pages": pages["copies"],
        "left after sharing": pages["distinct"] + (pages["zero"] > 0),
        "patched": patching["patched_pages"],
        "references": patching["reference_pages"],
        "mean patch, bytes": patching["mean_patch_bytes"],
        "left after patching": patching["bytes_after_patching"] / PAGE_BYTES + (pages["zero"] > 0),
        "ours: all memory left": ours["bytes_left"] / PAGE_BYTES,
    }


def _paper_counts() -> dict[str, float | None]:
    printed = paper.TABLE_1_PAGES
    copies = printed["total"] - printed["zero"] - printed["unique"]
    return {
        "all pages": printed["total"],
        "zero": printed["zero"],
        "unique": printed["unique"],
        "shared: contents": printed["shared"],
        "shared: their pages": copies,
        "left after sharing": paper.TABLE_1_AFTER_SHARING,
        "patched": paper.TABLE_1_PATCHED,
        "references": paper.TABLE_1_REFERENCES,
        "mean patch, bytes": paper.TABLE_1_MEAN_PATCH_BYTES,
        "left after patching": paper.TABLE_1_AFTER_PATCHING,
        "ours: all memory left": None,
    }


def conclude(results: Results) -> Outcome:
    counts = {name: _counts(result) for name, result in results.items()}
    printed = _paper_counts()
    rows: list[list[Cell]] = [[key, value, *(counts[name][key] for name in counts)] for key, value in printed.items()]
    columns = [Column("pages"), Column(PAPER, ",.0f"), *(Column(name, ",.0f") for name in counts)]
    return Outcome(
        tables=[Table("Table 1: pages by class, and pages' worth of memory left after each step", columns, rows)],
        pictures=[
            Picture(
                "table1",
                "Share of the guests' memory left after sharing, after patching in the paper's form, and with all "
                "that we do; the paper's figures beside it. The paper's table counts no page tables and no indexes; "
                "only the last bar of ours does.",
                partial(_draw, counts),
            )
        ],
        verdict=_verdict(counts),
    )


def _verdict(counts: dict[str, dict[str, float]]) -> list[str]:
    parts = []
    for name, count in counts.items():
        total = count["all pages"]
        after_sharing = 1 - count["left after sharing"] / total
        after_patching = 1 - count["left after patching"] / total
        nonzero = total - count["zero"]
        shared_share = count["shared: their pages"] / nonzero
        patched_share = count["patched"] / max(1.0, count["left after sharing"])
        parts.append(
            f"{name}: sharing frees {percent(after_sharing)} of the memory (the paper: 50 %), and patching takes it to "
            f"{percent(after_patching)} (77 %). {percent(count['zero'] / total)} of all pages are zero (the paper: "
            f"38 %), and {percent(shared_share)} of the others have a copy. The paper's detector finds a patch for "
            f"{percent(patched_share)} of what sharing leaves (the paper: 74 %)."
        )
    parts.append(
        "The paper's table shows that many pages that are not identical are similar, and what each step leaves. It "
        "does not show what compression alone would leave, nor what tables and indexes cost."
    )
    return parts


def _draw(counts: dict[str, dict[str, float]]) -> Figure:
    figure, (axis,) = drawing.figure()
    printed = {key: value for key, value in _paper_counts().items() if value is not None}
    sets = {PAPER.replace(": ", ":\n"): printed, **counts}
    steps = ("left after sharing", "left after patching", "ours: all memory left")
    series = {
        step: [100 * each.get(step, float("nan")) / each["all pages"] for each in sets.values()] for step in steps
    }
    drawing.grouped_bars(axis, list(sets), series, (drawing.SKY, drawing.ORANGE, drawing.BLUE))
    drawing.titles(axis, "Memory left", y="% of the guests' memory")
    drawing.legend(axis)
    return figure


EXPERIMENT = Experiment(
    name="table1",
    title="Table 1: what pages there are",
    question="How many pages are zero, shared, unique, and how much is left after sharing and after patching?",
    method="Counted on the images, with patches of at most 2 KB in the fast form against pages that "
    "HashSimilarityDetector(2,1) finds; a page is no patch's reference and a patch itself. Ours is put beside it.",
    basis=Basis.COUNTED,
    plan=plan,
    conclude=conclude,
)
