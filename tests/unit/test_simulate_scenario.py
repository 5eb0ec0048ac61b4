# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario files: what they say, and that each mistake names its key, its value and what is allowed."""

from pathlib import Path

import numpy as np
import pytest

from diffengine.engine import State, Technique
from diffengine.simulation.scenario import (
    SCENARIOS,
    TRACE,
    TRACE_BITS,
    Scenario,
    ScenarioError,
    find_scenario,
    load_scenario,
    shipped_scenarios,
)

IDLE = '[[domain]]\nname = "a"\nmemory_mib = 1\n'


def load(folder: Path, text: str) -> Scenario:
    path = folder / "test.toml"
    path.write_text(text)
    return load_scenario(path)


def test_what_is_not_said_has_the_defaults(tmp_path: Path) -> None:
    scenario = load(tmp_path, IDLE)
    assert (scenario.seed, scenario.duration_s) == (0, 60.0)
    assert scenario.machine.memory_mib is None
    assert scenario.engine.policy.name == "default"
    assert scenario.engine.visit_interval_s == 4.0
    (domain,) = scenario.domains
    assert (domain.program.kind, domain.trust_group, domain.min_resident_mib) == ("idle", "a", 0)


def test_all_keys_that_others_build_on(tmp_path: Path) -> None:
    (tmp_path / "guest.raw").write_bytes(bytes(1 << 20))
    scenario = load(
        tmp_path,
        """
        seed = 7
        duration_s = 2.5
        [machine]
        memory_mib = 64
        swap_mib = 32
        swap_path = "swap"
        [engine]
        policy = "mine"
        passes = 5
        table_memory_mib = 0.5
        cpu_share = 0.25
        refault_limit = 10
        [policies.mine]
        C2 = ["share"]
        C4 = ["compress", "patch"]
        [[domain]]
        name = "web"
        memory_mib = 2
        image = "guest.raw"
        program = "working-set"
        working_set = 0.5
        trust_group = "tenants"
        min_resident_mib = 0.5
        """,
    )
    assert (scenario.seed, scenario.duration_s, scenario.machine.memory_mib) == (7, 2.5, 64)
    assert (scenario.machine.swap_mib, scenario.machine.swap_path) == (32, tmp_path / "swap")
    engine = scenario.engine
    assert (engine.passes, engine.table_memory_bytes, engine.cpu_share, engine.refault_limit) == (5, 1 << 19, 0.25, 10)
    assert engine.policy.allowed[State.C2] == (Technique.SHARE,)
    assert engine.policy.allowed[State.C4] == (Technique.COMPRESS, Technique.PATCH)
    (domain,) = scenario.domains
    assert (domain.image, domain.trust_group, domain.min_resident_mib) == (tmp_path / "guest.raw", "tenants", 0.5)
    assert domain.program.working_set == 0.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed = -1\n" + IDLE, ["seed = -1", "a whole number from 0"]),
        ("seed = true\n" + IDLE, ["seed = True", "a whole number from 0"]),
        ("duration_s = 'long'\n" + IDLE, ["duration_s = 'long'", "a number from 0.1", "seconds"]),
        ("duration_s = nan\n" + IDLE, ["duration_s = nan", "a number from 0.1"]),
        ("speed = 3\n" + IDLE, ["speed = 3", "no such key", "duration_s"]),
        ("machine = 4\n" + IDLE, ["machine = 4", "must be a table"]),
        ("[machine]\nmemory_mib = 0\n" + IDLE, ["[machine] memory_mib = 0", "from 1 to"]),
        ("[machine]\nswap_path = 'x'\n" + IDLE, ["[machine] swap_path", "swap_mib"]),
        ("[engine]\npolicy = 'bold'\n" + IDLE, ["[engine] policy = 'bold'", "default, aggressive, compress-first"]),
        ("[engine]\ncpu_share = 1.5\n" + IDLE, ["[engine] cpu_share = 1.5", "from 0.001 to 1"]),
        ("[engine]\nlow_watermark = 0.95\n" + IDLE, ["low_watermark = 0.95", "high_watermark = 0.9"]),
        ("[engine]\npasses = 0\n" + IDLE, ["[engine] passes = 0", "from 1 to 256"]),
        ("[engine]\nrefault_limit = -5\n" + IDLE, ["[engine] refault_limit = -5", "from 0"]),
        ("[policies.mine]\nC5 = []\n" + IDLE, ["[policies.mine] C5 = []", "no such key", "C1, C2, C3, C4"]),
        ("[policies.mine]\nC4 = ['squeeze']\n" + IDLE, ["C4 = ['squeeze']", "share, reference, patch, compress, swap"]),
        ("[policies.default]\nC4 = []\n" + IDLE, ["[policies.default]", "built-in"]),
        ("", ["[[domain]]", "one or more"]),
        (IDLE + IDLE, ["name = 'a'", "different"]),
        ("[[domain]]\nname = 'a'\n", ["memory_mib", "must be set"]),
        (IDLE + "program = 'sleep'\n", ["program = 'sleep'", "idle, working-set, phases, trace"]),
        (IDLE + "program = 'working-set'\n", ["image", "must be set", "working-set"]),
        (IDLE + "image = 'none.raw'\n", ["image = 'none.raw'", "can be read", "looked in"]),
        (IDLE + "min_resident_mib = 2\n", ["min_resident_mib = 2", "at most", "1 MiB"]),
        (IDLE + "working_set = 0.5\n", ["working_set = 0.5", "no such key"]),
        (IDLE + "program = 'phases'\npages = 'odd'\n", ["pages = 'odd'", "zero, identical, random, similar"]),
        (IDLE + "program = 'phases'\nsimilar_percent = 101\n", ["similar_percent = 101", "from 0 to 100"]),
        (IDLE + "program = 'trace'\ntrace_bits = 12\n", ["trace_bits = 12", "multiple of 8"]),
        (IDLE + "program = 'trace'\ntrace_bits = 800000\n", ["trace", "100000 bytes each", "180224 bytes"]),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ScenarioError) as refused:
        load(tmp_path, text)
    message = str(refused.value)
    assert refused.value.exit_code == 2
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as refused:
        load(tmp_path, "seed = -1\n[engine]\npasses = 0\n[[domain]]\nmemory_mib = 'much'\n")
    assert all(key in str(refused.value) for key in ("seed", "passes", "[[domain]] number 1 memory_mib = 'much'"))


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe"])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match="not TOML"):
        load_scenario(path)


def test_a_missing_file_names_those_that_are_shipped(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no such file.*demo.*steady"):
        load_scenario(tmp_path / "missing.toml")


def test_shipped_scenarios_are_found_by_name_and_are_right(samples: dict[str, Path]) -> None:
    folder = next(iter(samples.values())).parent
    assert {"demo", "steady"} <= set(shipped_scenarios())
    for name in shipped_scenarios():
        scenario = load_scenario(find_scenario(name), [folder])
        assert scenario.domains
    assert load_scenario(SCENARIOS / "steady.toml", [folder]).duration_s == 300


def test_the_shipped_trace_is_eleven_bitmaps_of_real_changes() -> None:
    bits = np.unpackbits(np.frombuffer(TRACE.read_bytes(), dtype=np.uint8), bitorder="little").reshape(-1, TRACE_BITS)
    changed = bits.sum(axis=1)
    assert len(changed) == 11
    assert (changed > 5_000).all() and (changed < 7_000).all()
