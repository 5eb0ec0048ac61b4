# SPDX-License-Identifier: GPL-2.0-or-later
"""One simulation: guests and engine at work, sampled once a second."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import Engine, EngineReport
from diffengine.errors import DiffengineError
from diffengine.hypervisor import protocol
from diffengine.hypervisor.programs import ProgramResult
from diffengine.hypervisor.protocol import HostMemory, PagerCounters
from diffengine.images import ImageSet, open_images
from diffengine.simulation.guests import DomainPlan, machine_frames, plan_domains, program_options
from diffengine.simulation.hosts import Parts, RunningProgram, SimulatedMachine, Where, host
from diffengine.simulation.interruption import interruption
from diffengine.simulation.scenario import PAGE_BYTES, Scenario
from diffengine.simulation.virtual import Trace

MOST_SAMPLE_INTERVAL_S = 1.0
FEWEST_SAMPLES = 50
# A pager in its own process publishes its statistics ten times a second.
STATISTICS_S = 0.25
SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF


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
    """samples: in order of time, the last one taken when everything stood still. fault_ns: by domain. trace: of a run
    in virtual time."""

    scenario: Scenario
    allocated_bytes: int
    samples: tuple[Sample, ...]
    fault_ns: tuple[NDArray[np.uint64], ...]
    trace: Trace | None = None

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


@dataclass(frozen=True)
class Observed:
    """What an observer may look at, and map pages of. domains: pages by domid."""

    machine: SimulatedMachine
    pager: protocol.Pager
    domains: dict[int, int]


class Observer(Protocol):
    """Looks at a simulation, or takes part in it as somebody in dom0, each time that a sample is taken."""

    def observe(self, time_s: float, host: Observed) -> None: ...

    def close(self) -> None:
        """Before machine and pager go, after an exception, too."""


class Simulation:
    """Everything that runs, from `start` to `finish`."""

    def __init__(self, scenario: Scenario, plans: Sequence[DomainPlan], parts: Parts) -> None:
        self._scenario = scenario
        self._plans = plans
        self._parts = parts
        self._machine = parts.machine
        self._pager = parts.pager
        self._engine = Engine(parts.machine, parts.pager, scenario.engine, parts.run.pace)
        self._programs: list[RunningProgram] = []
        self._run = parts.run
        self._start_s = 0.0
        self._domids = []
        for plan in plans:
            domid = self._machine.create_domain(plan.content)
            self._pager.add_domain(domid, plan.gfns)
            minimum = int(plan.scenario.min_resident_mib * (1 << 20)) // PAGE_BYTES
            self._engine.add_domain(domid, plan.gfns, plan.scenario.trust_group, minimum, plan.scenario.log_dirty)
            self._domids.append(domid)

    def start(self) -> None:
        self._start_s = self._run.pace.now_s()
        for number, (domid, plan) in enumerate(zip(self._domids, self._plans, strict=True)):
            options = program_options(plan, self._scenario.seed * 1000 + number & SEED_MASK)
            self._programs.append(self._parts.start(domid, options))
        self._run.start(self._engine)

    @property
    def observed(self) -> Observed:
        gfns = {domid: plan.gfns for domid, plan in zip(self._domids, self._plans, strict=True)}
        return Observed(self._machine, self._pager, gfns)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return self._run.pace.now_s() - self._start_s

    def sleep_until(self, elapsed_s: float) -> None:
        self._run.sleep_until(self._start_s + elapsed_s)

    def sample(self, programs: Sequence[ProgramResult] | None = None) -> Sample:
        self._run.check()
        return Sample(
            time_s=self.elapsed_s,
            memory=self._machine.memory(),
            resident_bytes=self._machine.resident_bytes(),
            pager=self._pager.counters(),
            engine=self._engine.report(),
            programs=tuple(programs if programs is not None else [program.read() for program in self._programs]),
        )

    def finish(self) -> tuple[Sample, list[NDArray[np.uint64]], Trace | None]:
        """Stops the engine, then the guests: what holds when nothing moves any more."""
        self.stop()
        joined = [program.join() for program in self._programs]
        self._programs.clear()
        self.sleep_until(self.elapsed_s + STATISTICS_S)
        last = self.sample([result for result, _ in joined])
        return last, [fault_ns for _, fault_ns in joined], self._parts.trace()

    def stop(self) -> None:
        self._run.stop()
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
def _simulation(scenario: Scenario, images: ImageSet | None, where: Where) -> Iterator[tuple[Simulation, int]]:
    """A simulation that has not started, and how many bytes its domains have."""
    plans = plan_domains(scenario, images)
    frames = machine_frames(scenario, plans)
    with host(scenario, frames, where) as parts:
        simulation = Simulation(scenario, plans, parts)
        try:
            yield simulation, sum(plan.gfns for plan in plans) * PAGE_BYTES
        finally:
            simulation.close()


def simulate(
    scenario: Scenario,
    watch: Callable[[Sample, int], None] | None = None,
    where: Where = Where.THREADS,
    observer: Observer | None = None,
    enough: Callable[[Sample, int], bool] | None = None,
) -> SimulationResult:
    """Runs a scenario to its end, or until `enough` says so of a sample. `watch` and `enough` are called with each
    sample, and the bytes of all domains.

    Raises ScenarioError before anything starts if the machine is too small, DiffengineError if it can't be made.
    """
    with ExitStack() as stack:
        interrupted = stack.enter_context(interruption())
        images = stack.enter_context(open_images(scenario.images)) if scenario.images else None
        simulation, allocated = stack.enter_context(_simulation(scenario, images, where))
        if observer:
            stack.callback(observer.close)
        simulation.start()
        samples = []
        interval_s = min(MOST_SAMPLE_INTERVAL_S, scenario.duration_s / FEWEST_SAMPLES)
        while (elapsed_s := simulation.elapsed_s) < scenario.duration_s:
            interrupted.check()
            samples.append(simulation.sample())
            if observer:
                observer.observe(simulation.elapsed_s, simulation.observed)
            if watch:
                watch(samples[-1], allocated)
            if enough and enough(samples[-1], allocated):
                break
            next_s = (elapsed_s // interval_s + 1) * interval_s
            simulation.sleep_until(min(next_s, scenario.duration_s))
        last, fault_ns, trace = simulation.finish()
        if watch:
            watch(last, allocated)
        return SimulationResult(scenario, allocated, (*samples, last), tuple(fault_ns), trace)
