# SPDX-License-Identifier: GPL-2.0-or-later
"""Which images answer which question, by their names."""

from pathlib import Path

import pytest

from diffengine.evaluation.setting import SettingError, read_corpus


def corpus_of(folder: Path, *names: str) -> list[list[str]]:
    for name in names:
        (folder / name).write_bytes(bytes(4096))
    return [[image.name for image in subset.images] for subset in read_corpus([folder]).subsets]


def test_alike_are_of_one_release_and_unlike_of_two(tmp_path: Path) -> None:
    names = ("d11a-work.raw", "d12a-work.raw", "d12b-work.raw", "d13a-work.raw", "notes.txt", "other.raw")
    alike, unlike, mixed = corpus_of(tmp_path, *names)
    assert alike == ["d12a-work", "d12b-work"]
    assert unlike == ["d12a-work", "d13a-work"]
    assert mixed == ["d11a-work", "d12a-work", "d13a-work"]


def test_two_workloads_are_not_alike(tmp_path: Path) -> None:
    assert corpus_of(tmp_path, "d12a-idle.raw", "d12b-work.raw") == []


def test_a_folder_without_images_says_how_they_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no image named as d12a-idle.raw is"):
        read_corpus([tmp_path])
    with pytest.raises(SettingError, match="no such folder"):
        read_corpus([tmp_path / "missing"])
