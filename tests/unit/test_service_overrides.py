# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that hold instead of the configuration's: each is right, or the one before it stays and the reason is told."""

import tomllib
from concurrent.futures import Future
from typing import Any

import pytest

from diffengine.errors import DiffengineError
from diffengine.service.configuration import Configuration, ConfigurationError, configuration
from diffengine.service.free_requests import FreeRequest, FreeRequestError, outcome_of, parse_free_request
from diffengine.service.overrides import Overrides, Place, settle
from diffengine.settings import value_of

UUID = "6f0e2a52-9c1f-4d0e-8f5e-0a1b2c3d4e5f"
CPU = Place("engine", "cpu_share")
HIGH, LOW = Place("engine", "high_watermark"), Place("engine", "low_watermark")
ENABLED = Place("domain", "enabled", UUID)
GROUP = Place("domain", "trust_group", UUID.upper())


def of(text: str) -> Configuration:
    return configuration(tomllib.loads(text))


BASE = of("[engine]\ncpu_share = 0.25\n[domains]\nmin_resident_mib = 4")


def test_what_is_right_holds_and_nothing_else_changes() -> None:
    found = settle(BASE, {}, {CPU: 0.75, Place("domains", "enabled"): True, ENABLED: False, GROUP: "web"})
    assert found.configuration.engine.cpu_share == 0.75
    assert (found.configuration.others.enabled, found.configuration.others.min_resident_mib) == (True, 4)
    assert found.words == {UUID: {"enabled": False, "trust_group": "web"}}
    assert found.refused == {}
    assert settle(BASE, found.held, {}) == Overrides(BASE)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (CPU, 7, "cpu_share = 7: must be a number"),
        (CPU, "x", "cpu_share = 'x': must be a number"),
        (Place("engine", "nothing"), 1, "no such key"),
        (Place("domains", "trust_group"), "a", "no such key"),
        (ENABLED, "yes", "enabled = 'yes': must be true or false"),
        (Place("domain", "nothing", UUID), 1, "no such key"),
        (Place("domain", "enabled", "web"), True, "must be a domain's UUID"),
    ],
)
def test_a_wrong_value_is_refused_and_all_others_hold(place: Place, value: Any, why: str) -> None:
    right = {Place("engine", "c4_visits"): 9, Place("domain", "min_resident_mib", UUID): 7}
    found = settle(BASE, {}, {**right, place: value})
    assert found.held == right
    assert found.configuration.engine.c4_visits == 9
    assert list(found.refused) == [place] and why in found.refused[place]


def test_the_value_before_a_wrong_one_stays() -> None:
    before = settle(BASE, {}, {CPU: 0.5, ENABLED: True})
    after = settle(BASE, before.held, {CPU: -1, ENABLED: 3})
    assert after.held == before.held
    assert (after.configuration.engine.cpu_share, after.words) == (0.5, {UUID: {"enabled": True}})
    assert set(after.refused) == {CPU, ENABLED}
    # Once it is taken away, so is what was kept.
    assert settle(BASE, after.held, {}).held == {}


def test_two_that_need_each_other_are_taken_together_beside_a_wrong_one() -> None:
    base = of("[engine]\nhigh_watermark = 0.5\nlow_watermark = 0.4")
    found = settle(base, {}, {CPU: 9, LOW: 0.7, HIGH: 0.8})
    assert (found.configuration.engine.low_watermark, found.configuration.engine.high_watermark) == (0.7, 0.8)
    assert list(found.refused) == [CPU]
    alone = settle(base, {}, {LOW: 0.7})
    assert "must be at most high_watermark" in alone.refused[LOW] and alone.held == {}


def test_a_base_that_does_not_go_with_what_is_held_is_refused() -> None:
    held = settle(BASE, {}, {LOW: 0.7}).held
    with pytest.raises(ConfigurationError, match="low_watermark"):
        settle(of("[engine]\nhigh_watermark = 0.5\nlow_watermark = 0.4"), held, held)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("true", True),
        ("web", "web"),
        ('"1"', "1"),
        ("[1]", "[1]"),
        ("null", "null"),
        ("", ""),
        ("1\nx", "1\nx"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_text_is_a_value(text: str, value: Any) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "request_"),
    [("512", FreeRequest(512)), (" 512  60 ", FreeRequest(512, 60.0)), ("1 600", FreeRequest(1, 600))],
)
def test_a_request_for_memory(text: str, request_: FreeRequest) -> None:
    assert parse_free_request(text) == request_


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "1 2 3", "1048577", "512 0", "512 601", "1e3", "9" * 30, "\u0663"]
)
def test_what_is_no_request(text: str) -> None:
    with pytest.raises(FreeRequestError, match="must be MIB"):
        parse_free_request(text)


def test_an_outcome_is_one_line() -> None:
    def answered(answer: dict[str, Any] | BaseException) -> str:
        future: Future[dict[str, Any]] = Future()
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return outcome_of(future)

    assert answered({"enough": True, "free_mib": 600}) == "enough 600"
    assert answered({"enough": False, "free_mib": 6}) == "short 6"
    assert answered(DiffengineError("no")) == "refused no"
    assert answered(ValueError("what")) == "refused a defect of the daemon's: what"
    cancelled: Future[dict[str, Any]] = Future()
    cancelled.cancel()
    assert outcome_of(cancelled) == "refused the daemon is ending"
