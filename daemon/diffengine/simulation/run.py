# SPDX-License-Identifier: GPL-2.0-or-later
"""One simulation: guests and engine at work, sampled once a second."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import Engine, EngineReport
from diffengine.errors import DiffengineError
from diffengine.hypervisor.programs import ProgramResult
from diffengine.hypervisor.protocol import HostMemory, PagerCounters
from diffengine.images import ImageSet, open_images
from diffengine.simulation.guests import DomainPlan, machine_frames, plan_domains, program_options
from diffengine.simulation.hosts import Parts, RunningProgram, in_process, in_processes
from diffengine.simulation.scenario import PAGE_BYTES, Scenario

MOST_SAMPLE_INTERVAL_S = 1.0
FEWEST_SAMPLES = 50
# A pager in its own process publishes its statistics ten times a second.
STATISTICS_S = 0.25


@dataclass(frozen=True)
class Sample:
    """Everything at one moment. resident_bytes: what the kernel says that the machine's frames take."""

    time_s: float
    memory: HostMemory
    resident_bytes: int
    pager: PagerCounters
    engine: EngineReport
    programs: tuple[ProgramResult, ...]

    @property
    def guest_bytes(self) -> int:
        return self.memory.used * PAGE_BYTES

    @property
    def table_bytes(self) -> int:
        return self.engine.table_bytes + self.pager.table_bytes + self.memory.metadata_bytes

    @property
    def used_bytes(self) -> int:
        return self.guest_bytes + self.pager.store_bytes + self.table_bytes

    @property
    def refaults(self) -> int:
        return self.pager.loads


@dataclass(frozen=True)
class SimulationResult:
    """samples: in order of time, the last one taken when everything stood still. fault_ns: by domain."""

    scenario: Scenario
    allocated_bytes: int
    samples: tuple[Sample, ...]
    fault_ns: tuple[NDArray[np.uint64], ...]

    @property
    def end(self) -> Sample:
        return self.samples[-1]

    @property
    def wrong_bytes(self) -> int:
        return sum(program.wrong_bytes for program in self.end.programs)

    def check(self) -> None:
        """Raises DiffengineError if a guest read anything but what it last wrote, or could not go on."""
        for domain, program in zip(self.scenario.domains, self.end.programs, strict=True):
            if program.wrong_bytes:
                raise DiffengineError(
                    f"{domain.name} read {program.wrong_bytes} wrong bytes; report this, with the file"
                )
            if program.status:
                raise DiffengineError(f"{domain.name}: its program ended early (error {-program.status}); report this")


class Simulation:
    """Everything that runs, from `start` to `finish`."""

    def __init__(self, scenario: Scenario, plans: Sequence[DomainPlan], parts: Parts) -> None:
        self._scenario = scenario
        self._plans = plans
        self._parts = parts
        self._machine = parts.machine
        self._pager = parts.pager
        self._engine = Engine(parts.machine, parts.pager, scenario.engine)
        self._programs: list[RunningProgram] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_engine, name="engine")
        self._failure: BaseException | None = None
        self._start_s = 0.0
        self._domids = []
        for plan in plans:
            domid = self._machine.create_domain(plan.content)
            self._pager.add_domain(domid, plan.gfns)
            minimum = int(plan.scenario.min_resident_mib * (1 << 20)) // PAGE_BYTES
            self._engine.add_domain(domid, plan.gfns, plan.scenario.trust_group, minimum)
            self._domids.append(domid)

    def start(self) -> None:
        self._start_s = time.monotonic()
        for number, (domid, plan) in enumerate(zip(self._domids, self._plans, strict=True)):
            options = program_options(plan, self._scenario.seed * 1000 + number)
            self._programs.append(self._parts.start(domid, options))
        self._thread.start()

    def _run_engine(self) -> None:
        try:
            self._engine.run(self._stop)
        except BaseException as error:  # to be raised where the simulation is waited for
            self._failure = error

    def sample(self, programs: Sequence[ProgramResult] | None = None) -> Sample:
        if self._failure:
            raise self._failure
        return Sample(
            time_s=time.monotonic() - self._start_s,
            memory=self._machine.memory(),
            resident_bytes=self._machine.resident_bytes(),
            pager=self._pager.counters(),
            engine=self._engine.report(),
            programs=tuple(programs if programs is not None else [program.read() for program in self._programs]),
        )

    def finish(self) -> tuple[Sample, list[NDArray[np.uint64]]]:
        """Stops the engine, then the guests: what holds when nothing moves any more."""
        self.stop()
        joined = [program.join() for program in self._programs]
        self._programs.clear()
        time.sleep(STATISTICS_S)
        return self.sample([result for result, _ in joined]), [fault_ns for _, fault_ns in joined]

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()
        for program in self._programs:
            program.stop()

    def close(self) -> None:
        """After an exception, too."""
        self.stop()
        for program in self._programs:
            program.join()
        self._programs.clear()
        self._engine.close()


@contextmanager
def _simulation(scenario: Scenario, images: ImageSet | None, processes: bool) -> Iterator[tuple[Simulation, int]]:
    """A simulation that has not started, and how many bytes its domains have."""
    plans = plan_domains(scenario, images)
    frames = machine_frames(scenario, plans)
    host = in_processes if processes else in_process
    with host(scenario.machine, frames) as parts:
        simulation = Simulation(scenario, plans, parts)
        try:
            yield simulation, sum(plan.gfns for plan in plans) * PAGE_BYTES
        finally:
            simulation.close()


def simulate(
    scenario: Scenario, watch: Callable[[Sample, int], None] | None = None, processes: bool = False
) -> SimulationResult:
    """Runs a scenario to its end. `watch` is called with each sample, and the bytes of all domains. `processes`:
    machine and pager each in a process of its own.

    Raises ScenarioError before anything starts if the machine is too small, DiffengineError if it can't be made.
    """
    with ExitStack() as stack:
        images = stack.enter_context(open_images(scenario.images)) if scenario.images else None
        simulation, allocated = stack.enter_context(_simulation(scenario, images, processes))
        simulation.start()
        samples = []
        interval_s = min(MOST_SAMPLE_INTERVAL_S, scenario.duration_s / FEWEST_SAMPLES)
        start_s = time.monotonic()
        while (elapsed_s := time.monotonic() - start_s) < scenario.duration_s:
            samples.append(simulation.sample())
            if watch:
                watch(samples[-1], allocated)
            next_s = (elapsed_s // interval_s + 1) * interval_s
            time.sleep(max(0.0, min(next_s, scenario.duration_s) - (time.monotonic() - start_s)))
        last, fault_ns = simulation.finish()
        if watch:
            watch(last, allocated)
        return SimulationResult(scenario, allocated, (*samples, last), tuple(fault_ns))
