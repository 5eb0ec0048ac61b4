# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine evaluate` as users run it: what it writes, what it refuses, and that it goes on where it was."""

import csv
import json
import re
from pathlib import Path

import pytest

from command import diffengine, refusal_of
from diffengine.evaluation.experiments import EXPERIMENTS
from evaluation_runs import small_images


@pytest.fixture(scope="module")
def images(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_images(samples, tmp_path_factory.mktemp("guests"))


def test_unknown_names_list_the_known_ones(images: Path) -> None:
    line = refusal_of("evaluate", "fig2", "fig99", "--images", images)
    assert "fig99: no such experiment" in line
    assert all(experiment.name in line for experiment in EXPERIMENTS)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    assert "no image named as" in refusal_of("evaluate", "fig2", "--images", tmp_path)
    assert "no such folder" in refusal_of("evaluate", "fig2", "--images", tmp_path / "none")


def test_an_output_that_is_a_file_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    assert "--output" in refusal_of("evaluate", "fig2", "--images", images, "--output", tmp_path / "taken")


def test_a_run_writes_everything_and_the_next_one_does_nothing_again(images: Path, tmp_path: Path) -> None:
    command = ("evaluate", "fig2", "--images", images, "--output", tmp_path, "--jobs", "2")
    first = diffengine(*command)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^\[2/2\] fig2 \w+: [\d.]+ s \([\d.]+ of CPU\); done$", first.stderr, re.MULTILINE)
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"report.html", "fig2.json", "fig2-1.csv", "fig2-2.csv", "fig2.png", "fig2.svg"}
    found = json.loads((tmp_path / "fig2.json").read_text())
    assert found["missing"] == []
    with (tmp_path / "fig2-1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["detector"] for row in rows] == [each["name"] for each in found["results"]["alike"]["detectors"]]

    second = diffengine(*command)
    assert second.stderr.splitlines() == ["[2/2] done"]
    assert json.loads((tmp_path / "fig2.json").read_text()) == found


def test_what_is_missing_shows_in_report_and_exit_code(samples: dict[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "d12a-work.raw").write_bytes(samples["d12a-work"].read_bytes()[: 64 * 4096])
    done = diffengine("evaluate", "table1", "--images", alone, "--output", tmp_path / "out")
    assert done.returncode == 3
    assert "skipped" in done.stdout
    assert "two guests" in done.stdout
    assert "Not run." in (tmp_path / "out" / "report.html").read_text()
