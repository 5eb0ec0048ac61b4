# SPDX-License-Identifier: GPL-2.0-or-later
"""What befalls guests and the daemon while pages are out: domains that die, engines that are killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from guests import Guest
from stack import STATE, PagerProcess, engine, run_until

from diffengine.hypervisor.xen import XenHost

REGIONS = (("identical", 1500, 0), ("similar", 2000, 95), ("words", 1500, 0))
FREED = 3000
TIMEOUT_S = 200.0


def fill(guest: Guest) -> list[int]:
    return [guest.fill(kind, pages, 21, percent) for kind, pages, percent in REGIONS]


def all_right(guest: Guest, regions: list[int]) -> bool:
    return not any(guest.check(region).wrong_bytes for region in regions)


@contextmanager
def engine_process() -> Iterator[subprocess.Popen[str]]:
    """The engine as the daemon runs it, in a process of its own."""
    words = [sys.executable, "-m", "diffengine.service", "--xen", "--state", str(STATE)]
    process = subprocess.Popen([*words, "--visit-interval-s", "0.5", "--cpu-share", "1"], text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_freed(host: XenHost, before: int, timeout_s: float = TIMEOUT_S) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if host.memory().free - before >= FREED:
            return True
        time.sleep(1)
    return False


def test_daemon_killed_with_pages_out(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> None:
    regions = [fill(guest) for guest in guests]
    before = host.memory().free
    with engine_process() as process:
        assert wait_for_freed(host, before)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))
    with engine_process():
        assert wait_for_freed(host, before)
    assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))


def test_guest_destroyed_in_the_middle_of_a_pass(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost
) -> None:
    before_third = host.memory().free
    third = Guest.start("guest3")
    regions = fill(third)
    before = host.memory().free
    with engine(host) as (attached, _):
        assert run_until(attached, lambda: host.memory().free - before >= FREED, TIMEOUT_S)
        assert all_right(third, regions)
        for _step in range(3):
            attached.step()
        third.destroy()
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and third.domid in {found.domid for found in host.domains()}:
            attached.step()
        for _step in range(10):
            attached.step()
    assert third.domid not in {found.domid for found in host.connection.domains()}, "a reference keeps it a zombie"
    assert host.memory().free >= before_third - 64
