# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a simulation runs: machine and pager in this process, in real or virtual time, or each in one of its own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor import protocol
from diffengine.hypervisor.embedded import Machine, Pager, Swap, threads_cpu_s
from diffengine.hypervisor.machine_process import MachineClient, MachineProcess
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.programs import Program, ProgramOptions, ProgramResult
from diffengine.hypervisor.scratch import scratch_directory
from diffengine.native import NATIVE, Addresses, Binding, NativeError, Store
from diffengine.simulation import virtual
from diffengine.simulation.runs import RealRun, Run
from diffengine.simulation.scenario import PAGE_BYTES, MachineScenario, Scenario, ScenarioError

PAGER_PROGRAM = Path(__file__).parents[1] / "bin" / "diffengine-pager"
# Its page table and store are memory: they must lie on a tmpfs.
TMPFS = Path("/dev/shm")


class SimulatedMachine(protocol.Host, Protocol):
    """A host that domains can be made on."""

    def create_domain(self, pages: Addresses) -> int: ...

    def resident_bytes(self) -> int: ...


class RunningProgram(Protocol):
    """A guest program that was started. `join` waits for the end that `stop` asked for."""

    def read(self) -> ProgramResult: ...

    def stop(self) -> None: ...

    def join(self) -> tuple[ProgramResult, NDArray[np.uint64]]: ...


@dataclass(frozen=True)
class Parts:
    """What a simulation needs. start: starts a program in a domain. trace: of virtual time."""

    machine: SimulatedMachine
    pager: protocol.Pager
    start: Callable[[int, ProgramOptions], RunningProgram]
    run: Run
    trace: Callable[[], virtual.Trace | None]


class Where(Enum):
    """Machine and pager on threads of this process, in processes of their own, or in virtual time."""

    THREADS = "threads"
    PROCESSES = "processes"
    VIRTUAL = "virtual"


@contextmanager
def host(scenario: Scenario, frames: int, where: Where) -> Iterator[Parts]:
    """A machine of so many frames, and its pager."""
    with ExitStack() as stack:
        if where is Where.VIRTUAL:
            stack.enter_context(virtual.virtual_time(scenario.seed))
        making = _in_processes if where is Where.PROCESSES else partial(_in_process, _KINDS[where])
        yield stack.enter_context(making(scenario.machine, frames))


@dataclass(frozen=True)
class _Kind:
    """What machine and pager in this process are made of."""

    binding: Binding
    disk: Callable[[MachineScenario], Any]
    threads_cpu_s: Callable[[], dict[str, float]]
    run: Callable[[], Run]
    trace: Callable[[], virtual.Trace | None]


def _no_trace() -> None:
    """Real time leaves none."""


_KINDS = {
    Where.THREADS: _Kind(NATIVE, lambda _: None, threads_cpu_s, RealRun, _no_trace),
    Where.VIRTUAL: _Kind(
        virtual.SIMULATED,
        lambda machine: virtual.disk(machine.swap_read_us, machine.swap_write_us, machine.swap_at_once),
        virtual.threads_cpu_s,
        virtual.VirtualRun,
        virtual.trace,
    ),
}


@contextmanager
def _in_process(kind: _Kind, machine_scenario: MachineScenario, frames: int) -> Iterator[Parts]:
    """Machine and pager on threads of this process."""
    machine = Machine(frames, kind.binding)
    with ExitStack() as stack:
        stack.callback(machine.close)
        path = stack.enter_context(_swap_path(machine_scenario))
        swap = None
        if path:
            with _refused_swap(machine_scenario, path):
                swap = Swap(path, machine_scenario.swap_mib << 20, kind.binding, kind.disk(machine_scenario))
            stack.callback(swap.close)
        store = stack.enter_context(Store(frames * PAGE_BYTES, None, kind.binding))
        pager = Pager(machine, store, swap, kind.threads_cpu_s)
        stack.callback(pager.close)
        yield Parts(machine, pager, partial(Program, machine), kind.run(), kind.trace)


@dataclass(frozen=True)
class HostProcesses:
    """Where a running diffengine-machine and diffengine-pager are to be met: a socket, and the pager's state."""

    machine: Path
    state: Path


@contextmanager
def host_processes(machine_scenario: MachineScenario, frames: int) -> Iterator[HostProcesses]:
    """diffengine-machine and diffengine-pager, started and ended with the block."""
    with ExitStack() as stack:
        path = stack.enter_context(_swap_path(machine_scenario))
        process = stack.enter_context(MachineProcess(frames))
        state = stack.enter_context(scratch_directory(TMPFS))
        arguments = ["--state", str(state), "--machine", str(process.socket_path)]
        arguments += ["--store-mib", str(max(1, frames * PAGE_BYTES >> 20))]
        if path:
            arguments += ["--swap", str(path), "--swap-mib", str(machine_scenario.swap_mib)]
        with _refused_swap(machine_scenario, path):
            stack.enter_context(_pager_process(arguments))
        yield HostProcesses(process.socket_path, state)


@contextmanager
def _in_processes(machine_scenario: MachineScenario, frames: int) -> Iterator[Parts]:
    """Machine and pager each in a process of its own."""
    with host_processes(machine_scenario, frames) as processes, ExitStack() as stack:
        machine = MachineClient(processes.machine)
        stack.callback(machine.close)
        pager = PagerClient(processes.state)
        stack.callback(pager.close)
        yield Parts(machine, pager, partial(ProgramOfMachine, machine), RealRun(), _no_trace)


class ProgramOfMachine:
    """A program in the machine's process."""

    def __init__(self, machine: MachineClient, domid: int, options: ProgramOptions) -> None:
        self._machine = machine
        self._number = machine.start_program(domid, options)

    def read(self) -> ProgramResult:
        return self._machine.read_program(self._number)

    def stop(self) -> None:
        """`join` does both."""

    def join(self) -> tuple[ProgramResult, NDArray[np.uint64]]:
        return self._machine.stop_program(self._number)


@contextmanager
def _pager_process(arguments: list[str]) -> Iterator[None]:
    command = [str(PAGER_PROGRAM), *arguments, "--parent", str(os.getpid())]
    # That this pager is ready is not yet that the service is that started it.
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            _, reason = process.communicate()
            raise NativeError(reason.strip() or "diffengine-pager did not start")
        yield
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def _swap_path(machine: MachineScenario) -> Iterator[Path | None]:
    """Where the swap file is to be, if there is to be one; it is gone afterwards."""
    if not machine.swap_mib:
        yield None
        return
    with ExitStack() as stack:
        if machine.swap_path is None:
            yield stack.enter_context(scratch_directory()) / "swap"
            return
        if machine.swap_path.exists():
            raise ScenarioError(
                f"[machine] swap_path = {str(machine.swap_path)!r}: must be a file that does not exist yet"
            )
        stack.callback(machine.swap_path.unlink, missing_ok=True)
        yield machine.swap_path


@contextmanager
def _refused_swap(machine: MachineScenario, path: Path | None) -> Iterator[None]:
    """Says which keys are to blame if the swap file can't be made."""
    try:
        yield
    except NativeError as error:
        if path is None:
            raise
        raise ScenarioError(
            f"[machine] swap_path = {str(path)!r}, swap_mib = {machine.swap_mib}: must be a file that can be "
            f"written, on a disk with that much room: {error}"
        ) from error
