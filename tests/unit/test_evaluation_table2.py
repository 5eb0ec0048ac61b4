# SPDX-License-Identifier: GPL-2.0-or-later
"""Table 2: every operation is really carried out, and judged by the paper's time for it."""

from pathlib import Path

from diffengine.evaluation.experiments import table2
from evaluation_runs import small_images


def test_every_operation_has_a_time(samples: dict[str, Path], tmp_path: Path) -> None:
    folder = small_images(samples, tmp_path / "images", pages=1024)
    paths = [str(folder / f"{name}.raw") for name in ("d12a-work", "d12b-work")]
    result = table2.run(paths, seed=1, rounds=2)
    times = result["timings"]
    assert times.keys() >= set(table2.PAPERS.values())
    assert all(us > 0 for found in times.values() for us in found.values())
    outcome = table2.conclude({"operations": result})
    assert {row[0] for row in outcome.tables[0].rows} == times.keys()
    assert all(target.met is not None for target in outcome.targets)
    assert outcome.pictures[0].draw().axes


def test_what_no_page_was_there_for_has_no_time() -> None:
    nan = float("nan")
    assert table2.known({"share": {"alone": nan}, "swap in": {"alone": nan, "with all around it": 1.0}}) == {
        "swap in": {"with all around it": 1.0}
    }


def test_slower_than_the_paper_is_not_met() -> None:
    times = {"share": {"with all around it": 6.3}, "compress (LZ4)": {"alone": 29.7}}
    met = {
        target.claim.split(":")[0]: target.met for target in table2.conclude({"operations": {"timings": times}}).targets
    }
    assert (met["share"], met["compress"], met["swap in"]) == (False, True, None)
