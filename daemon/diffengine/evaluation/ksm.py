# SPDX-License-Identifier: GPL-2.0-or-later
"""ksm.py IMAGE...: what the kernel's KSM takes to merge the images' pages, as JSON.

Anonymous memory is filled from the images and offered to ksmd, which scans at full speed until a whole scan has merged
nothing more of it. Counted are this process's pages alone, zero pages included; of ksmd's CPU time our share of the
pages that it scanned, as it scans everybody's. Whatever happens, the settings of KSM are put back at the end.

Needs root and a kernel whose /proc/PID/ksm_stat counts zero pages (6.4 or later): exit 3 and a reason without.
"""

import fcntl
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
PAGE_BYTES = 4096
# The largest batch, no pause: ksmd at its best. A smart scan skips pages that did not merge for a while.
FULL_SPEED = {"advisor_mode": "none", "pages_to_scan": "100000", "sleep_millisecs": "0", "use_zero_pages": "1"}
FULL_SPEED["smart_scan"] = "0"
MADV_NOHUGEPAGE = 15
STOP, RUN, UNMERGE = "0", "1", "2"
LONGEST_S = 300.0
# The share of what is merged in the end whose time is taken.
MOST = 0.9
LOOK_EVERY_S = 0.02
UNAVAILABLE = 3


class UnavailableError(Exception):
    """This machine has no such peer. The text says why."""


@dataclass(frozen=True)
class Ksmd:
    """KSM's own counters, and ksmd's CPU time, at one moment."""

    full_scans: int
    pages_scanned: int
    cpu_s: float


@dataclass(frozen=True)
class Merged:
    """own_cpu_s: of ksmd's CPU time, what our pages took. to_most_s, to_most_cpu_s: until MOST of the merged pages were
    merged; of a run that was longer than that."""

    pages: int
    merged: int
    scans: int
    wall_s: float
    ksmd_cpu_s: float
    us_per_page_scanned: float
    own_cpu_s: float
    to_most_s: float = 0.0
    to_most_cpu_s: float = 0.0


def read(name: str) -> str:
    """A choice reads as `[none] scan-time`: the one in brackets is in force."""
    text = (KSM / name).read_text().strip()
    return text.split("[", 1)[1].split("]", 1)[0] if "[" in text else text


def write(name: str, value: str) -> None:
    (KSM / name).write_text(value)


@contextmanager
def settings(values: dict[str, str]) -> Iterator[None]:
    """These in force; afterwards nothing stays merged, and what was set before is set again."""
    names = [name for name in values if (KSM / name).exists()]
    saved = {name: read(name) for name in names}
    run = read("run")
    try:
        for name in names:
            write(name, values[name])
        yield
    finally:
        write("run", UNMERGE)
        write("run", STOP)
        # The advisor last: while one is in force, the kernel refuses pages_to_scan.
        for name in sorted(names, key=lambda name: name == "advisor_mode"):
            write(name, saved[name])
        write("run", run)


def find_ksmd() -> Path:
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "comm").read_text() == "ksmd\n":
                return process
        except OSError:  # ended meanwhile
            continue
    raise UnavailableError("no ksmd: this kernel has no KSM")


def ksmd(process: Path) -> Ksmd:
    times = (process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Ksmd(int(read("full_scans")), int(read("pages_scanned")), cpu_s)


def own_merged() -> int:
    """Pages of this process that KSM has merged, those merged with the kernel's zero page included."""
    try:
        lines = Path("/proc/self/ksm_stat").read_text().replace(":", "").splitlines()
        counts = {name: int(value) for name, value in (line.split()[:2] for line in lines) if value.isdigit()}
        return counts["ksm_zero_pages"] + counts["ksm_merging_pages"]
    except (OSError, KeyError):
        raise UnavailableError("this kernel's ksm_stat has no ksm_zero_pages (6.4 or later has)") from None


def fill(path: Path) -> mmap.mmap:
    """Anonymous memory of small pages with the image's content, mergeable."""
    area = mmap.mmap(-1, path.stat().st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(MADV_NOHUGEPAGE)
    with path.open("rb") as image:
        if image.readinto(area) != len(area):
            raise OSError(f"{path}: cannot be read whole")
    area.madvise(mmap.MADV_MERGEABLE)
    return area


def merge(pages: int) -> Merged:
    """Lets ksmd run until a whole scan changes nothing. The figures are those of the scan before that one."""
    process = find_ksmd()
    before, start_s = ksmd(process), time.monotonic()
    best: Merged | None = None
    last_scan = before.full_scans
    course: list[tuple[float, float, int]] = []
    write("run", RUN)
    while (elapsed_s := time.monotonic() - start_s) < LONGEST_S:
        time.sleep(LOOK_EVERY_S)
        now, merged = ksmd(process), own_merged()
        course.append((elapsed_s, now.cpu_s - before.cpu_s, merged))
        if now.full_scans == last_scan:
            continue
        last_scan = now.full_scans
        if best and 0 < merged <= best.merged:
            return with_course(best, course)
        scans, scanned = now.full_scans - before.full_scans, max(1, now.pages_scanned - before.pages_scanned)
        cpu_s = now.cpu_s - before.cpu_s
        own_cpu_s = cpu_s * min(1.0, pages * scans / scanned)
        best = Merged(pages, merged, scans, elapsed_s, cpu_s, cpu_s / scanned * 1e6, own_cpu_s)
    raise UnavailableError(f"ksmd came to no end in {LONGEST_S:.0f} s")


def with_course(best: Merged, course: Sequence[tuple[float, float, int]]) -> Merged:
    """When most was merged, and what ksmd had taken by then."""
    wanted = MOST * best.merged
    time_s, cpu_s, _ = next(point for point in course if point[2] >= wanted)
    own = best.own_cpu_s / best.ksmd_cpu_s if best.ksmd_cpu_s else 1.0
    return replace(best, to_most_s=time_s, to_most_cpu_s=cpu_s * own)


def measure(paths: Sequence[Path]) -> Merged:
    """Raises UnavailableError, or OSError when an image can't be read."""
    if os.geteuid() != 0:
        raise UnavailableError("only root may run ksmd")
    if not KSM.is_dir():
        raise UnavailableError("this kernel has no KSM")
    own_merged()  # says so before the memory is filled
    with (KSM / "run").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two of us would change each other's settings
        areas = [fill(path) for path in paths]
        with settings(FULL_SPEED):
            return merge(sum(len(area) for area in areas) // PAGE_BYTES)


def main(arguments: Sequence[str]) -> int:
    try:
        print(json.dumps(asdict(measure([Path(path) for path in arguments]))))
    except UnavailableError as reason:
        print(json.dumps({"unavailable": str(reason)}))
        return UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
