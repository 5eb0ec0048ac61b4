# SPDX-License-Identifier: GPL-2.0-or-later
"""What experiments conclude from results, made by hand here so that the right conclusion is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffengine.evaluation.experiment import Outcome, Result, UnavailableError
from diffengine.evaluation.experiments import (
    c1_c4,
    fig4,
    fig5_7,
    fig8,
    fig9_11,
    fig12,
    passes,
    peers,
    rig,
    scale,
    swapping,
)
from diffengine.evaluation.simulating import Lifetimes, kaplan_meier, shifting_trace
from diffengine.hypervisor.protocol import PageState

TECHNIQUES = ("sharing", "patching", "compression", "swapping")
MIB = 1 << 20


def simulated(savings: list[float], operations: int = 1000, **more: Any) -> Result:
    """A run's summary: one saving a second, all of it by sharing, and operations done evenly."""
    count = len(savings)
    times = [float(second) for second in range(count)]
    return {
        "saving": {"mean": float(np.mean(savings[:-1])), "end": savings[-1]},
        "mean_by_technique": dict.fromkeys(TECHNIQUES, 0.0) | {"sharing": float(np.mean(savings[:-1]))},
        "used_bytes": {"guests": 0, "store": 0, "tables": 0, "swap": 0},
        "allocated_bytes": 100 * MIB,
        "guest": {"reads": operations, "writes": 0, "stall_us_per_s": 10.0},
        "refaults": 5,
        "touches": 0,
        "evictions": 50,
        "latency_us": {"guest_wait": {"p50": 1.0, "p99": 2.0}},
        "cpu_s": {"scan": 1.0, "fault": 0.0},
        "table_bytes": {"engine": 1024},
        "sweeps": 10,
        "passes": 1,
        "domains": [{"stall_us_per_s": 10.0}],
        "duration_s": times[-1],
        "series": {
            "time_s": times,
            "saving": savings,
            **{name: savings if name == "sharing" else [0.0] * count for name in TECHNIQUES},
            "refaults": [second * 2 for second in range(count)],
            "swap_bytes": [second * MIB for second in range(count)],
            "scan_cpu_s": [1.0 if second else 0.0 for second in range(count)],
            "operations": [round(operations * second / (count - 1)) for second in range(count)],
        },
        **more,
    }


def draw(outcome: Outcome) -> None:
    """Every picture can be drawn, every row has a cell for each column."""
    for picture in outcome.pictures:
        assert picture.draw().axes
    for table in outcome.tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_lives_that_go_on_count_until_they_are_last_seen() -> None:
    # Of four pages one comes back after 2 s and one after 6; one is seen out for 4 s, one for 10.
    ended, alive = np.array([2.0, 6.0]), np.array([4.0, 10.0])
    assert kaplan_meier(ended, alive, [1.0, 2.0, 5.0, 6.0, 10.0]) == pytest.approx([1.0, 0.75, 0.75, 0.375, 0.375])
    assert kaplan_meier(ended, alive, [11.0]) == [None]
    assert kaplan_meier(np.empty(0), np.empty(0), [1.0]) == [None]


def test_a_lifetime_is_from_going_to_coming_back() -> None:
    out, resident = PageState.EVICTED, PageState.RESIDENT
    lifetimes = Lifetimes()
    course = {0.0: (resident, out), 1.0: (out, out), 4.0: (resident, out), 5.0: (out, out), 7.0: (resident, out)}
    for time_s, states in course.items():
        lifetimes.note(time_s, [np.array(states, dtype=np.uint8)])
    # Lives of 3 and 2 s that ended, and one of 7 s that goes on.
    assert lifetimes.untouched_after([1.0, 2.0, 3.0, 7.0]) == pytest.approx([1.0, 2 / 3, 1 / 3, 1 / 3])


def test_a_shifting_trace_stays_and_then_moves(tmp_path: Path) -> None:
    shifting_trace(tmp_path / "bits", 1, 0.25, stays=2, intervals=4, bits=64)
    maps = np.unpackbits(np.fromfile(tmp_path / "bits", dtype=np.uint8), bitorder="little").reshape(4, 64)
    assert (maps.sum(axis=1) == 16).all()
    assert (maps[0] == maps[1]).all()
    assert (maps[1] != maps[2]).any()


def test_a_plateau_must_hold() -> None:
    assert fig5_7.plateau(simulated([0, 0, 0.9, 0, 0, 0.5, 0.5, 0.6, 0.5, 0, 0, 0])) == 0.5


def test_figures_5_to_7_judge_each_technique_by_the_paper() -> None:
    results = {f"identical-{technique}": simulated([0.8] * 10) for technique in fig5_7.TECHNIQUES}
    outcome = fig5_7.conclude(results)
    assert [target.met for target in outcome.targets] == [True, False, False]
    draw(outcome)


def test_figures_9_to_11_compare_means() -> None:
    runs = {"default": simulated([0.6] * 5), "sharing-only": simulated([0.3] * 5)}
    results = {f"{mix}-{p}": run for mix in ("homogeneous", "live-alike", "live-unlike") for p, run in runs.items()}
    outcome = fig9_11.conclude(results)
    assert [(t.measured, t.met) for t in outcome.targets] == [("2.00 times", True), ("2.00 times", False)]
    draw(outcome)


def test_half_a_pair_is_no_comparison() -> None:
    runs = {"homogeneous-default": simulated([0.6] * 5), "homogeneous-sharing-only": simulated([0.3] * 5)}
    outcome = fig9_11.conclude({**runs, "live-alike-default": simulated([0.6] * 5)})
    assert outcome.targets == []


def test_figure_12_finds_the_limit() -> None:
    work = {4: 4000, 5: 5000, 6: 6000, 7: 3000}
    results = {str(n): simulated([0.5] * 11, done, limit_bytes=50 * MIB) for n, done in work.items()}
    outcome = fig12.conclude(results)
    assert [target.met for target in outcome.targets] == [True, True]
    assert "serves 6 best" in outcome.verdict[0]
    assert "do 50 % of that" in outcome.verdict[1]
    assert fig12.settled(results["4"])["used"] == pytest.approx(1.0)
    draw(outcome)


def test_figure_12_says_when_no_limit_was_found() -> None:
    results = {str(n): simulated([0.5] * 11, n * 1000, limit_bytes=50 * MIB) for n in (4, 5)}
    outcome = fig12.conclude(results)
    assert outcome.targets[0].met is False
    assert "not found" in outcome.verdict[1]


def test_figure_12_bears_that_no_sample_was_taken_for_long() -> None:
    result = simulated([0.5] * 5, 1000, limit_bytes=50 * MIB)
    result["series"]["time_s"] = [0.0, 1.0, 2.0, 3.0, 40.0]
    assert fig12.settled(result)["operations_per_s"] == pytest.approx(250 / 37)


def test_guests_that_do_not_fit_are_not_served_best() -> None:
    def run(done: int, used: float) -> Result:
        return simulated([1 - used / 2] * 11, done, limit_bytes=50 * MIB)

    fits = {"4": run(4000, 0.8), "5": run(5000, 0.9)}
    outcome = fig12.conclude({**fits, "6": run(6000, 1.1)})
    assert [(target.measured, target.met) for target in outcome.targets] == [
        ("best with 5, of those that fit", False),
        ("1.25 times", False),
    ]
    assert "serves 5 best" in outcome.verdict[0]
    assert "6, guests together do 120 % of that, in 110 % of the memory" in outcome.verdict[1]
    assert not any("limit the paper shows" in line for line in outcome.verdict)
    draw(outcome)
    none = fig12.conclude({"4": run(4000, 1.1), "6": run(6000, 1.2)})
    assert [target.met for target in none.targets] == [False, False]
    assert "None" in none.verdict[0]
    draw(none)


def test_figure_12_compares_with_four_guests_or_not_at_all() -> None:
    results = {str(n): simulated([0.5] * 11, n * 1000, limit_bytes=50 * MIB) for n in (5, 6, 8)}
    with pytest.raises(KeyError):
        fig12.conclude(results)


def test_swapping_is_judged_by_what_guests_wait() -> None:
    disks = {disk: simulated([0.4] * 5, domains=[{"stall_us_per_s": 250_000.0}]) for disk in swapping.DISKS}
    result = {"ours": simulated([0.5] * 5), "swapping": disks}
    outcome = swapping.conclude({"homogeneous": result})
    assert "stand still 0.001 % of their time" in outcome.verdict[0]
    assert "which saved 40 % against 50 %" in outcome.verdict[0]
    assert "hard disk 25.00 %" in outcome.verdict[0]
    draw(outcome)


@pytest.mark.parametrize(("wanted", "per_share", "expected"), [(0.4, 0.8, 0.5), (0.4, 0.3, 0.98), (0.4, 0.0, 0.4)])
def test_swapping_is_tried_until_it_saves_as_much(wanted: float, per_share: float, expected: float) -> None:
    tried = []

    def run(share: float) -> Result:
        tried.append(share)
        return simulated([share * per_share] * 5)

    share, found = swapping.as_much_by_swapping(wanted, run)
    assert share == pytest.approx(expected)
    assert found["saving"]["mean"] == pytest.approx(share * per_share)
    assert len(tried) <= 2


def test_passes_must_end_with_the_same_saving() -> None:
    ends = {"1": 0.5, "5": 0.49, "20": 0.4}
    results = {name: simulated([0.0, end / 2, end, end]) for name, end in ends.items()}
    outcome = passes.PASSES_EXPERIMENT.conclude(results)
    (target,) = outcome.targets
    assert target.met is False
    assert "after 2 s" in outcome.verdict[0]
    del results["20"]
    assert passes.PASSES_EXPERIMENT.conclude(results).targets[0].met is True
    draw(outcome)


def test_one_run_has_nothing_to_be_the_same_as() -> None:
    (target,) = passes.PASSES_EXPERIMENT.conclude({"5": simulated([0.0, 0.5, 0.5, 0.5])}).targets
    assert target.met is None


@pytest.mark.parametrize("end", [-0.008, 0.0, 0.02])
def test_nothing_saved_is_not_the_same_saving(end: float) -> None:
    results = {name: simulated([0.0, end, end, end]) for name in ("1", "5", "20")}
    for experiment in (passes.PASSES_EXPERIMENT, passes.HEAP_EXPERIMENT):
        outcome = experiment.conclude(results)
        assert outcome.targets[0].met is False
        assert len(outcome.verdict) == len(results)


def test_figure_8_relates_work_to_that_without_the_engine() -> None:
    results = {"1-default": simulated([0.5] * 5, 990), "1-nothing": simulated([0.0] * 5, 1000)}
    outcome = fig8.conclude({**results, "2-default": simulated([0.5] * 5)})
    assert "99.0 % of the operations" in outcome.verdict[0]
    draw(outcome)


@pytest.mark.parametrize("experiment", [fig4, c1_c4])
def test_policies_are_put_side_by_side(experiment: Any) -> None:
    more = {"ages_s": [10.0, 100.0], "untouched": [0.8, None]}
    outcome = experiment.conclude({policy: simulated([0.5] * 5, **more) for policy in experiment.POLICIES})
    assert len(outcome.tables[0].rows) >= 1
    draw(outcome)


def test_cost_is_told_over_the_run_and_after_its_beginning() -> None:
    gib = {"memory-1024": 1 << 30, "memory-2048": 2 << 30, "domains-2": 1 << 30, "domains-8": 1 << 30}
    results = {
        name: simulated([0.5] * 11, allocated_bytes=size, cpu_s={"scan": size / (1 << 30), "fault": 0.0})
        for name, size in gib.items()
    }
    outcome = scale.conclude(results)
    # A second of ten for each GiB, all of it in the first half.
    assert [row[1:] for row in outcome.tables[1].rows] == [
        pytest.approx([10.0 * row_gib, 0.0], abs=1e-6) for row_gib in scale.EXTRAPOLATED_GIB
    ]
    assert "in 2 domains costs 10.00 % of a core, in 8 10.00 %" in outcome.verdict[1]
    draw(outcome)


def peers_results(ours_left: int, scan: dict[str, float]) -> dict[str, Result]:
    pipeline = {"bytes_left": ours_left, "metadata_bytes": 20_000, "timings": {"cpu_s": 1.0}}
    merged = {"merged": 600, "own_cpu_s": 2.0, "to_most_s": 3.0}
    return {
        "ours": {"pages": {"total": 1000, "shared": 100}, "ours": pipeline, "sharing only": pipeline},
        "ksm": {"timings": {"turns": [{"ksm": merged, "scan": scan}]}},
        "zram-lz4": {"memory_bytes": 900_000, "timings": {"cpu_s": 1.0}},
    }


def test_peers_are_beaten_by_numbers_only() -> None:
    scan = {"freed_bytes": 500 * 4096.0, "to_most_s": 1.5, "to_most_cpu_s": 0.1, "to_all_s": 2.0, "to_all_cpu_s": 0.5}
    outcome = peers.conclude(peers_results(1_000_000, scan))
    assert [target.met for target in outcome.targets] == [True, True, True]
    assert [target.measured for target in outcome.targets[1:]] == ["0.25 of KSM's", "0.50 of KSM's"]
    slow = peers.conclude(peers_results(3_000_000, scan | {"to_all_cpu_s": 2.5, "to_most_s": 4.0}))
    assert [target.met for target in slow.targets] == [False, False, False]
    draw(outcome)


def test_a_scan_that_did_not_get_there_is_not_met() -> None:
    outcome = peers.conclude(peers_results(1_000_000, {"freed_bytes": 4096.0}))
    assert [target.met for target in outcome.targets] == [True, False]


def test_without_ksm_nothing_is_judged() -> None:
    results = peers_results(1_000_000, {})
    del results["ksm"]
    (target,) = peers.conclude(results).targets
    assert target.met is None


def test_the_rigs_results_are_read_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "applications.json"
    with pytest.raises(UnavailableError, match="not run"):
        rig.read(str(path))
    path.write_text('{"workloads": [{"name": "build"}]}')
    with pytest.raises(UnavailableError, match="not what the rig writes"):
        rig.read(str(path))
    build = {"name": "build", "unit": "s", "baseline": 100, "with_engine": 105, "saved": 0.4}
    serve = {"name": "serve", "unit": "requests/s", "baseline": 100, "with_engine": 98, "saved": 0.4}
    path.write_text(json.dumps({"workloads": [build, serve]}))
    found = rig.read(str(path))
    assert [rig.overhead(each) for each in found["workloads"]] == pytest.approx([5.0, 2.0])
    draw(rig.conclude({"applications": found}))
