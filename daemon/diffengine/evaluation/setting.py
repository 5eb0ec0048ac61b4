# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of the evaluation is made with: images, seed, and how long it may take."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffengine.errors import DiffengineError, one_line

# d12a-idle.raw: release d12, its guest a, workload idle (docs/evaluate.md).
NAME = re.compile(r"(?P<release>[a-z]*\d+)(?P<guest>[a-z]+)-(?P<workload>[\w-]+)")
SUFFIXES = (".raw", ".core", ".elf")
# A smaller image is a sample of a guest: its pages were chosen by content.
WHOLE_BYTES = 128 << 20


class SettingError(DiffengineError):
    """An evaluation that can't be run as asked for; nothing was started."""

    exit_code = 2


class UnavailableError(DiffengineError):
    """A peer, an image or a privilege is missing. The text says which, and what would bring it."""


@dataclass(frozen=True)
class GuestImage:
    path: Path
    release: str
    guest: str
    workload: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def whole(self) -> bool:
        return self.path.stat().st_size >= WHOLE_BYTES


@dataclass(frozen=True)
class ImageSubset:
    """Images that belong together in a question. name: what the report calls them."""

    name: str
    images: tuple[GuestImage, ...]

    @property
    def paths(self) -> list[str]:
        return [str(image.path) for image in self.images]


@dataclass(frozen=True)
class Corpus:
    """The guest images of one folder."""

    images: tuple[GuestImage, ...]

    @property
    def alike(self) -> ImageSubset | None:
        """Two guests of one release with one workload: the first such pair."""
        for image in self.images:
            others = [o for o in self.images if (o.release, o.workload) == (image.release, image.workload)]
            if len(others) > 1:
                return ImageSubset("alike", tuple(others[:2]))
        return None

    @property
    def unlike(self) -> ImageSubset | None:
        """The first guest of the pair that is alike, if there is one, and one of another release."""
        first = self.alike.images[0] if self.alike else self.images[0]
        newer_first = sorted(self.images, key=lambda image: image.release, reverse=True)
        others = [image for image in newer_first if image.release != first.release]
        return ImageSubset("unlike", (first, others[0])) if others else None

    @property
    def mixed(self) -> ImageSubset | None:
        """One guest of each release, where there are three or more."""
        releases = {image.release: image for image in reversed(self.images)}
        chosen = tuple(releases[name] for name in sorted(releases))
        return ImageSubset("mixed", chosen) if len(chosen) > 2 else None

    @property
    def subsets(self) -> list[ImageSubset]:
        return [subset for subset in (self.alike, self.unlike, self.mixed) if subset]

    def need_subsets(self) -> list[ImageSubset]:
        """Raises UnavailableError if no question can be asked of these images."""
        if not self.subsets:
            named = ", ".join(image.name for image in self.images)
            raise UnavailableError(
                f"it takes images of two guests at least, with one workload or of two releases: {named}"
            )
        return self.subsets

    @property
    def identity(self) -> list[str]:
        """Changes when an image is another one."""
        return [f"{i.path.resolve()} {i.path.stat().st_size} {i.path.stat().st_mtime_ns}" for i in self.images]


def read_corpus(folders: Sequence[Path]) -> Corpus:
    """The images whose names tell what they are, in order of their names. Raises SettingError if there are none."""
    images = []
    for folder in folders:
        if not folder.is_dir():
            raise SettingError(f"--images {folder}: no such folder; name one with memory images, or run `make demo`")
        for path in sorted(folder.iterdir()):
            match = NAME.fullmatch(path.stem)
            if match and path.suffix in SUFFIXES and path.is_file():
                images.append(GuestImage(path, match["release"], match["guest"], match["workload"]))
    if not images:
        named = ", ".join(str(folder) for folder in folders)
        raise SettingError(f"--images {one_line(named)}: no image named as d12a-idle.raw is; see docs/evaluate.md")
    return Corpus(tuple(images))


@dataclass(frozen=True)
class Setting:
    """images: what is counted. guests: what runs in time: the same, or smaller ones if it is to be quick.

    jobs: how many cores to use.
    """

    images: Corpus
    guests: Corpus
    seed: int
    quick: bool
    jobs: int
