# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of bench/xenstore_fuzz.py: whatever stands in xenstore, the daemon goes on, and a guest's word is not
taken."""

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.xenstore_fuzz import run
from daemon_host import loop
from diffengine.errors import DiffengineError
from diffengine.hypervisor.xen.pyxs_connection import changers
from diffengine.service.configuration import configuration
from diffengine.service.free_requests import parse_free_request
from diffengine.service.overrides import Place, settle
from diffengine.settings import value_of

BASE = configuration({"engine": {"cpu_share": 0.25}})
PLACES = st.builds(
    Place,
    st.sampled_from(["engine", "domains", "domain"]),
    st.sampled_from(["cpu_share", "low_watermark", "high_watermark", "enabled", "grace_s", "x", ""]),
    st.sampled_from(["", "web", "6f0e2a52-9c1f-4d0e-8f5e-0a1b2c3d4e5f"]),
)
TEXTS = st.text(max_size=30) | st.sampled_from(["0.5", "1", "true", "0.9", "[" * 5000, "1e999", "NaN"])


def test_nonsense_in_xenstore_ends_nothing(tmp_path: Path) -> None:
    with loop() as on:
        run(500, random.Random(1), tmp_path, on)


@given(wanted=st.dictionaries(PLACES, TEXTS.map(value_of), max_size=6))
def test_every_value_is_taken_or_refused_and_what_is_taken_is_right(wanted: dict[Place, object]) -> None:
    found = settle(BASE, {}, wanted)
    assert found.held.keys() | found.refused.keys() == wanted.keys()
    assert not found.held.keys() & found.refused.keys()
    assert found.configuration.engine.low_watermark <= found.configuration.engine.high_watermark
    again = settle(BASE, found.held, found.held)
    assert (again.configuration, again.refused) == (found.configuration, {})


@settings(max_examples=200)
@given(st.text(max_size=40) | st.from_regex(r"[0-9]{1,8}( [0-9]{1,4})?", fullmatch=True))
def test_any_text_is_a_request_or_none(text: str) -> None:
    try:
        assert 1 <= parse_free_request(text).mib <= 1 << 20
    except DiffengineError as error:
        assert "must be MIB" in str(error)


@given(st.lists(st.from_regex(rb"[nrwb][0-9]{1,5}", fullmatch=True) | st.binary(max_size=6), max_size=4))
def test_permissions_are_understood_or_refused(permissions: list[bytes]) -> None:
    try:
        assert 0 not in changers(permissions)
    except ValueError:
        return
