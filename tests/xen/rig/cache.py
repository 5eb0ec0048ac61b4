# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes long to make, kept by the content of what it is made from."""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Entries of one kind that stay: what the tree was before a change is often wanted again.
KEPT = 3
KEY_DIGITS = 16


def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffengine-xen"


def digest(*inputs: str | bytes | Path) -> str:
    """A key for what is made from these: texts, bytes, files, and folders with all that is below them."""
    sha = hashlib.sha256()
    for item in inputs:
        for part in _parts(item):
            sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:KEY_DIGITS]


def _parts(item: str | bytes | Path) -> Iterator[bytes]:
    if isinstance(item, Path):
        for file in _files(item):
            yield str(file.relative_to(item)).encode()
            yield bytes([file.stat().st_mode & 0o111 != 0])
            yield file.read_bytes()
    else:
        yield item.encode() if isinstance(item, str) else item


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


@dataclass(frozen=True)
class Cache:
    """Entries are folders KIND-KEY. Two processes that want the same one: the second waits for the first."""

    root: Path

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder, made by make(folder) if it is not there. What make leaves behind when it fails is removed."""
        folder = self.root / f"{kind}-{key}"
        with self._locked(kind):
            if folder.is_dir():
                os.utime(folder)
                return folder
            begin = time.monotonic()
            print(f"rig: making {folder.name}", file=sys.stderr, flush=True)
            unfinished = self.root / f"{kind}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            try:
                make(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            self._prune(kind)
            print(f"rig: {folder.name} in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        return folder

    @contextmanager
    def _locked(self, kind: str) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune(self, kind: str) -> None:
        old = sorted(self.root.glob(f"{kind}-" + "?" * KEY_DIGITS), key=lambda folder: folder.stat().st_mtime)
        for folder in old[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
