# SPDX-License-Identifier: GPL-2.0-or-later
"""The measuring sticks of tests/bench must themselves be right: verdicts, the yardstick, a process's own memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import footprint, live, simulations, targets, yardstick
from bench.targets import Row, Verdict
from diffengine.evaluation import ksm

MIB = 1 << 20
PAGE = 4096


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("", 0.5, (0.5,)), Verdict.MET),
        (Row("", 0.5, (0.51,)), Verdict.MISSED),
        (Row("", 0.7, (0.7,), at_least=True), Verdict.MET),
        (Row("", 0.7, (0.69,), at_least=True), Verdict.MISSED),
        (Row("", 0.5, (0.9, 0.4, 0.45)), Verdict.MET),
        (Row("", 0.5, (0.1, 0.6, 0.9)), Verdict.MISSED),
        (Row("", 0.5, (0.9,), judged=False), Verdict.NOT_JUDGED),
        (Row("", 0.5, ()), Verdict.NOT_MEASURED),
    ],
)
def test_verdict_is_the_medians(row: Row, verdict: Verdict) -> None:
    assert row.verdict is verdict
    assert verdict in targets.as_table([row])
    assert targets.as_json([row])[0]["verdict"] == verdict


def test_yardstick_streams_first_appearances(tmp_path: Path) -> None:
    pages = np.random.default_rng(5).integers(1, 9, (6, PAGE), dtype=np.uint8).view(f"V{PAGE}").ravel()
    zero = bytes(PAGE)
    left, right = tmp_path / "left.raw", tmp_path / "right.raw"
    left.write_bytes(pages[0].tobytes() + zero + pages[1].tobytes() + pages[0].tobytes() + pages[2].tobytes())
    right.write_bytes(pages[1].tobytes() + pages[3].tobytes() + zero + pages[5].tobytes())
    stream = b"".join(pages[i].tobytes() for i in (0, 1, 2, 3, 5))
    expected = subprocess.run(yardstick.COMMAND, input=stream, stdout=subprocess.PIPE, check=True).stdout
    assert yardstick.measure([left, right]) == yardstick.Yardstick(9, 2, 5, len(expected))


CHILD = """
import mmap, os, time
store = os.memfd_create("diffengine-store")
os.ftruncate(store, 256 << 20)
mapping = mmap.mmap(store, 256 << 20)
for offset in range(0, 48 << 20, 4096):
    mapping[offset] = 1
own = bytearray(b"x") * (64 << 20)
time.sleep(1)
print("done")
"""


def test_footprint_leaves_the_store_out(tmp_path: Path) -> None:
    run = footprint.run([sys.executable, "-c", CHILD], tmp_path / "output")
    assert run.output == "done\n"
    assert run.peak_store_bytes == 48 * MIB
    assert 64 * MIB <= run.peak_own_bytes < 96 * MIB
    assert run.peak_total_bytes >= run.peak_own_bytes + 47 * MIB
    assert run.wall_seconds >= 1
    assert 0 < run.cpu_seconds < run.wall_seconds


def test_footprint_reports_failure(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        footprint.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "output")


def test_footprint_knows_a_tmpfs(tmp_path: Path) -> None:
    for path, kind in ((Path("/dev/shm"), True), (Path("/proc/self/status"), False)):
        assert footprint.on_tmpfs(path) is kind


def report_with(savings: list[float], phases: list[int]) -> dict[str, Any]:
    return {"series": [{"saving": s, "phases": [p]} for s, p in zip(savings, phases, strict=True)]}


SAVINGS = [-0.02, 0.5, 0.9, 0.8, 0.81, 0.7, -0.005, 0.3, 0.6]
PHASES = [0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_plateau_is_what_is_held() -> None:
    report = report_with(SAVINGS, PHASES)
    assert simulations.plateau_percent(report) == pytest.approx(80)
    assert simulations.cost_percent(report) == pytest.approx(2)
    assert simulations.left_while_reading_percent(report) == pytest.approx(-0.5)
    assert simulations.cost_percent(report_with([0.1, 0.2], [0, 1])) == 0


def test_only_what_can_be_saved_must_be() -> None:
    report = report_with(SAVINGS, PHASES)
    verdicts = {
        (figure, technique): [row.verdict for row in simulations.figure_rows(figure, technique, report)]
        for figure in simulations.CONTENTS
        for technique in simulations.TECHNIQUES
    }
    met, missed = Verdict.MET, Verdict.MISSED
    assert verdicts["figure5", "sharing"] == [met]
    assert verdicts["figure5", "patching"] == [missed, met]
    assert verdicts["figure7", "patching"] == [met, met]
    costs = {key: found for key, found in verdicts.items() if key not in simulations.TO_REACH}
    assert len(costs) == 5
    assert all(found == [missed] for found in costs.values())


PEER = {"own_cpu_s": 0.8, "merged": 100}


def test_scan_is_judged_by_pairs() -> None:
    scan = {"cpu_s": 0.08, "read_cpu_s": 0.07, "mergeable": 100}
    speed, found = live.scan_rows([scan, {**scan, "cpu_s": 0.06}], [PEER, {**PEER, "own_cpu_s": 0.4}], whole=True)
    assert speed.values == pytest.approx((0.1, 0.15))
    assert found.verdict is Verdict.MET
    missed = live.scan_rows([{**scan, "mergeable": 99}], [PEER], whole=True)[1]
    assert missed.verdict is Verdict.MISSED


def test_scan_without_a_peer_says_why() -> None:
    (row,) = live.scan_rows([{}], [{"unavailable": "only root may run ksmd"}], whole=True)
    assert row.verdict is Verdict.NOT_MEASURED
    assert "only root" in row.note


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"run": "1", "advisor_mode": "none [scan-time]", "pages_to_scan": "7"}.items():
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(ksm, "KSM", tmp_path)
    return tmp_path


def test_ksm_is_left_as_it_was(kernel: Path) -> None:
    with pytest.raises(RuntimeError), ksm.settings(ksm.FULL_SPEED):
        assert ksm.read("pages_to_scan") == ksm.FULL_SPEED["pages_to_scan"]
        assert ksm.read("advisor_mode") == "none"
        ksm.write("run", ksm.RUN)
        raise RuntimeError
    assert [ksm.read(name) for name in ("run", "advisor_mode", "pages_to_scan")] == ["1", "scan-time", "7"]
    assert not (kernel / "smart_scan").exists()


def test_log_dirty_row_takes_the_median_of_later_visits() -> None:
    runs = [{"log": [1.0, 0.9, 0.04, 0.03], "digests": [1.0, 0.8, 0.9, 1.0]}] * 2
    (row,) = live.log_dirty_rows(runs, whole=True)
    assert row.measured == 0.04 and row.verdict is Verdict.MET
    (row,) = live.log_dirty_rows([{"log": [1.0, 0.06, 0.06], "digests": [1.0, 1.0]}], whole=True)
    assert row.verdict is Verdict.MISSED
