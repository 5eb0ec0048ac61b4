# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever small scenario runs in virtual time: every byte right, every frame accounted for, and again the same."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from diffengine.engine import BUILT_IN_POLICIES, EngineOptions
from diffengine.simulation import Scenario, Where, as_json, simulate
from diffengine.simulation.scenario import DomainScenario, MachineScenario, ProgramScenario

phases = st.builds(
    ProgramScenario,
    kind=st.just("phases"),
    operations_per_s=st.sampled_from([0.0, 500.0, 5000.0]),
    pages=st.sampled_from(["zero", "identical", "random", "similar"]),
    similar_percent=st.integers(0, 100),
    free=st.sampled_from(["keep", "zero", "release"]),
    phase_s=st.floats(0.05, 0.3),
)
programs = st.one_of(st.just(ProgramScenario("idle")), phases, phases, phases)
engines = st.builds(
    EngineOptions,
    policy=st.sampled_from(list(BUILT_IN_POLICIES.values())),
    passes=st.sampled_from([None, 1, 2]),
    visit_interval_s=st.sampled_from([0.05, 0.2]),
    cpu_share=st.sampled_from([0.05, 1.0]),
    c4_visits=st.integers(1, 3),
    refault_limit=st.sampled_from([50, 10**6]),
    fault_limit=st.sampled_from([50.0, 1e6]),
    high_watermark=st.sampled_from([0.05, 0.9]),
    low_watermark=st.just(0.04),
    dense=st.booleans(),
)
scenarios = st.builds(
    lambda seed, engine, swap_mib, groups, running: Scenario(
        name="drawn",
        seed=seed,
        duration_s=1.0,
        machine=MachineScenario(None, swap_mib, None),
        engine=replace(engine, seed=seed),
        domains=tuple(
            DomainScenario(f"guest{number}", 1, None, program, groups[number], 0, False)
            for number, program in enumerate(running)
        ),
    ),
    st.integers(0, 2**63 - 1),
    engines,
    st.sampled_from([0, 1]),
    st.lists(st.sampled_from("ab"), min_size=3, max_size=3),
    st.lists(programs, min_size=1, max_size=3),
)


@given(scenarios)
@settings(max_examples=25)
def test_any_scenario_is_right_and_repeats(scenario: Scenario) -> None:
    result = simulate(scenario, where=Where.VIRTUAL)
    result.check()
    report = as_json(result)
    machine, used = report["machine"], report["used_bytes"]
    assert used["guests"] == machine["used_frames"] * 4096 == machine["resident_bytes"]
    if scenario.machine.swap_mib == 0:
        assert used["swap"] == 0
    assert as_json(simulate(scenario, where=Where.VIRTUAL)) == report
