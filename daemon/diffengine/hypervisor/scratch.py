# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that go with their process: what one that was killed left behind, the next one removes.

Their owner holds a lock on each. native/simulation/scratch.h makes the same.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "diffengine-scratch-"


def _lock(path: Path) -> int | None:
    """None: it is gone, or somebody's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(place: Path) -> None:
    """Remove the folders there whose owners are dead."""
    for path in place.glob(PREFIX + "*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _make(place: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _lock(path)
        # Until it is locked it looks like one of a dead owner.
        if lock is not None and path.exists():
            return path, lock
        if lock is not None:
            os.close(lock)


@contextmanager
def scratch_directory(place: Path | None = None) -> Iterator[Path]:
    """A new folder in `place` (None: where temporary files go) for the time of the block."""
    place = place or Path(tempfile.gettempdir())
    remove_abandoned(place)
    path, lock = _make(place)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
