# SPDX-License-Identifier: GPL-2.0-or-later
"""What befalls guests and the daemon while pages are out: domains that die, engines that are killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from evicting import add_domain, evict_at_once
from guests import Guest
from stack import STATE, PagerProcess, engine, pager_process, run_until

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost
from diffengine.native import NativeError

REGIONS = (("identical", 1500, 0), ("similar", 2000, 95), ("words", 1500, 0))
FREED = 3000
SAVED = Path("/tmp/saved")
OTHER_STATE = Path("/run/diffengine-test-other")
TIMEOUT_S = 600.0
CONFIGURATION = Path("/tmp/diffengine.toml")
# Limits that protect guests are off: emulation makes everything many times slower than it is.
SETTINGS = """
[engine]
cpu_share = 1.0
visit_interval_s = 0.5
c4_visits = 1
fault_limit = 1e5
refault_limit = 1_000_000
[domains]
enabled = true
[socket]
path = "/run/diffengine-test-status.sock"
group = "root"
"""


def fill(guest: Guest) -> list[int]:
    return [guest.fill(kind, pages, 21, percent) for kind, pages, percent in REGIONS]


def all_right(guest: Guest, regions: list[int]) -> bool:
    return not any(guest.check(region).wrong_bytes for region in regions)


@contextmanager
def daemon() -> Iterator[subprocess.Popen[str]]:
    CONFIGURATION.write_text(SETTINGS)
    words = [sys.executable, "-m", "diffengine", "daemon", "--state", str(STATE), "--config", str(CONFIGURATION)]
    process = subprocess.Popen(words, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_freed(host: XenHost, before: int, process: subprocess.Popen[str]) -> bool:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the daemon has ended; its output says why"
        if host.memory().free - before >= FREED:
            return True
        time.sleep(1)
    return False


def test_daemon_killed_with_pages_out(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> None:
    regions = [fill(guest) for guest in guests]
    before = host.memory().free
    with daemon() as process:
        assert wait_for_freed(host, before, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))
    with daemon() as process:
        assert wait_for_freed(host, before, process)
    assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))


def test_guest_destroyed_in_the_middle_of_a_pass(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost
) -> None:
    before_third = host.memory().free
    with Guest.start("guest3") as third:
        regions = fill(third)
        before = host.memory().free
        with engine(host) as (attached, _):
            assert run_until(attached, lambda: host.memory().free - before >= FREED, TIMEOUT_S)
            assert all_right(third, regions)
            for _step in range(3):
                attached.step()
            third.destroy()
            deadline_s = time.monotonic() + TIMEOUT_S
            while time.monotonic() < deadline_s and third.domid in {found.domid for found in host.domains()}:
                attached.step()
            for _step in range(10):
                attached.step()
    assert third.domid not in {found.domid for found in host.connection.domains()}, "a reference keeps it a zombie"
    assert host.memory().free >= before_third - 64


def test_saved_and_restored_after_a_release(pager: PagerProcess, host: XenHost) -> None:
    """Everything is back when xl saves it; what is restored is a new domain, and is worked on like any other."""
    with Guest.start("guest3") as third:
        regions = fill(third)
        with engine(host) as (attached, _):
            assert run_until(attached, lambda: saved_of(host, third) >= FREED, TIMEOUT_S)
        release = [sys.executable, "-m", "diffengine", "release", third.name, "--state", str(STATE)]
        subprocess.run(release, check=True)
        assert pages_out(third) == 0
        third.save(SAVED)
    with Guest.restore(third.name, SAVED) as restored:
        SAVED.unlink()
        assert restored.domid != third.domid
        assert all_right(restored, regions)
        with engine(host) as (attached, client):
            assert run_until(attached, lambda: saved_of(host, restored) >= FREED, TIMEOUT_S)
            assert all_right(restored, regions)
            assert not any(restored.change(region).wrong_bytes for region in regions)
            assert client.counters().corrupt == 0
        assert all_right(restored, regions)


def test_a_second_pager_is_refused_and_does_no_harm(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost
) -> None:
    guest = guests[0]
    region = guest.fill("words", 1000, 22)
    client = PagerClient(STATE)
    try:
        add_domain(client, host, guest.domid)
        gone = evict_at_once(client, host, guest.domid, guest.gfns(region))
        assert gone > 500
        with pager_process(state=OTHER_STATE):
            other = PagerClient(OTHER_STATE)
            try:
                with pytest.raises(NativeError, match="it has a pager already"):
                    add_domain(other, host, guest.domid)
                assert other.pages_out(guest.domid) == 0
            finally:
                other.close()
        assert client.pages_out(guest.domid) >= gone // 2
        assert guest.check(region).wrong_bytes == 0
        assert client.counters().loads > 0
    finally:
        client.close()


def saved_of(host: XenHost, guest: Guest) -> int:
    """Its pages that are out, or share a frame."""
    (found,) = (domain for domain in host.connection.domains() if domain.domid == guest.domid)
    return found.paged + found.shared


def pages_out(guest: Guest) -> int:
    client = PagerClient(STATE)
    try:
        return client.pages_out(guest.domid)
    finally:
        client.close()
