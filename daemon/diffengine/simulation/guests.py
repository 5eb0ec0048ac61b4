# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scenario's domains to domains of the embedded machine, and the programs that run in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffengine.hypervisor.programs import (
    FreeAs,
    Generated,
    ProgramKind,
    ProgramOptions,
)
from diffengine.images import ImageSet
from diffengine.native import Addresses, Digester, PageKind, PageNumbers
from diffengine.simulation.scenario import (
    PAGES_PER_MIB,
    SPARE_MIB,
    SPARE_SHARE,
    DomainScenario,
    ProgramScenario,
    Scenario,
    ScenarioError,
)

KINDS = {
    "idle": ProgramKind.IDLE,
    "working-set": ProgramKind.WORKING_SET,
    "phases": ProgramKind.PHASES,
    "trace": ProgramKind.TRACE,
}


@dataclass(frozen=True)
class DomainPlan:
    """A domain before it is made. content: the address of each page's content; 0: a zero page."""

    scenario: DomainScenario
    content: Addresses

    @property
    def gfns(self) -> int:
        return len(self.content)


def plan_domains(scenario: Scenario, images: ImageSet | None) -> list[DomainPlan]:
    """Raises ScenarioError for a domain that is smaller than its image. `images`: those of scenario.images."""
    plans = []
    for domain in scenario.domains:
        content = np.empty(0, dtype=np.uint64)
        if domain.image and images:
            image = images.images[scenario.images.index(domain.image)]
            numbers = np.arange(image.first_page, image.first_page + image.pages, dtype=np.uint32)
            content = images.addresses(numbers)
        gfns = len(content) if domain.memory_mib is None else domain.memory_mib * PAGES_PER_MIB
        if gfns < len(content):
            needed = -(-len(content) // PAGES_PER_MIB)
            raise ScenarioError(
                f"[[domain]] {domain.name}: memory_mib = {domain.memory_mib}: must be at least its image's {needed} MiB"
            )
        plans.append(DomainPlan(domain, np.concatenate([content, np.zeros(gfns - len(content), dtype=np.uint64)])))
    return plans


def machine_frames(scenario: Scenario, plans: Sequence[DomainPlan]) -> int:
    """Frames of the machine. Raises ScenarioError if the domains do not fit."""
    pages = sum(plan.gfns for plan in plans)
    if scenario.machine.memory_mib is None:
        return int(pages * (1 + SPARE_SHARE)) + SPARE_MIB * PAGES_PER_MIB
    frames = scenario.machine.memory_mib * PAGES_PER_MIB
    if pages > frames:
        sizes = " + ".join(f"{plan.scenario.name} {mib(plan.gfns)}" for plan in plans)
        raise ScenarioError(
            f"[machine] memory_mib = {scenario.machine.memory_mib}: must be at least what the domains have: "
            f"{sizes} = {mib(pages)} MiB"
        )
    return frames


def mib(pages: int) -> str:
    return f"{pages / PAGES_PER_MIB:g}"


def program_options(plan: DomainPlan, seed: int) -> ProgramOptions:
    program = plan.scenario.program
    hot = working_set(plan, program, seed) if program.kind in ("working-set", "trace") else None
    return ProgramOptions(
        kind=KINDS[program.kind],
        seed=seed,
        operations_per_s=program.operations_per_s,
        content=plan.content,
        hot=hot,
        zipf=program.zipf,
        excursion_fraction=program.excursion_fraction,
        write_fraction=program.write_fraction,
        generated=Generated[program.pages.upper()],
        similar_percent=program.similar_percent,
        free_as=FreeAs[program.free.upper()],
        phase_s=program.phase_s,
        trace=program.trace.read_bytes() if program.kind == "trace" else b"",
        bits_per_map=program.trace_bits if program.kind == "trace" else 0,
        interval_s=program.interval_s,
    )


def working_set(plan: DomainPlan, program: ProgramScenario, seed: int) -> PageNumbers:
    """Which pages are hot, the most popular first: a random choice of the non-zero ones."""
    filled = np.flatnonzero(plan.content)
    kinds = np.empty(len(filled), dtype=np.uint8)
    digests = np.empty(len(filled), dtype=np.uint64)
    Digester(0, 0, 1).digest(plan.content[filled], digests, kinds, np.empty((len(filled), 0), dtype=np.uint64))
    nonzero = filled[kinds != PageKind.ZERO].astype(np.uint32)
    nonzero = nonzero if len(nonzero) else np.arange(plan.gfns, dtype=np.uint32)
    count = max(1, round(len(nonzero) * program.working_set))
    return np.random.default_rng(seed).permutation(nonzero)[:count]
