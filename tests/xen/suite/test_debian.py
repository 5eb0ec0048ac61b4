# SPDX-License-Identifier: GPL-2.0-or-later
"""Two Debian guests with the same image: what Xen gets back from them. Their memory is dumped first, and the rig has
`diffengine simulate` work on the dumps with the same policy, for as many sweeps (rig/simulated.py)."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ctypes import string_at
from pathlib import Path

import numpy as np
import pytest
from guests import KERNELS, Guest, GuestError, open_console, xl
from stack import OPTIONS, PagerProcess, engine, pager_process, run_until

from diffengine.hypervisor.xen import XenHost

MEMORY_MIB = 160
NAMES = ("debian1", "debian2")
CONFIG = """\
name="{name}"
type="pvh"
kernel="{kernel}"
ramdisk="/opt/rig/debian-initrd"
cmdline="console=hvc0 quiet mitigations=off nokaslr systemd.mask=xen.service systemd.mask=mnt-share.mount"
memory={memory_mib}
maxmem={memory_mib}
vcpus=1
hap=1
tsc_mode="native"
disk=["format=raw,vdev=xvda,access=ro,target={disk}"]
on_crash="destroy"
on_reboot="destroy"
"""
# What both do before they are left alone.
WORK = (
    "cat /usr/lib/python3/dist-packages/*/*.py /usr/bin/p* > /dev/null; systemctl --no-pager | tail -1; echo = worked"
)
READY_S = 1200.0
ASK_S = 10.0
STARTS = 4
SWEEPS = 4
BATCH_PAGES = 1024
PAGE_BYTES = 4096
TIMEOUT_S = 1200.0
RESULT = Path("debian.json")


def unused_disk() -> str:
    """The copy of dom0's disk that dom0 has not mounted."""
    mounted = {line.split()[0] for line in Path("/proc/mounts").read_text().splitlines()}
    (found,) = (disk for disk in ("/dev/vda", "/dev/vdc") if disk not in mounted)
    return found


class Debian(Guest):
    """Spoken to through a shell on its console."""

    @classmethod
    def boot(cls, name: str) -> "Debian":
        config = Path(f"/tmp/{name}.cfg")
        text = CONFIG.format(name=name, kernel=KERNELS["pvh"], memory_mib=MEMORY_MIB, disk=unused_disk())
        config.write_text(text)
        for _start in range(STARTS):
            xl("create", str(config))
            domid = int(xl("domid", name))
            guest = cls(name, domid, open_console(domid))
            try:
                # The shell writes a control sequence before the first line of an answer.
                guest.ask_until("echo; echo = ready", "= ready")
                return guest
            except GuestError as error:
                print(error)
                guest.destroy()
        raise GuestError(f"{name} did not start in {STARTS} tries")

    def ask_until(self, command: str, answer: str) -> None:
        """Types the command again and again: before the shell is there, nobody reads it."""
        deadline_s = time.monotonic() + READY_S
        while True:
            self.type(command)
            try:
                self.wait(answer, ASK_S)
                return
            except GuestError:
                if time.monotonic() > deadline_s or xl("list").find(self.name) < 0:
                    raise

    def type(self, command: str) -> None:
        os.write(self.console, command.encode() + b"\n")


@pytest.fixture(scope="module")
def debians() -> Iterator[list[Debian]]:
    with ExitStack() as stack, ThreadPoolExecutor(len(NAMES)) as pool:
        booting = [pool.submit(Debian.boot, name) for name in NAMES]
        yield [stack.enter_context(guest.result()) for guest in booting]


@pytest.fixture(scope="module")
def pager(debians: list[Debian]) -> Iterator[PagerProcess]:
    with pager_process() as process:
        yield process


def dump(host: XenHost, guest: Debian) -> None:
    """As a raw image. `xl dump-core` maps each gfn up to 4 GiB, nearly all of them holes, on its own: too slow here."""
    (gfns,) = (found.gfns for found in host.domains() if found.domid == guest.domid)
    xl("pause", guest.name)
    with Path(f"{guest.name}.raw").open("wb") as image:
        for first in range(0, gfns, BATCH_PAGES):
            batch = np.arange(first, min(first + BATCH_PAGES, gfns), dtype=np.uint32)
            with host.map(guest.domid, batch) as mapping:
                for address in mapping.addresses.tolist():
                    image.write(string_at(address, PAGE_BYTES) if address else bytes(PAGE_BYTES))
    xl("unpause", guest.name)


def test_memory_of_debian_guests_comes_free(debians: list[Debian], pager: PagerProcess, host: XenHost) -> None:
    for guest in debians:
        guest.type(WORK)
        guest.wait("= worked", READY_S)
    for guest in debians:
        dump(host, guest)
    before = host.memory().free
    with engine(host) as (attached, client):
        assert run_until(attached, lambda: attached.engine.report().sweeps >= SWEEPS, TIMEOUT_S)
        counters, report, memory = client.counters(), attached.engine.report(), host.memory()
    print(report, counters)
    assert counters.corrupt == 0
    found = {
        "guests": list(NAMES),
        "allocated_bytes": len(NAMES) * MEMORY_MIB << 20,
        "freed_bytes": (memory.free - before) << 12,
        "store_bytes": counters.store_bytes,
        "table_bytes": counters.table_bytes + report.table_bytes,
        "sweeps": SWEEPS,
        "c4_visits": OPTIONS.c4_visits,
        "pages": report.pages,
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for guest in debians:
        guest.type(WORK)
        guest.wait("= worked", READY_S)
