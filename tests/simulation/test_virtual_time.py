# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine and pager in virtual time: ten million guest operations over many seeds, and scenarios made by hypothesis.

A failing seed is run again with simulation.h's de_simulation_draw(seed, OPERATIONS): it fails in the same way. Another
DIFFENGINE_FIRST_SEED explores other runs.
"""

import os
from typing import Any

import pytest
from diffengine._simulation import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

OPERATIONS = 10_000
SEEDS_PER_TEST = 125
STORE_MIB = 4
FIRST_SEED = int(os.environ.get("DIFFENGINE_FIRST_SEED", "0"))

Step = tuple[int, int, int, int, int, int, int]

actions = st.integers(0, lib.DE_SIMULATE_ACTIONS - 1)
small = st.integers(0, 3)
gfns = st.integers(0, 15)
steps = st.lists(st.tuples(actions, small, small, small, gfns, gfns, st.integers(0, 2**32 - 1)), max_size=200)


def simulate(options: Any) -> Any:
    """Run, and fail with what was found."""
    result = ffi.new("struct de_simulation_result *")
    assert lib.de_simulation_run(options, result) == lib.DE_OK
    assert ffi.string(result.failure).decode() == "", f"seed {options.seed}"
    return result


def draw(seed: int) -> Any:
    options = ffi.new("struct de_simulation_options *")
    lib.de_simulation_draw(seed, OPERATIONS, options)
    return options


@pytest.mark.parametrize("part", range(8))
def test_invariants_hold_over_many_seeds(part: int) -> None:
    first = FIRST_SEED + part * SEEDS_PER_TEST
    done = [simulate(draw(seed)).operations for seed in range(first, first + SEEDS_PER_TEST)]
    assert sum(done) >= OPERATIONS * SEEDS_PER_TEST


def test_a_run_repeats_exactly_also_from_python() -> None:
    first, second = (bytes(ffi.buffer(simulate(draw(5)))) for _ in range(2))
    assert first == second


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**64 - 1),
    scenario=steps,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 16), st.integers(0, 20)),
    gap=st.integers(1, 64),
    swap_slots=st.integers(0, 8),
    masks=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    rates=st.tuples(*[st.sampled_from([0, 10_000, 200_000])] * 3),
    store_domain=st.booleans(),
)
def test_any_scenario_leaves_the_invariants_whole(
    seed: int,
    scenario: list[Step],
    sizes: tuple[int, int, int, int],
    gap: int,
    swap_slots: int,
    masks: tuple[int, int],
    rates: tuple[int, int, int],
    store_domain: bool,
) -> None:
    domains, vcpus, pages, spare = sizes
    names = ("action", "domain", "vcpu", "other_domain", "gfn", "other_gfn", "argument")
    given_steps = ffi.new("struct de_simulation_step[]", [dict(zip(names, step, strict=True)) for step in scenario])
    options = ffi.new(
        "struct de_simulation_options *",
        {
            "seed": seed,
            "domains": domains,
            "vcpus": vcpus,
            "gfns": pages,
            "frames": domains * pages + 16 + spare + (STORE_MIB * 256 if store_domain else 0),
            "store_mib": STORE_MIB,
            "store_domain": store_domain,
            "switch_gap": gap,
            "audit_interval": 5,
            "hostile_domains": masks[0],
            "device_domains": masks[1],
            "swap_slots": swap_slots,
            "load_no_memory": rates[0],
            "refusals": rates[1],
            "disk_errors": rates[2],
            "steps": given_steps,
            "step_count": len(scenario),
        },
    )
    simulate(options)
