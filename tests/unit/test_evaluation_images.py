# SPDX-License-Identifier: GPL-2.0-or-later
"""Which images answer which question, by their names."""

from pathlib import Path

import pytest

from diffengine.evaluation.setting import SettingError, read_corpus
from diffengine.evaluation.simulating import stand_ins


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(bytes(4096))


def corpus_of(folder: Path, *names: str) -> list[list[str]]:
    write_images(folder, *names)
    return [[image.name for image in subset.images] for subset in read_corpus([folder]).subsets]


def test_alike_are_of_one_release_and_unlike_of_two(tmp_path: Path) -> None:
    names = ("d11a-work.raw", "d12a-work.raw", "d12b-work.raw", "d13a-work.raw", "notes.txt", "other.raw")
    alike, unlike, mixed = corpus_of(tmp_path, *names)
    assert alike == ["d12a-work", "d12b-work"]
    assert unlike == ["d12a-work", "d13a-work"]
    assert mixed == ["d11a-work", "d12a-work", "d13a-work"]


def test_two_workloads_are_not_alike(tmp_path: Path) -> None:
    assert corpus_of(tmp_path, "d12a-idle.raw", "d12b-work.raw") == []


def test_the_mixes_are_made_of_different_guests(tmp_path: Path) -> None:
    write_images(tmp_path, "d12a-idle.raw", "d12b-idle.raw", "d13a-idle.raw")
    mixes = {name: sorted(image.name for image in mix) for name, mix in stand_ins(read_corpus([tmp_path])).items()}
    assert mixes == {
        "homogeneous": ["d12a-idle", "d12a-idle", "d12b-idle", "d12b-idle"],
        "MIXED-1": ["d12a-idle", "d12b-idle", "d13a-idle"],
        "MIXED-2": ["d12a-idle", "d13a-idle"],
    }


def test_a_folder_without_images_says_how_they_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no image named as d12a-idle.raw is"):
        read_corpus([tmp_path])
    with pytest.raises(SettingError, match="no such folder"):
        read_corpus([tmp_path / "missing"])
