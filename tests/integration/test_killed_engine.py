# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine in a process of its own, killed a hundred times under load: nothing is lost, nobody waits for it."""

import mmap
import operator
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffengine._native import ffi, lib
from numpy.typing import NDArray

from command import COMMAND
from diffengine.hypervisor.machine_process import MachineClient, MachineProcess
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.programs import ProgramKind, ProgramOptions, ProgramResult
from diffengine.hypervisor.protocol import PageState
from diffengine.service import HostChoice, Settings, run_daemon
from diffengine.service.configuration import configuration
from diffengine.simulation.hosts import HostProcesses, host_processes
from diffengine.simulation.scenario import MachineScenario
from engine_host import PAGE, Pages, addresses, random_pages, similar_pages, text_pages

KILLS = 100
GUESTS = 3
NAMES = {domid: f"guest{domid}" for domid in range(1, GUESTS + 1)}
# Each hypercall of a pair that is to be shared wakes another process: on a busy machine a batch takes seconds, though
# there are no more than some hundred pairs here.
DEADLINE_S = 240.0
# Each guest does so many operations while the engine is dead once: one that waited for it would not.
DEAD_OPERATIONS = 300
ENGINE = {"visit_interval_s": 0.06, "c4_visits": 1, "cpu_share": 1.0, "fault_limit": 1e5, "refault_limit": 10**9}


def contents(number: int) -> Pages:
    """Pages to share with the other guests, to patch, to compress; and incompressible ones."""
    zero = np.zeros((100, PAGE), dtype=np.uint8)
    return np.concatenate([zero, text_pages(150), similar_pages(100), text_pages(200, 1 + number), random_pages(50)])


def run_engine(machine: Path, state: Path) -> None:
    """A daemon's process."""
    values = {
        "engine": ENGINE,
        "domain": {name: {"trust_group": "all"} for name in NAMES.values()},
        "socket": {"path": str(state / "status.sock")},
    }
    run_daemon(HostChoice(state, machine, NAMES), Settings(None, configuration(values)))


class Observer:
    """What the pager's files say, without being its client."""

    def __init__(self, state: Path) -> None:
        self._memory: list[mmap.mmap] = []
        self._page = self._map(state / "statistics", "struct de_pager_page *")
        self._queue = self._map(state / "commands", "struct de_queue *")

    def _map(self, path: Path, kind: str) -> Any:
        with path.open("rb") as file:
            self._memory.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return ffi.cast(kind, ffi.from_buffer(self._memory[-1]))

    @property
    def evictions(self) -> int:
        return int(self._page[0].pager.evictions)

    @property
    def loads(self) -> int:
        return int(self._page[0].pager.loads)

    def command_is(self, *commands: int) -> bool:
        """The latest one, maybe under way."""
        return int(self._queue[0].command) in commands


class Host:
    """Machine, pager and guests that read and write all the time."""

    def __init__(self, processes: HostProcesses) -> None:
        self.processes = processes
        self.machine = MachineClient(processes.machine)
        self.observer = Observer(processes.state)
        self.contents = [contents(number) for number in range(GUESTS)]
        self.domids = [self.machine.create_domain(addresses(pages)) for pages in self.contents]
        self.programs = [
            self.machine.start_program(domid, self._options(number, addresses(self.contents[number])))
            for number, domid in enumerate(self.domids)
        ]
        # Forked from a process that has imported everything: an engine is at work in some 20 ms.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["diffengine.service", __name__])

    @staticmethod
    def _options(number: int, content: NDArray[np.uint64]) -> ProgramOptions:
        return ProgramOptions(
            kind=ProgramKind.WORKING_SET,
            seed=number,
            operations_per_s=600,
            content=content,
            hot=np.arange(150, 200, dtype=np.uint32),
            excursion_fraction=0.3,
            write_fraction=0.1,
        )

    def start_engine(self) -> ForkServerProcess:
        engine = self._context.Process(target=run_engine, args=(self.processes.machine, self.processes.state))
        engine.start()
        return engine

    def operations(self) -> list[int]:
        """Of each guest."""
        results = [self.machine.read_program(program) for program in self.programs]
        assert [result.status for result in results] == [0] * GUESTS
        return [result.reads + result.writes for result in results]

    def mapped(self) -> bool:
        return self.machine.accounting().mapped > 0

    def stop_guests(self) -> list[tuple[ProgramResult, NDArray[np.uint64]]]:
        return [self.machine.stop_program(program) for program in self.programs]


@contextmanager
def running_host() -> Iterator[Host]:
    frames = sum(len(contents(number)) for number in range(GUESTS)) + 1024
    with host_processes(MachineScenario(None, 0, None), frames) as processes:
        host = Host(processes)
        yield host
        host.machine.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.0001)


def kill(engine: ForkServerProcess) -> None:
    engine.kill()
    engine.join()
    assert engine.exitcode == -signal.SIGKILL


def saves_again(host: Host) -> Callable[[], bool]:
    before = host.observer.evictions
    return lambda: host.observer.evictions > before


def moments(host: Host) -> dict[str, Callable[[], bool]]:
    """When to kill, besides at any time: during commands, between a put and the eviction, with pages mapped."""
    seen = host.observer.command_is
    return {
        "put": lambda: seen(lib.DE_COMMAND_PUT),
        "share": lambda: seen(lib.DE_COMMAND_SHARE),
        "evict": lambda: seen(lib.DE_COMMAND_EVICT),
        "watch": lambda: seen(lib.DE_COMMAND_WATCH),
        "rebuild": lambda: seen(lib.DE_COMMAND_REBUILD),
        "mapped": host.mapped,
        "saves": saves_again(host),
    }


def kill_one(host: Host, turn: int, chance: random.Random) -> None:
    engine = host.start_engine()
    names = list(moments(host))
    if turn % 2:
        name = names[turn // 2 % len(names)]
        wait_until(moments(host)[name], f"engine {turn} did not come to this: {name}")
    else:
        time.sleep(chance.uniform(0.0, 0.5))
    kill(engine)


def test_killed_a_hundred_times() -> None:
    chance = random.Random(5)
    with running_host() as host:
        for turn in range(KILLS):
            kill_one(host, turn, chance)
        # Nobody needs it: guests go on, and what is out comes back.
        wanted, loads = [count + DEAD_OPERATIONS for count in host.operations()], host.observer.loads
        wait_until(
            lambda: all(map(operator.ge, host.operations(), wanted)) and host.observer.loads > loads,
            "a guest waits for an engine",
        )
        # The next one goes on where the former ones were, and ends when told.
        engine = host.start_engine()
        wait_until(saves_again(host), "the last engine evicts nothing")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGTERM)
        engine.join()
        assert engine.exitcode == 0
        wait_until(lambda: not host.mapped(), "mappings of a killed engine stay")
        assert sum(result.wrong_bytes for result, _ in host.stop_guests()) == 0
        assert_nothing_leaks(host)


def assert_nothing_leaks(host: Host) -> None:
    """What the store has is what the page table says: with all pages back, nothing."""
    pager = PagerClient(host.processes.state)
    entries = [pager.states(domid, 0, len(pages)) for domid, pages in zip(host.domids, host.contents, strict=True)]
    out = sum(int((entry.states == PageState.EVICTED).sum()) for entry in entries)
    wait_until(lambda: pager.counters().evicted == out, "the pager counts other pages than its table says")
    assert host.machine.accounting().paged == out > 0
    for domid in host.domids:
        pager.restore(domid)
    wait_until(lambda: pager.counters().evicted == 0, "pages stay out")
    wait_until(lambda: pager.counters().objects == 0, "objects leak")
    pager.close()


def start_command(machine: Path, state: Path) -> "subprocess.Popen[str]":
    (state / "diffengine.toml").write_text("[domains]\nenabled = true\n[engine]\nvisit_interval_s = 0.1\n")
    command = [*COMMAND, "daemon", "--config", str(state / "diffengine.toml"), "--socket", str(state / "status.sock")]
    command += ["--machine", str(machine), "--state", str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code, and the last line that it said."""
    _, messages = process.communicate(timeout=DEADLINE_S)
    return process.returncode, messages.splitlines(keepends=True)[-1]


def test_says_what_is_not_there(tmp_path: Path) -> None:
    assert ended(start_command(tmp_path / "none", tmp_path)) == (
        3,
        f"diffengine: no machine runs at {tmp_path}/none; start diffengine-machine first\n",
    )
    with MachineProcess(16) as machine:
        assert ended(start_command(machine.socket_path, tmp_path)) == (
            3,
            f"diffengine: no pager runs in {tmp_path}; start diffengine-pager first\n",
        )


@pytest.mark.parametrize("gone", ["machine", "pager"])
def test_ends_when_its_host_is_gone(gone: str) -> None:
    with running_host() as host:
        state = host.processes.state
        # The guests go with their machine.
        host.stop_guests()
        engine = start_command(host.processes.machine, state)
        wait_until(lambda: host.observer.command_is(lib.DE_COMMAND_WATCH), "the engine watches nothing")
        if gone == "machine":
            host.machine.shut_down()
        else:
            queue = np.frombuffer((state / "commands").read_bytes()[:16], dtype=np.uint32)
            os.kill(int(queue[3]), signal.SIGKILL)
        code, message = ended(engine)
        assert code == 3
        assert message.startswith(f"diffengine: the {gone} is gone (")
        assert message.endswith("); start again when it is back\n")


def test_ends_when_told() -> None:
    with running_host() as host:
        host.stop_guests()
        engine = start_command(host.processes.machine, host.processes.state)
        wait_until(lambda: host.observer.command_is(lib.DE_COMMAND_WATCH), "the engine watches nothing")
        engine.terminate()
        assert ended(engine) == (0, "diffengine: told to end\n")
        PagerClient(host.processes.state).close()
