# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon in xenstore: settings that hold at once or are refused beside their key, requests with their outcome; and
that it survives whatever becomes of xenstored."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_daemon import daemon_command

from command import output_of
from daemon_host import Line, Loop, Parts, daemon_parts, loop
from diffengine.service import attached
from diffengine.service.configuration import Configuration
from diffengine.service.events import EventKind
from diffengine.service.xenstore_link import XenstoreLink
from xenstore_peer import WATCH_EVENT, XenstorePeer, packet, xenstore_peer

DEADLINE_S = 60.0
PATIENCE_S = 20.0
ROOT = "/tool/diffengine"
CPU = f"{ROOT}/engine/cpu_share"


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def on() -> Iterator[Loop]:
    with loop() as made:
        yield made


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, on: Loop) -> Iterator[Parts]:
    with daemon_parts(tmp_path_factory.mktemp("status") / "status.sock", on) as made:
        yield made


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[XenstorePeer]:
    with xenstore_peer(tmp_path / "xenstore") as made:
        yield made


@contextmanager
def linked(path: Path, parts: Parts, on: Loop, patience_s: float = PATIENCE_S) -> Iterator[XenstoreLink]:
    link = XenstoreLink(
        path,
        parts.worker,
        lambda request: asyncio.run_coroutine_threadsafe(parts.methods.free(request), on.loop),
        lambda *event: on.loop.call_soon_threadsafe(parts.events.tell, *event),
        patience_s,
    )
    link.start()
    try:
        yield link
    finally:
        link.stop()
        parts.worker.submit(lambda operations: operations.override({})).result()


@pytest.fixture
def link(peer: XenstorePeer, parts: Parts, on: Loop) -> Iterator[XenstoreLink]:
    with linked(peer.path, parts, on) as made:
        yield made


def settings(parts: Parts) -> Configuration:
    return parts.worker.submit(lambda operations: operations.configuration).result()


def cpu_share(parts: Parts) -> float:
    return settings(parts).engine.cpu_share


def uuid(parts: Parts, name: str) -> str:
    domains: tuple[Any, ...] = parts.worker.submit(lambda operations: operations.snapshot.domains).result()
    return str(next(domain.uuid for domain in domains if domain.name == name))


def standing(parts: Parts, name: str) -> str:
    domains: tuple[Any, ...] = parts.worker.submit(lambda operations: operations.snapshot.domains).result()
    return str(next(domain.standing for domain in domains if domain.name == name))


def group(parts: Parts, name: str) -> str:
    domains: tuple[Any, ...] = parts.worker.submit(lambda operations: operations.snapshot.domains).result()
    return str(next(domain.trust_group for domain in domains if domain.name == name))


def test_a_value_holds_as_long_as_it_stands_there(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    before = cpu_share(parts)
    peer.write(CPU, "0.75")
    wait_until(lambda: cpu_share(parts) == 0.75, "it is not taken")
    peer.write(CPU, "0.5")
    wait_until(lambda: cpu_share(parts) == 0.5, "the new one is not taken")
    peer.remove(CPU)
    wait_until(lambda: cpu_share(parts) == before, "it is held on to")
    assert peer.permissions(f"{ROOT}/engine") == ["n0"]


def test_a_wrong_value_is_refused_beside_it_and_the_old_one_stays(
    peer: XenstorePeer, parts: Parts, link: XenstoreLink
) -> None:
    followed = parts.events.follow(lambda: None)
    peer.write(CPU, "0.75")
    wait_until(lambda: cpu_share(parts) == 0.75, "it is not taken")
    peer.write(CPU, "lots")
    wait_until(lambda: peer.read(f"{CPU}/error"), "nothing is said")
    assert "cpu_share = 'lots': must be a number from 0.001 to 1" in (peer.read(f"{CPU}/error") or "")
    assert cpu_share(parts) == 0.75
    wait_until(
        lambda: any(
            event["event"] == EventKind.SETTINGS_REFUSED and f"{CPU} is not used" in event["text"]
            for event in followed.take()
        ),
        "no event tells of it",
    )
    peer.write(CPU, "0.25")
    wait_until(lambda: peer.read(f"{CPU}/error") is None, "what was said stays")
    assert cpu_share(parts) == 0.25
    parts.events.leave(followed)


def test_a_domain_is_told_by_its_uuid(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    web = f"{ROOT}/domain/{uuid(parts, 'web')}"
    peer.write(f"{web}/trust_group", "alone")
    wait_until(lambda: group(parts, "web") == "alone", "its trust group stays")
    peer.write(f"{web}/enabled", "false")
    wait_until(lambda: standing(parts, "web") == "not_enabled", "it is worked on")
    peer.remove(web)
    wait_until(lambda: (standing(parts, "web"), group(parts, "web")) == ("worked_on", "all"), "it is left alone")
    peer.write(f"{ROOT}/domain/web/enabled", "false")
    wait_until(lambda: peer.read(f"{ROOT}/domain/web/enabled/error"), "a name is taken for a UUID")


def test_set_does_not_say_otherwise(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    peer.write(CPU, "0.75")
    wait_until(lambda: cpu_share(parts) == 0.75, "it is not taken")
    with pytest.raises(Exception, match="xenstore says 0.75"):
        parts.worker.submit(lambda operations: operations.set(None, "cpu_share", 0.5)).result()
    parts.worker.submit(lambda operations: operations.set(None, "c4_visits", 2)).result()
    assert (settings(parts).engine.c4_visits, cpu_share(parts)) == (2, 0.75)


def test_what_a_guest_may_write_is_not_used(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    before = cpu_share(parts)
    peer.write(CPU, "0.125", ["n0", "w3"])
    wait_until(lambda: "domain 3 may change it" in (peer.read(f"{CPU}/error") or ""), "it is not refused")
    assert cpu_share(parts) == before
    peer.write(f"{ROOT}/free/mine", "1", ["b3"])
    wait_until(lambda: (peer.read(f"{ROOT}/free/mine/outcome") or "").startswith("refused"), "it is taken")


def test_requests_for_memory_have_their_outcome_written_back(
    peer: XenstorePeer, parts: Parts, link: XenstoreLink
) -> None:
    def outcome(name: str) -> str:
        return peer.read(f"{ROOT}/free/{name}/outcome") or ""

    peer.write(f"{ROOT}/free/small", "1")
    peer.write(f"{ROOT}/free/large", "1000 1")
    peer.write(f"{ROOT}/free/wrong", "a lot")
    for name, word in (("small", "enough "), ("large", "short "), ("wrong", "refused must be MIB")):
        wait_until(lambda name=name: outcome(name), f"{name} has no outcome")  # type: ignore[misc]
        assert outcome(name).startswith(word), outcome(name)
    # Once more under the same name.
    peer.write(f"{ROOT}/free/wrong", "1")
    wait_until(lambda: outcome("wrong").startswith("enough "), "the second request is not answered")
    peer.remove(f"{ROOT}/free/small")
    assert peer.read(f"{ROOT}/free/small/outcome") is None


def test_xenstored_may_go_and_come_back(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    peer.write(CPU, "0.75")
    wait_until(lambda: cpu_share(parts) == 0.75, "it is not taken")
    peer.die()
    assert cpu_share(parts) == 0.75
    peer.write(CPU, "0.5")
    peer.write(f"{ROOT}/free/meanwhile", "1")
    peer.listen()
    wait_until(lambda: cpu_share(parts) == 0.5, "what was written meanwhile is not taken")
    wait_until(lambda: peer.read(f"{ROOT}/free/meanwhile/outcome"), "nor is the request")
    # Watches are there again.
    peer.write(CPU, "0.25")
    wait_until(lambda: cpu_share(parts) == 0.25, "what is written now is not taken")


@pytest.mark.parametrize("kind", ["stalls", "nonsense", "unasked"])
def test_xenstored_may_go_mad(kind: str, peer: XenstorePeer, parts: Parts, on: Loop) -> None:
    with linked(peer.path, parts, on, 1.0 if kind == "stalls" else PATIENCE_S):
        peer.write(CPU, "0.75")
        wait_until(lambda: cpu_share(parts) == 0.75, "it is not taken")
        connected = peer.connected
        if kind == "unasked":
            peer.send_all(os.urandom(4096))
        else:
            peer.misbehaviour = lambda operation, request: None if kind == "stalls" else b"\xff" * 4096
            peer.write(CPU, "0.5")
        wait_until(lambda: peer.connected > connected, "the connection is held on to")
        peer.misbehaviour = None
        peer.write(CPU, "0.25")
        wait_until(lambda: cpu_share(parts) == 0.25, "it does not come back")


def test_nobody_is_kept_waiting_by_a_xenstored_that_stalls(peer: XenstorePeer, parts: Parts, on: Loop) -> None:
    peer.misbehaviour = lambda operation, request: None
    with linked(peer.path, parts, on, 600.0):
        wait_until(lambda: peer.connected, "it does not connect")
        assert cpu_share(parts) == 1.0
        peer.hang_up()


def test_word_of_a_domain_that_came_is_heard(
    peer: XenstorePeer, parts: Parts, link: XenstoreLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: peer.read(ROOT) is not None, "it does not connect")
    monkeypatch.setattr(attached, "LOOK_INTERVAL_S", 1e9)
    domid = parts.machine.create_domain(np.zeros(10, dtype=np.uint64))

    def known() -> bool:
        return domid in parts.worker.submit(lambda operations: operations.standings).result()

    wait_until(lambda: peer.tell("@introduceDomain") or known(), "it is not looked for")
    parts.machine.destroy_domain(domid)
    wait_until(lambda: peer.tell("@releaseDomain") or not known(), "nobody looks whether it is there")


def test_more_domains_than_xenstore_can_list(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    for number in range(200):
        peer.write(f"{ROOT}/domain/{number:08}-0000-4000-8000-000000000000/enabled", "true")
    web = f"{ROOT}/domain/{uuid(parts, 'web')}"
    peer.write(f"{web}/enabled", "false")
    wait_until(lambda: standing(parts, "web") == "not_enabled", "it is worked on")


def test_an_unexpected_event_changes_nothing(peer: XenstorePeer, parts: Parts, link: XenstoreLink) -> None:
    before = settings(parts)
    wait_until(lambda: peer.read(ROOT) is not None, "it does not connect")
    for path in (b"", b"\xff", b"/tool/diffengine/free/", b"/tool/diffengine/free/a/b/c", b"/"):
        peer.send_all(packet(WATCH_EVENT, 0, path + b"\0settings\0"))
        peer.send_all(packet(WATCH_EVENT, 0, path + b"\0domains\0"))
    peer.write(f"{ROOT}/free/after", "1")
    wait_until(lambda: peer.read(f"{ROOT}/free/after/outcome"), "it does not go on")
    assert settings(parts) == before


def test_the_command_takes_its_path(tmp_path: Path, peer: XenstorePeer) -> None:
    peer.write(f"{ROOT}/domains/min_resident_mib", "3")
    with daemon_command(tmp_path, "--xenstore", peer.path), closing(Line(tmp_path / "status.sock")) as line:

        def least() -> set[int]:
            return {domain["min_resident_bytes"] for domain in line.ask("domains")["result"]["domains"]}

        found = line.ask("domains")["result"]["domains"]
        peer.write(f"{ROOT}/domain/{found[0]['uuid']}/min_resident_mib", "2")
        wait_until(lambda: 2 << 20 in least(), "what xenstore says is not used")
    assert output_of("daemon", "--help")
