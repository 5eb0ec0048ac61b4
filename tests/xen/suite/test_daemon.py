# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on Xen, told through the real xenstored while it works: settings, those of one domain, a wrong one, a
request for memory."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guests import Guest
from stack import PagerProcess
from test_lifecycle import all_right, daemon, fill, wait_for_freed

from diffengine.hypervisor.xen import XenHost
from diffengine.service.client import Client, NoDaemonError

ROOT = "/tool/diffengine"
SOCKET = Path("/run/diffengine-test-status.sock")
DEADLINE_S = 300.0


def ask(method: str, **parameters: Any) -> Any:
    """Once the daemon is there."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with Client(SOCKET) as client:
                return client.call(method, **parameters)
        except NoDaemonError:
            assert time.monotonic() < deadline_s, "no daemon answers"
        time.sleep(0.5)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


def xenstore(tool: str, *words: str) -> str:
    done = subprocess.run([f"xenstore-{tool}", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def standing(guest: Guest) -> str:
    domains = ask("domains")["domains"]
    return str(next((domain["standing"] for domain in domains if domain["domid"] == guest.domid), "unknown"))


def least_mib(guest: Guest) -> float:
    return float(ask("domain", domain=guest.domid)["min_resident_bytes"] / (1 << 20))


def test_the_daemon_is_told_through_xenstore(guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost) -> None:
    regions = [fill(guest) for guest in guests]
    before = host.memory().free
    with daemon() as process:
        assert wait_for_freed(host, before, process)
        assert (ask("status")["host"], ask("status")["domains_worked_on"]) == ("xen", 2)
        told_through_xenstore(guests[0])
        room_for_another()
    xenstore("rm", ROOT)
    assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))


def told_through_xenstore(guest: Guest) -> None:
    uuid = ask("domain", domain=guest.name)["uuid"]
    enabled = f"{ROOT}/domain/{uuid}/enabled"
    xenstore("write", enabled, "false")
    wait_until(lambda: standing(guest) == "not_enabled", "a domain is not told apart in xenstore")
    xenstore("write", enabled, "maybe")
    wait_until(lambda: xenstore("read", f"{enabled}/error"), "a wrong value is not refused")
    assert "must be true or false" in xenstore("read", f"{enabled}/error")
    assert standing(guest) == "not_enabled"
    xenstore("rm", enabled)
    wait_until(lambda: standing(guest) == "worked_on", "it is not taken back")
    xenstore("write", f"{ROOT}/domains/min_resident_mib", "8")
    wait_until(lambda: least_mib(guest) == 8, "a default is not used")
    # Nobody but dom0 may read or write any of it.
    assert "(n0)" in xenstore("ls", "-p", ROOT) and ",r" not in xenstore("ls", "-p", ROOT)


def room_for_another() -> None:
    request = f"{ROOT}/free/guest3"
    xenstore("write", request, "1 60")
    wait_until(lambda: xenstore("read", f"{request}/outcome"), "a request has no outcome")
    assert xenstore("read", f"{request}/outcome").startswith("enough ")
    xenstore("rm", request)
