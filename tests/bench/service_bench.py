# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon costs, against the targets that it was built to: a process of its own on an embedded machine.

    PYTHONPATH=tests .venv/bin/python -m bench.service_bench [--kills 100] [--idle-s 60] [--requests 2000] [--only PART]

status: p99 of a status request while guests work and everything is paged. idle: CPU of a daemon with 8 idle domains.
memory: what its process holds beside the store. kills: the longest fault of guests' programs while the daemon is killed
and started again, against the same time without; and that they have read back what they wrote.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from command import COMMAND
from daemon_host import Line
from diffengine.hypervisor.machine_process import MachineClient
from diffengine.hypervisor.programs import ProgramKind, ProgramOptions
from diffengine.simulation.hosts import HostProcesses, host_processes
from diffengine.simulation.scenario import MachineScenario
from engine_host import addresses, text_pages

DEADLINE_S = 900.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
SETTINGS = """
[engine]
visit_interval_s = {interval_s}
c4_visits = 1
fault_limit = 1e5
refault_limit = 1_000_000
[domains]
enabled = true
grace_s = 0
[socket]
group = "root"
"""
QUICK_S, DEFAULT_S = 0.2, 4.0
# Three visits of every page.
QUIET_S = 15.0


@dataclass(frozen=True)
class Target:
    name: str
    value: float
    most: float
    unit: str

    def __str__(self) -> str:
        within = "within" if self.value <= self.most else "ABOVE"
        return f"{self.name}: {self.value:,.3g} {self.unit}, {within} {self.most:,.3g} ({self.value / self.most:.2f})"


class Daemon:
    """A process that may be killed and started again."""

    def __init__(self, folder: Path, processes: HostProcesses, interval_s: float) -> None:
        self.socket = folder / "status.sock"
        config = folder / "diffengine.toml"
        config.write_text(SETTINGS.format(interval_s=interval_s))
        words = ["daemon", "--machine", processes.machine, "--state", processes.state]
        words += ["--config", config, "--socket", self.socket]
        # As diffengine.service has it.
        self._words = ["nice", "-n", "15", *map(str, COMMAND), *map(str, words)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> Line:
        """Once it serves."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                return Line(self.socket, DEADLINE_S)
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline_s, "the daemon does not start"
            time.sleep(0.01)

    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / CLOCK_TICKS

    def private_bytes(self) -> int:
        """What is the process's own: the store and the machine's frames are shared mappings."""
        found = dict(line.split(":") for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:])
        return sum(int(found[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


@contextmanager
def system(domains: int, pages: int, interval_s: float) -> Iterator[tuple[Daemon, MachineClient, list[np.ndarray]]]:
    contents = [text_pages(pages, seed + 1) for seed in range(domains)]
    with (
        tempfile.TemporaryDirectory() as folder,
        host_processes(MachineScenario(None, 0, None), domains * pages + 4096) as processes,
    ):
        machine = MachineClient(processes.machine)
        for content in contents:
            machine.create_domain(addresses(content))
        daemon = Daemon(Path(folder), processes, interval_s)
        try:
            yield daemon, machine, contents
        finally:
            daemon.kill()
            machine.close()


def wait_for_evicted(line: Line, pages: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while line.ask("status")["result"]["evicted_pages"] < pages:
        assert time.monotonic() < deadline_s, "too little is evicted"
        time.sleep(0.25)


def wait_until_idle(line: Line) -> None:
    """Nothing more is evicted: what is left of the pages can't go."""
    deadline_s, evictions, since_s = time.monotonic() + DEADLINE_S, -1, 0.0
    while True:
        now, found = time.monotonic(), line.ask("status")["result"]["evictions"]
        if found != evictions:
            evictions, since_s = found, now
        elif evictions and now - since_s > QUIET_S:
            return
        assert now < deadline_s, "evictions do not end"
        time.sleep(1)


def program_options(content: np.ndarray, seed: int) -> ProgramOptions:
    return ProgramOptions(
        kind=ProgramKind.WORKING_SET,
        seed=seed,
        operations_per_s=500,
        content=addresses(content),
        hot=np.arange(len(content) // 8, dtype=np.uint32),
        excursion_fraction=0.2,
        write_fraction=0.2,
    )


def status_under_load(requests: int) -> Iterator[Target]:
    with system(4, 4000, QUICK_S) as (daemon, machine, contents):
        for number, content in enumerate(contents):
            machine.start_program(number + 1, program_options(content, number + 1))
        with closing(daemon.line()) as line:
            wait_for_evicted(line, 500)
            took_ms = []
            for _ in range(requests):
                start_s = time.perf_counter()
                line.ask("status")
                took_ms.append((time.perf_counter() - start_s) * 1000)
                time.sleep(0.025)  # more are made to wait
        yield Target("status under load, p99", statistics.quantiles(took_ms, n=100)[98], 20, "ms")
        print(f"  (median {statistics.median(took_ms):.2f} ms, longest {max(took_ms):.1f} ms)")


def idle(seconds: float, pages: int) -> Iterator[Target]:
    with system(8, pages, DEFAULT_S) as (daemon, machine, _), closing(daemon.line()) as line:
        wait_until_idle(line)
        start_s, start_cpu_s = time.monotonic(), daemon.cpu_s()
        time.sleep(seconds)
        used = (daemon.cpu_s() - start_cpu_s) / (time.monotonic() - start_s)
        yield Target("CPU with 8 idle domains", used * 100, 0.5, "% of a core")
        guest_pages = 8 * pages
        yield Target("memory beside the store", daemon.private_bytes() / MIB, 64 + 24 * guest_pages / MIB, "MiB")


@dataclass(frozen=True)
class Faults:
    """Of all guests together, in microseconds; the guests' wrong bytes."""

    longest_us: float
    p999_us: float
    count: int
    wrong_bytes: int
    seconds: float


def faults(meanwhile: Callable[[Daemon], None]) -> Faults:
    """Programs read what they wrote, and compare, while that goes on; everything is paged."""
    with system(2, 4000, QUICK_S) as (daemon, machine, contents):
        with closing(daemon.line()) as line:
            wait_for_evicted(line, 1000)
        programs = [
            machine.start_program(number + 1, program_options(content, number + 1))
            for number, content in enumerate(contents)
        ]
        start_s = time.monotonic()
        meanwhile(daemon)
        seconds = time.monotonic() - start_s
        ended = [machine.stop_program(program) for program in programs]
    samples_us = np.concatenate([samples[samples > 0] for _, samples in ended]) / 1000
    wrong = sum(result.wrong_bytes for result, _ in ended)
    return Faults(float(samples_us.max()), float(np.percentile(samples_us, 99.9)), len(samples_us), wrong, seconds)


def kill_often(daemon: Daemon, kills: int) -> None:
    for _ in range(kills):
        daemon.kill()
        daemon.start()
        daemon.line().close()


def longest_faults(kills: int) -> Iterator[Target]:
    """With kills, and as long without."""
    killed = faults(lambda daemon: kill_often(daemon, kills))
    left = faults(lambda daemon: time.sleep(killed.seconds))
    for found in (killed, left):
        print(f"  ({found})")
    yield Target(f"wrong bytes read after {kills} kills, plus one", killed.wrong_bytes + left.wrong_bytes + 1, 1, "")
    yield Target("99.9 % of faults with kills, to without", killed.p999_us / left.p999_us, 1, "times")
    yield Target("longest fault with kills, to without", killed.longest_us / left.longest_us, 1, "times")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--idle-s", type=float, default=60)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pages", type=int, default=4000, help="of each idle domain")
    parser.add_argument("--only", choices=("status", "idle", "kills"), help="one part of it")
    given = parser.parse_args()
    print(json.dumps({"load": os.getloadavg(), "cores": os.cpu_count()}))
    targets = []
    parts = {
        "status": status_under_load(given.requests),
        "idle": idle(given.idle_s, given.pages),
        "kills": longest_faults(given.kills),
    }
    for part in [parts[given.only]] if given.only else parts.values():
        for target in part:
            print(target, flush=True)
            targets.append(target)
    return int(any(target.value > target.most for target in targets))


if __name__ == "__main__":
    sys.exit(main())
