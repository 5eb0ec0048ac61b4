# SPDX-License-Identifier: GPL-2.0-or-later
"""The measuring sticks of tests/bench must themselves be right: verdicts, the yardstick, a process's own memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import footprint, targets, yardstick
from bench.targets import Row, Verdict

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
