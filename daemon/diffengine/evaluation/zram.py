# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's zram on images: a disk in memory that compresses each page by itself. Needs root."""

import mmap
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffengine.evaluation.setting import UnavailableError

CONTROL = Path("/sys/class/zram-control")
BLOCKS = Path("/sys/block")
WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class Kept:
    """memory_bytes: all that the device takes. cpu_s: of writing, which is when it compresses."""

    codec: str
    compressed_bytes: int
    memory_bytes: int
    cpu_s: float


@contextmanager
def device() -> Iterator[Path]:
    """A zram device of our own, by its place below /sys/block; gone afterwards."""
    if os.geteuid() != 0:
        raise UnavailableError("zram: only root may add a device")
    try:
        number = (CONTROL / "hot_add").read_text().strip()
    except OSError as error:
        raise UnavailableError(f"zram: this kernel has none, or it is not loaded ({error.strerror})") from error
    place = BLOCKS / f"zram{number}"
    try:
        yield place
    finally:
        (place / "reset").write_text("1")
        (CONTROL / "hot_remove").write_text(number)


def codecs() -> list[str]:
    """Those that this kernel's zram has."""
    with device() as place:
        return (place / "comp_algorithm").read_text().replace("[", "").replace("]", "").split()


def measure(paths: Sequence[Path], codec: str) -> Kept:
    """What a device takes that all images were written to."""
    total = sum(path.stat().st_size for path in paths)
    with device() as place:
        (place / "comp_algorithm").write_text(codec)
        (place / "disksize").write_text(str(total))
        start_s = _cpu_s()
        _write(paths, Path("/dev") / place.name)
        cpu_s = _cpu_s() - start_s
        numbers = [int(word) for word in (place / "mm_stat").read_text().split()]
        return Kept(codec, numbers[1], numbers[2], cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_stime + usage.ru_utime


def _write(paths: Sequence[Path], disk: Path) -> None:
    """Past the page cache, so that the kernel compresses in this process and its time is counted here."""
    buffer = mmap.mmap(-1, WRITE_BYTES)  # O_DIRECT wants pages that are aligned
    target = os.open(disk, os.O_WRONLY | os.O_DIRECT)
    try:
        for path in paths:
            with path.open("rb") as image:
                while (length := image.readinto(buffer)) > 0:
                    os.write(target, memoryview(buffer)[:length])
    finally:
        os.close(target)
