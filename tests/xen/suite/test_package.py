# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package under dom0's systemd, as an operator has it: from installation to purge, with guests that work
meanwhile. What was typed and said is left in transcript.txt."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ballast import Ballast
from guests import INITRD, KERNELS, Guest
from test_lifecycle import all_right, fill

from diffengine.hypervisor.xen import XenHost
from diffengine.service.client import Client, DaemonError
from diffengine.service.configuration import SOCKET

PACKAGE = Path("diffengine.deb")
TRANSCRIPT = Path("transcript.txt")
THIRD = Path("/tmp/guest3.cfg")
ROOT = "/tool/diffengine"
UNITS = ("diffengine-pager.service", "diffengine.service")
DEADLINE_S = 900.0
OUT = 3000
# Emulation makes everything many times slower than it is: of systemd's limits, and of those that protect guests.
PATIENT = "[Service]\nTimeoutStartSec=900\nTimeoutStopSec=900\nWatchdogSec={watchdog_s}\n"
QUICK = {
    **{"visit_interval_s": 0.5, "c4_visits": 1, "cpu_share": 1, "reserve_mib": 4},
    **{"fault_limit": 100000, "refault_limit": 1000000},
}
# Less does not hold the guests' kernel.
THIRD_MIB = 96
THIRD_CONFIG = f"""\
name="guest3"
type="pvh"
kernel="{KERNELS["pvh"]}"
ramdisk="{INITRD}"
memory={THIRD_MIB}
maxmem={THIRD_MIB}
vcpus=1
"""
# What the toolstack takes for a domain besides its memory, and then some.
OVERHEAD_MIB = 12
LOAD_PER_S = 50


class Operator:
    """At a shell in dom0."""

    def __init__(self) -> None:
        TRANSCRIPT.write_text("")

    def types(self, command: str, code: int | None = 0) -> str:
        """What it says; it has to end with this code, None: with any but 0."""
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        with TRANSCRIPT.open("a") as transcript:
            transcript.write(f"# {command}\n{done.stdout}")
            if done.returncode:
                transcript.write(f"(exit code {done.returncode})\n")
        print(f"# {command}\n{done.stdout}")
        assert done.returncode == code if code is not None else done.returncode, f"{command}: {done.returncode}"
        return done.stdout

    def remarks(self, text: str) -> None:
        with TRANSCRIPT.open("a") as transcript:
            transcript.write(f"\n## {text}\n")


@pytest.fixture
def operator(guests: tuple[Guest, Guest]) -> Iterator[Operator]:
    for unit, watchdog_s in zip(UNITS, (0, 900), strict=True):
        folder = Path("/run/systemd/system") / f"{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "patient.conf").write_text(PATIENT.format(watchdog_s=watchdog_s))
    try:
        yield Operator()
    finally:
        # Whatever happened: modules that follow have a pager of their own.
        for command in (
            f"xenstore-rm {ROOT}",
            "dpkg --purge diffengine",
            f"systemctl mask --runtime {' '.join(UNITS)}",
            f"systemctl kill --signal=KILL {' '.join(UNITS)}",
        ):
            subprocess.run(["bash", "-c", command], capture_output=True, check=False)


def said_of(method: str, **parameters: Any) -> Any:
    """None while no daemon answers."""
    try:
        with Client(SOCKET) as client:
            return client.call(method, **parameters)
    except DaemonError:
        return None


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.5)
    return found


def status_is(right: Callable[[dict[str, Any]], bool]) -> Callable[[], Any]:
    def condition() -> Any:
        status = said_of("status")
        return status if status and right(status) else None

    return condition


def main_pid(unit: str) -> int:
    words = ["systemctl", "show", "--property=MainPID", "--value", unit]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_from_installation_to_purge(guests: tuple[Guest, Guest], host: XenHost, operator: Operator) -> None:
    regions = [fill(guest) for guest in guests]

    def nothing_is_wrong() -> None:
        assert all(all_right(guest, mine) for guest, mine in zip(guests, regions, strict=True))

    is_installed(operator)
    with Ballast():
        has_no_room_for_a_third(operator)
        saves_what_it_is_told_to(operator, guests)
        finds_room_for_a_third(operator, host)
    nothing_is_wrong()
    for guest, mine in zip(guests, regions, strict=True):
        guest.start_load(mine[0], mine[-1], LOAD_PER_S, 20)
    is_not_stopped_while_pages_are_out(operator)
    may_be_killed(operator)
    for guest in guests:
        found = guest.stop_load()
        operator.remarks(f"{guest.name} meanwhile: {found}")
        assert found.reads and not found.wrong_bytes
    nothing_is_wrong()
    drains(operator)
    nothing_is_wrong()
    is_purged(operator)
    nothing_is_wrong()


def is_installed(operator: Operator) -> None:
    operator.remarks("Installation; two guests run")
    operator.types(f"dpkg --install {PACKAGE}")
    operator.types(f"systemctl enable --now {' '.join(UNITS)}")
    assert operator.types(f"systemctl is-active {' '.join(UNITS)}") == "active\nactive\n"
    after = operator.types("systemctl show --property=After diffengine-pager")
    assert " xen.service" in after, "at boot it would be started before Debian's own unit has made Xen ready"
    operator.types("systemd-analyze security --no-pager diffengine.service | tail -n 1")
    operator.types("systemd-analyze security --no-pager diffengine-pager.service | tail -n 1")
    operator.types("xl list")
    assert "0 of 2 domains" in operator.types("diffengine status")


def saves_what_it_is_told_to(operator: Operator, guests: tuple[Guest, Guest]) -> None:
    operator.remarks("Told through xenstore")
    quick = " ".join(f"{ROOT}/engine/{key} {value}" for key, value in QUICK.items())
    operator.types(f"xenstore-write {quick}")
    for guest in guests:
        domain = f"{ROOT}/domain/{said_of('domain', domain=guest.name)['uuid']}"
        operator.types(f"xenstore-write {domain}/enabled true {domain}/trust_group web")
    wait_for(status_is(lambda status: status["evicted_pages"] > OUT), "nothing is saved")
    operator.types(f"xenstore-write {ROOT}/domains/min_resident_mib many; sleep 2")
    wait_for(lambda: read_back(f"{ROOT}/domains/min_resident_mib/error"), "a wrong value is not refused")
    operator.types(f"xenstore-read {ROOT}/domains/min_resident_mib/error")
    operator.types(f"xenstore-rm {ROOT}/domains/min_resident_mib")
    assert "2 of 3 domains" in operator.types("diffengine top --once")
    operator.types("diffengine domains")
    operator.types(f"diffengine why {guests[0].name}")


def read_back(node: str) -> str:
    return subprocess.run(["xenstore-read", node], capture_output=True, text=True, check=False).stdout


def has_no_room_for_a_third(operator: Operator) -> None:
    operator.remarks("A third guest, for which there is no memory")
    THIRD.write_text(THIRD_CONFIG)
    operator.types("xl info | grep free_memory")
    operator.types(f"xl create -p {THIRD}", code=None)


def finds_room_for_a_third(operator: Operator, host: XenHost) -> None:
    wanted_mib = THIRD_MIB + OVERHEAD_MIB
    operator.remarks("Memory for the third guest")
    operator.types(f"diffengine free {wanted_mib} --timeout-s 600")
    assert host.memory().free >= wanted_mib << 8
    with Guest.start("guest3", THIRD_MIB) as third:
        operator.types("xl list")
        third.ping()


def is_not_stopped_while_pages_are_out(operator: Operator) -> None:
    operator.remarks("Restarts, while programs work in the guests")
    refusal = operator.types("systemctl stop diffengine-pager", code=None)
    assert "refused" in refusal
    assert "refused" in operator.types("systemctl restart diffengine-pager", code=None)


def may_be_killed(operator: Operator) -> None:
    def anew(unit: str, command: str) -> None:
        before = main_pid(unit)
        operator.types(command)
        wait_for(lambda: main_pid(unit) not in (0, before), f"{unit} does not start again")
        # The daemon ends with its pager, and starts anew some time later.
        answering = status_is(lambda status: status["pid"] == main_pid("diffengine.service"))
        wait_for(answering, "the daemon does not answer")

    anew("diffengine.service", "systemctl restart diffengine")
    anew("diffengine.service", "systemctl kill --kill-who=main --signal=KILL diffengine")
    anew("diffengine-pager.service", "systemctl kill --kill-who=main --signal=KILL diffengine-pager")
    wait_for(status_is(lambda status: status["evicted_pages"] > OUT), "nothing is saved any more")
    operator.types("journalctl --no-pager --output=cat -n 12 -u diffengine-pager")
    operator.types("diffengine status")


def drains(operator: Operator) -> None:
    operator.remarks("All pages come back")
    assert "pages came back" in operator.types("diffengine drain")
    operator.types("systemctl start diffengine-drain")
    wait_for(lambda: main_pid("diffengine-pager.service") == 0, "the pager does not end")
    operator.types(f"systemctl is-active {' '.join(UNITS)}", code=3)


def is_purged(operator: Operator) -> None:
    """With pages out: the package's removal brings them back."""
    operator.remarks("Removal, with pages out")
    operator.types(f"systemctl start {' '.join(UNITS)}")
    wait_for(status_is(lambda status: status["evicted_pages"] > OUT), "it does not begin anew")
    operator.types("dpkg --purge diffengine")
    operator.types("ls -d /usr/lib/diffengine /etc/diffengine /var/lib/diffengine /run/diffengine", code=2)
    operator.types("getent group diffengine", code=2)
    assert all(main_pid(unit) == 0 for unit in UNITS)
