# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory of its own a process takes while it runs, apart from the store it fills.

Method. Twenty times a second, RssAnon + RssShmem of /proc/PID/status is read, together with the blocks that the
process's `diffengine-store` memfd really has (fstat through /proc/PID/fd). The store is the only shared memory that
`analyze` maps, and it writes its pages through its mapping, so they are all in RssShmem: the difference is the
process's own. Of each sample the store is read first: one that grows in between makes the difference too large,
never too small. The images' pages are file pages (RssFile) and belong to the page cache, unless the images lie on a
tmpfs, whose pages would count as RssShmem: `on_tmpfs` tells.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
STORE_NAME = "/memfd:diffengine-store"
BLOCK_BYTES = 512
_OWN_MEMORY = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A process that has ended. Bytes; the peaks are of different moments.

    others_seconds: what the machine's other users took of its cores meanwhile (for a virtual machine, its host too).
    """

    output: str
    wall_seconds: float
    cpu_seconds: float
    others_seconds: float
    peak_own_bytes: int
    peak_total_bytes: int
    peak_store_bytes: int
    samples: int


def _store_bytes(pid: int) -> int:
    """The store's populated memory; 0 while there is none, or when the process is just ending.

    A file counts once, however many descriptors it has.
    """
    files: dict[int, int] = {}
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if str(link.readlink()).startswith(STORE_NAME):
                file = link.stat()
                files[file.st_ino] = file.st_blocks * BLOCK_BYTES
    except OSError:
        return sum(files.values())
    return sum(files.values())


def _resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(kib) << 10 for kib in _OWN_MEMORY.findall(status))


def _machine_busy_seconds() -> float:
    """CPU time of everybody since boot: /proc/stat's user, nice, system, irq, softirq and steal."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def run(command: Sequence[str], output: Path) -> Run:
    """Runs a command with its standard output in a file. Raises CalledProcessError if it fails."""
    own = resident = store = samples = 0
    busy_before = _machine_busy_seconds()
    begin = time.monotonic()
    with output.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink)
        # WNOWAIT leaves the ended process in place until wait4() asks for its CPU time.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            store_now = _store_bytes(process.pid)
            resident_now = _resident_bytes(process.pid)
            own = max(own, resident_now - store_now)
            resident = max(resident, resident_now)
            store = max(store, store_now)
            samples += 1
            time.sleep(SAMPLE_SECONDS)
        wall = time.monotonic() - begin
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu = usage.ru_utime + usage.ru_stime
    others = max(0.0, _machine_busy_seconds() - busy_before - cpu)
    return Run(output.read_text(), wall, cpu, others, own, resident, store, samples)


def on_tmpfs(path: Path) -> bool:
    """Whether a file lies on a tmpfs, by the mount table's entry for its device."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0] == "tmpfs"
    return False
