# SPDX-License-Identifier: GPL-2.0-or-later
"""When a domain may be worked on, and what its own description may say."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffengine.hypervisor.protocol import Life
from diffengine.service.attached import Cause
from diffengine.service.configuration import ConfigurationError, DomainSettings, configuration, with_words
from diffengine.service.dom0_memory import MEMINFO, available_bytes
from diffengine.service.domain_description import words_of
from diffengine.service.readiness import LONG_AGO, why_not_yet

UUID = "6f0e2a52-9c1f-4d0e-8f5e-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("life", "since_s", "now_s", "cause"),
    [
        (Life.STARTING, LONG_AGO, 1e6, Cause.STARTING),
        (Life.STOPPED, LONG_AGO, 1e6, Cause.STOPPED),
        (Life.RUNNING, 100.0, 129.9, Cause.STARTING),
        (Life.RUNNING, 100.0, 130.0, None),
        (Life.RUNNING, LONG_AGO, 0.0, None),
    ],
)
def test_a_domain_is_left_alone_until_its_os_runs_and_the_grace_has_passed(
    life: Life, since_s: float, now_s: float, cause: Cause | None
) -> None:
    left = why_not_yet(life, since_s, now_s, 30.0)
    assert (left.cause if left else None) == cause


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 86_400))
def test_once_it_may_be_worked_on_it_stays_so(since_s: float, later_s: float, grace_s: float) -> None:
    if why_not_yet(Life.RUNNING, since_s, since_s + later_s, grace_s) is None:
        assert why_not_yet(Life.RUNNING, since_s, since_s + later_s * 2, grace_s) is None
    assert why_not_yet(Life.RUNNING, since_s, since_s + later_s, 0) is None


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<domain/>", {}),
        ('<d:domain xmlns:d="urn:diffengine:domain" enabled="false"/>', {"enabled": False}),
        (
            '<domain enabled="true" trust_group="web" min_resident_mib="64.5"> </domain>',
            {"enabled": True, "trust_group": "web", "min_resident_mib": 64.5},
        ),
    ],
)
def test_a_description_says_keys_of_the_domains_table(xml: str, words: dict[str, Any]) -> None:
    assert words_of(xml, UUID) == words
    settings = with_words(DomainSettings(False, None, 8), words)
    assert settings.min_resident_mib == words.get("min_resident_mib", 8)


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "not XML"),
        ("<domain", "not XML"),
        ('<domain enabled="maybe"/>', "enabled = 'maybe': must be true or false"),
        ('<domain size="1"/>', "size = 1: no such key"),
        ("<other/>", "must be one element `domain`"),
        ("<domain><enabled/></domain>", "nothing in it"),
        ("<domain>true</domain>", "nothing in it"),
        ('<d:domain xmlns:d="urn:else" enabled="true"/>', "must be one element `domain`"),
        ('<!DOCTYPE d [<!ENTITY a "b">]><domain/>', "without declarations"),
        ("<domain>" + " " * 20_000 + "</domain>", "at most 16384 bytes"),
    ],
)
def test_a_wrong_description_is_refused_and_says_whose(xml: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        words_of(xml, UUID)
    assert UUID in str(error.value) and why in str(error.value)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin1")))
def test_whatever_it_says_it_is_taken_or_refused(xml: str) -> None:
    with suppress(ConfigurationError):
        words_of(xml, UUID)


def test_what_dom0_has_left_is_its_kernels_word() -> None:
    assert available_bytes("MemTotal:  716800 kB\nMemAvailable:   65536 kB\nBuffers: 1 kB\n") == 64 << 20
    assert available_bytes(MEMINFO.read_text()) > 0
    with pytest.raises(ValueError, match="MemAvailable"):
        available_bytes("MemFree: 1 kB\n")


def test_where_libvirt_is_stands_in_the_file() -> None:
    assert configuration({}).libvirt_uri is None
    assert configuration({"libvirt": {"uri": "test:///default"}}).libvirt_uri == "test:///default"
    with pytest.raises(ConfigurationError, match="libvirt"):
        configuration({"libvirt": {"url": "x"}})
    assert "[libvirt]" in (Path(__file__).parents[2] / "systemd" / "diffengine.toml").read_text()
