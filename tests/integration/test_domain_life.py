# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that start, are let go of and come back, and what libvirt says of them: its own test driver is the peer."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import numpy as np
import pytest

from command import diffengine, output_of
from daemon_host import ENGINE, Line, Loop, Parts, daemon_parts, loop
from diffengine.hypervisor.machine_process import MachineClient
from diffengine.native import as_addresses
from diffengine.service import attached, libvirt_link
from diffengine.service.configuration import Identity, configuration
from diffengine.service.domain_description import NAMESPACE
from diffengine.service.libvirt_link import LibvirtLink
from diffengine.service.operations import Operations

DEADLINE_S = 60.0
# Of what is asked for memory.
PATIENCE_S = 200.0
URI = "test:///default"
ALL_ENABLED = {"engine": ENGINE, "domains": {"enabled": True, "grace_s": 86_400}}


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
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("status") / "status.sock"


@pytest.fixture(scope="module")
def parts(path: Path, on: Loop) -> Iterator[Parts]:
    with daemon_parts(path, on, settings=configuration(ALL_ENABLED)) as made:
        yield made


@pytest.fixture
def line(parts: Parts, path: Path) -> Iterator[Line]:
    with closing(Line(path)) as made:
        yield made


def result(line: Line, method: str, **parameters: Any) -> Any:
    answer = line.ask(method, **parameters)
    assert "result" in answer, answer
    return answer["result"]


def domain(line: Line, name: str | int) -> dict[str, Any]:
    found: dict[str, Any] = result(line, "domain", domain=name)
    return found


def known(line: Line, domid: int) -> bool:
    return domid in {each["domid"] for each in result(line, "domains")["domains"]}


def test_a_new_domain_has_its_grace_and_one_that_was_there_needs_none(parts: Parts, line: Line) -> None:
    assert domain(line, "web")["standing"] == "worked_on"
    domid = parts.machine.create_domain(np.zeros(64, dtype=np.uint64))
    wait_until(lambda: known(line, domid), "it is not seen")
    assert domain(line, domid)["standing"] == "starting"
    assert "left alone for its first 86400 s" in result(line, "reasons", domain=domid)["reasons"][0]["text"]
    result(line, "set", key="grace_s", value=0, domain=str(domid))
    assert domain(line, domid)["standing"] == "worked_on"
    parts.machine.destroy_domain(domid)
    wait_until(lambda: not known(line, domid), "it does not go")


def test_the_log_of_written_pages_is_free_again_before_a_domain_is_let_go_of(
    parts: Parts, line: Line, path: Path
) -> None:
    domid = domain(line, "web")["domid"]
    result(line, "set", key="log_dirty", value=True, domain="web")
    assert not parts.machine.log_dirty(domid, True)
    there = ("--socket", path)
    assert f"Domain {domid} is released" in output_of("release", "web", *there)
    assert domain(line, "web")["standing"] == "refused"
    assert parts.machine.log_dirty(domid, True)
    assert parts.machine.log_dirty(domid, False)
    assert output_of("release", "--undo", str(domid), *there) == f"Domain {domid} may be worked on again\n"
    wait_until(lambda: domain(line, "web")["standing"] == "worked_on", "it is not taken again")
    assert not parts.machine.log_dirty(domid, True)
    result(line, "set", key="log_dirty", value=None, domain="web")
    assert parts.machine.log_dirty(domid, True)
    assert parts.machine.log_dirty(domid, False)


def test_release_asks_the_pager_where_no_daemon_is(tmp_path: Path) -> None:
    done = diffengine("release", "1", "--socket", tmp_path / "none", "--state", tmp_path)
    assert (done.returncode, "no pager runs" in done.stderr) == (3, True)


def test_a_pause_outlives_a_number(parts: Parts, line: Line) -> None:
    """As a reboot makes it: the same UUID under another domid."""
    domid = parts.machine.create_domain(np.zeros(16, dtype=np.uint64))
    wait_until(lambda: known(line, domid), "it is not seen")
    uuid = domain(line, domid)["uuid"]
    result(line, "pause", domain=domid)
    parts.machine.destroy_domain(domid)
    wait_until(lambda: not known(line, domid), "it does not go")
    again = parts.machine.create_domain(np.zeros(16, dtype=np.uint64), uuid)
    assert again != domid
    wait_until(lambda: known(line, again), "it does not come back")
    assert domain(line, again)["standing"] == "paused"
    result(line, "resume", domain=again)
    assert domain(line, again)["standing"] == "starting"
    parts.machine.destroy_domain(again)
    wait_until(lambda: not known(line, again), "it does not go")


def test_a_set_goes_into_the_table_that_holds(tmp_path: Path, on: Loop) -> None:
    """Whatever the domain is called by: a second table would hide the first."""
    other = tmp_path / "status.sock"
    with daemon_parts(other, on), closing(Line(other)) as line:
        web = domain(line, "web")
        assert web["trust_group"] == "all"
        for mib, called in enumerate((web["domid"], web["uuid"], "web"), 1):
            result(line, "set", key="min_resident_mib", value=mib, domain=str(called))
            found = domain(line, "web")
            assert (found["min_resident_bytes"], found["trust_group"]) == (mib << 20, "all")


# Memory for a domain that starts, and dom0's own.


def empty_domain(machine: MachineClient, gfns: int) -> int:
    """As a toolstack has made it, before it has its memory."""
    domid = machine.binding.ffi.new("uint16_t *")
    assert machine._call("domain_create", gfns, domid) == 0
    return int(domid[0])


def populate(machine: MachineClient, domid: int, count: int) -> int:
    """Pages of zeros that it got."""
    null, zeros = machine.binding.ffi.NULL, np.zeros(count, dtype=np.uint64)
    return int(machine._call("populate", domid, null, as_addresses(zeros), count, null))


def test_what_was_freed_for_a_domain_nobody_else_takes(tmp_path: Path, on: Loop) -> None:
    other = tmp_path / "status.sock"
    with daemon_parts(other, on) as parts, closing(Line(other, PATIENCE_S)) as line:
        domid = empty_domain(parts.machine, 1280)
        made = result(line, "free", mib=5, timeout_s=120, domain=domid)
        assert (made["enough"], made["claimed_for"]) == (True, domid)
        result(line, "pause")
        # Whoever else comes, gets only the rest.
        hog = empty_domain(parts.machine, 4000)
        assert populate(parts.machine, hog, 4000) < 4000
        assert parts.machine.memory().free == 1280
        assert populate(parts.machine, domid, 1280) == 1280
        parts.machine.destroy_domain(hog)


def test_a_domain_that_starts_finds_what_was_promised(tmp_path: Path, on: Loop) -> None:
    other = tmp_path / "status.sock"
    with daemon_parts(other, on) as parts, closing(Line(other, PATIENCE_S)) as line:
        assert result(line, "free", mib=5, timeout_s=120, hold_s=600)["enough"] is True
        domid = parts.machine.create_domain(np.zeros(1280, dtype=np.uint64))
        wait_until(lambda: known(line, domid), "it is not seen")
        wait_until(lambda: parts.worker.submit(lambda operations: operations._promise).result() is None, "it is kept")


def test_what_others_take_of_a_promise_is_freed_anew(tmp_path: Path, on: Loop) -> None:
    other = tmp_path / "status.sock"
    with daemon_parts(other, on) as parts, closing(Line(other, PATIENCE_S)) as line:
        wait_until(lambda: result(line, "status")["evicted_pages"] > 1500, "nothing is evicted")
        free = parts.machine.memory().free // 256
        result(line, "free", mib=free, timeout_s=120, hold_s=600)
        # A guest's pages come back.
        result(line, "page-in", domain="web")
        wait_until(lambda: result(line, "status")["freeing"], "nobody minds")
        result(line, "resume", domain="web")
        wait_until(lambda: not result(line, "status")["freeing"], "it is not freed anew")
        assert parts.machine.memory().free >= free * 256


def test_dom0_keeps_what_it_needs(tmp_path: Path, on: Loop) -> None:
    other = tmp_path / "status.sock"
    values = {"engine": ENGINE, "domains": {"enabled": True}, "dom0": {"min_available_mib": 1 << 20}}
    with daemon_parts(other, on, settings=configuration(values)) as parts, closing(Line(other)) as line:

        def refused() -> bool:
            return bool(result(line, "reasons")["reasons"].get("store_full"))

        wait_until(refused, "the store takes more")
        assert result(line, "status")["evicted_pages"] == 0
        relaxed = configuration({**values, "dom0": {"min_available_mib": 0}})
        parts.worker.submit(lambda operations: operations.use(relaxed)).result()
        wait_until(lambda: result(line, "status")["evicted_pages"] > 1500, "it takes nothing")


# libvirt.


@pytest.fixture
def link(parts: Parts, on: Loop) -> Iterator[LibvirtLink]:
    made = LibvirtLink(URI, parts.worker, lambda *event: on.loop.call_soon_threadsafe(parts.events.tell, *event))
    made.start()
    yield made
    made.stop()
    parts.worker.submit(lambda operations: operations.describe({})).result()


@contextmanager
def described(line: Line, name: str) -> Iterator[Any]:
    """A domain of the test driver's, with the UUID of one of ours."""
    uuid = domain(line, name)["uuid"]
    with closing(libvirt.open(URI)) as connection:
        made = connection.createXML(
            f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        try:
            yield made
        finally:
            with suppress(libvirt.libvirtError):  # it may be gone
                made.destroy()


def say(described_domain: Any, xml: str | None) -> None:
    described_domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, "diffengine", NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
    )


def test_a_domains_description_holds_as_long_as_it_runs(parts: Parts, line: Line, link: LibvirtLink) -> None:
    with described(line, "web") as described_domain:
        say(described_domain, '<domain enabled="false"/>')
        wait_until(lambda: domain(line, "web")["standing"] == "not_enabled", "what it says is not used")
        say(described_domain, '<domain trust_group="shop" min_resident_mib="1"/>')
        wait_until(lambda: domain(line, "web")["trust_group"] == "shop", "a change is not used")
        assert domain(line, "web")["min_resident_bytes"] == 1 << 20
        say(described_domain, '<domain trust_group="shop" enabled="perhaps"/>')
        wait_until(lambda: domain(line, "web")["trust_group"] == "", "a wrong one is used")
        say(described_domain, '<domain trust_group="shop"/>')
        wait_until(lambda: domain(line, "web")["trust_group"] == "shop", "a right one is not used")
    wait_until(lambda: domain(line, "web")["trust_group"] == "", "it is used though the domain has stopped")
    assert domain(line, "db")["standing"] == "worked_on"


def test_word_of_domains_is_heard_at_once(
    parts: Parts, line: Line, link: LibvirtLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with described(line, "web") as described_domain:
        say(described_domain, '<domain trust_group="heard"/>')
        wait_until(lambda: domain(line, "web")["trust_group"] == "heard", "it does not listen")
        monkeypatch.setattr(attached, "LOOK_INTERVAL_S", 1e9)
        domid = parts.machine.create_domain(np.zeros(16, dtype=np.uint64))
        described_domain.reboot()
        described_domain.suspend()
        wait_until(lambda: known(line, domid), "nobody looks")
        parts.machine.destroy_domain(domid)
        described_domain.destroy()
        wait_until(lambda: not known(line, domid), "nobody looks again")


def test_a_libvirt_that_is_not_there_is_told_once_and_waited_for(
    parts: Parts, line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []
    real = libvirt_link.connected

    def counted(uri: str) -> Any:
        tries.append(uri)
        return real(uri)

    monkeypatch.setattr(libvirt_link, "RETRY_S", 0.02)
    monkeypatch.setattr(libvirt_link, "connected", counted)
    link = LibvirtLink("nonsense:///", parts.worker, lambda *event: None)
    link.start()
    wait_until(lambda: len(tries) >= 3, "it is not waited for")
    assert domain(line, "web")["standing"] == "worked_on"
    link.stop()
    assert sum("nonsense:///" in each.getMessage() for each in caplog.records) == 1


def test_a_domain_that_is_enabled_later_has_run_all_the_while(tmp_path: Path, on: Loop) -> None:
    path = tmp_path / "status.sock"
    settings = configuration({"engine": ENGINE, "domains": {"grace_s": 86_400}})
    with daemon_parts(path, on, settings=settings), closing(Line(path)) as line:
        assert domain(line, "web")["standing"] == "not_enabled"
        result(line, "set", key="enabled", value=True, domain="web")
        assert domain(line, "web")["standing"] == "worked_on"


def test_names_stay_when_the_toolstack_does_not_tell_them(parts: Parts, line: Line) -> None:
    def names() -> set[str]:
        return {each["name"] for each in result(line, "domains")["domains"]}

    def tell(identify: Callable[[], dict[int, Identity]]) -> Callable[[], Any]:
        def change(operations: Operations) -> Any:
            former = operations._connected
            operations._connected = replace(former, identify=identify)
            return former.identify

        return parts.worker.submit(change).result(60)

    told = names()
    former = tell(lambda: {domid: Identity(domid) for domid in range(64)})
    try:
        domid = parts.machine.create_domain(np.zeros(16, dtype=np.uint64))
        wait_until(lambda: known(line, domid), "it is not seen")
        assert names() >= told >= {"web", "db"}
    finally:
        tell(former)
        parts.machine.destroy_domain(domid)
        wait_until(lambda: not known(line, domid), "it does not go")
