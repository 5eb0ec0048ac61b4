# SPDX-License-Identifier: GPL-2.0-or-later
"""diffengine.toml: what it says, that each mistake is named, and that a change is checked as the file is."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from command import output_of, refusal_of
from diffengine.engine import EngineOptions
from diffengine.service.configuration import (
    Configuration,
    ConfigurationError,
    DomainSettings,
    Identity,
    configuration,
    read_configuration,
    with_change,
)

SHIPPED = Path(__file__).parents[2] / "systemd" / "diffengine.toml"
UUID = "6f0e2a52-9c1f-4d0e-8f5e-0a1b2c3d4e5f"
TWO = f"""
[engine]
cpu_share = 0.25
policy = "mine"
[policies.mine]
C4 = ["compress"]
[domains]
min_resident_mib = 8
[domain.web]
trust_group = "w"
[domain.{UUID.upper()}]
enabled = false
min_resident_mib = 2
"""


def of(text: str) -> Configuration:
    return configuration(tomllib.loads(text))


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        of(text)
    return str(error.value)


def test_nothing_said_means_that_nobody_is_touched() -> None:
    assert of("").domain(Identity(1, UUID, "web")) == DomainSettings(False, None, 0)
    assert of("").engine == EngineOptions()


def test_a_domain_is_meant_by_uuid_or_name() -> None:
    found = of(TWO)
    assert (found.engine.cpu_share, found.engine.policy.name) == (0.25, "mine")
    assert found.domain(Identity(1, "", "web")) == DomainSettings(True, "w", 8)
    # The UUID says more than a name does.
    assert found.domain(Identity(2, UUID, "web")) == DomainSettings(False, None, 2)
    assert found.domain(Identity(3, "", "db")) == DomainSettings(False, None, 8)
    assert found.domain(Identity(4)) == DomainSettings(False, None, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[engine]\ncpu_share = 2", "[engine] cpu_share = 2: must be a number from 0.001 to 1"),
        ("[engine]\nseed = 2", "[engine] seed = 2: no such key; known here: c4_visits"),
        ("[domains]\nenabled = 1", "[domains] enabled = 1: must be true or false"),
        ('[domains]\ntrust_group = "a"', "[domains] trust_group = 'a': no such key"),
        ("[domain.a]\nmin_resident_mib = -1", '[domain."a"] min_resident_mib = -1: must be a number from 0 to'),
        ("domain = 3", "domain = 3: must be a table"),
        ("[domain]\na = 3", "a = 3: must be a table"),
        ('[socket]\npath = "status"', "[socket] path = 'status': must be a path that begins with /"),
        (
            "[sockets]",
            "sockets = {}: no such key; known here: dom0, domain, domains, engine, libvirt, metrics, policies, socket",
        ),
        (f"[domain.{UUID}]\n[domain.{UUID.upper()}]", "must be one table for each UUID"),
        ("\n".join(f"[domain.d{number}]" for number in range(1025)), "must be at most 1024 tables; there are 1025"),
    ],
)
def test_each_mistake_is_named(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_all_mistakes_are_named_at_once() -> None:
    said = refusal('[engine]\ncpu_share = "x"\ndense = 1\n[domain.a]\nenabled = "y"')
    assert [key for key in ("cpu_share", "dense", "enabled") if key not in said] == []


def test_a_change_is_checked_as_the_file_is() -> None:
    before = of(TWO)
    assert with_change(before, None, "cpu_share", 1).engine.cpu_share == 1
    assert with_change(before, None, "cpu_share", None).engine.cpu_share == EngineOptions().cpu_share
    changed = with_change(before, UUID, "enabled", True)
    assert changed.domain(Identity(2, UUID)) == DomainSettings(True, None, 2)
    assert with_change(before, "db", "enabled", True).domain(Identity(3, "", "db")).enabled
    for domain, key, value in [(None, "cpu_share", 0), (None, "x", 1), ("web", "enabled", 1), (None, "policy", [1])]:
        with pytest.raises(ConfigurationError, match=key):
            with_change(before, domain, key, value)
    assert before == of(TWO)


def test_the_shipped_file_says_what_holds_without_it() -> None:
    assert read_configuration(SHIPPED) == of("")
    # Every key of the engine is there, commented out, with its default.
    said = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = |\[)", "", SHIPPED.read_text()))
    options, default = said["engine"], EngineOptions()
    names = {field.name for field in fields(EngineOptions)} - {"seed", "passes", "policy", "table_memory_bytes"}
    assert {name: options[name] for name in names} == {name: getattr(default, name) for name in names}
    assert set(options) == names | {"policy", "table_memory_mib"}
    configuration(said)


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    assert output_of("config", "check", SHIPPED).endswith("right; 0 domain tables, all others left alone\n")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[engine]\ncpu_share = 7\n")
    assert refusal_of("config", "check", wrong) == (
        f"diffengine: {wrong}: [engine] cpu_share = 7: must be a number from 0.001 to 1"
    )
    assert "no such file" in refusal_of("config", "check", tmp_path / "none.toml")
    assert "Is a directory" in refusal_of("config", "check", tmp_path)
    wrong.write_bytes(b"\xff")
    assert "not TOML" in refusal_of("config", "check", wrong)
