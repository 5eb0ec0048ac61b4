# SPDX-License-Identifier: GPL-2.0-or-later
"""PVH and HVM guests that run tests/xen/guest: started with xl, spoken to over their console."""

import os
import select
import subprocess
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

KERNELS = {"pvh": Path("/opt/rig/guest-kernel"), "hvm": Path("/opt/rig/guest-bzimage")}
INITRD = Path("/opt/rig/guest-initrd")
# Generous: a machine that is busy with other things makes the emulator many times slower.
READY_S = 240.0
ANSWER_S = 600.0
# A domain that is destroyed says nothing more, and its console's end may stay open.
LOOK_S = 10.0
# The emulator lets a guest die of a triple fault in its first second now and then, with the hypervisor's own registers
# in the dump. Such a start is tried again; a guest that has said that it is ready is never replaced.
STARTS = 4
# No huge pages: they are made of others later, and pages would not stay where they are.
CONFIG = """\
name="{name}"
type="{type}"
kernel="{kernel}"
ramdisk="{initrd}"
cmdline="console=hvc0 quiet mitigations=off nokaslr xen_emul_unplug={unplug} transparent_hugepage=never"
memory={memory_mib}
maxmem={memory_mib}
vcpus={vcpus}
hap=1
tsc_mode="native"
on_crash="destroy"
on_reboot="destroy"
"""
# The disk that QEMU emulates stays beside PV ones, so that QEMU touches the guest's memory.
UNPLUG = {"pvh": "never", "hvm": "unnecessary"}
HVM_CONFIG = """\
nographic=1
vga="none"
serial="pty"
"""


class GuestError(Exception):
    """A guest did not start, did not answer, or said that it could not."""


@dataclass(frozen=True)
class Accesses:
    """What the guest counted: pages read and compared byte by byte, pages written."""

    reads: int
    writes: int
    wrong_pages: int
    wrong_bytes: int
    longest_us: int


def xl(*words: str) -> str:
    done = subprocess.run(["xl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestError(f"xl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Guest:
    """One running guest. destroy() it, or use it as a context."""

    def __init__(self, name: str, domid: int, console: int) -> None:
        self.name = name
        self.domid = domid
        self.console = console
        self._received = b""

    @classmethod
    def start(cls, name: str, memory_mib: int = 128, kind: str = "pvh", more: str = "", vcpus: int = 1) -> Self:
        """more: further lines of its configuration."""
        config = Path(f"/tmp/{name}.cfg")
        text = CONFIG.format(
            name=name,
            type=kind,
            kernel=KERNELS[kind],
            initrd=INITRD,
            memory_mib=memory_mib,
            unplug=UNPLUG[kind],
            vcpus=vcpus,
        )
        config.write_text(text + (HVM_CONFIG if kind == "hvm" else "") + more)
        for attempt in range(1, STARTS + 1):
            try:
                xl("create", str(config))
                domid = int(xl("domid", name))
                guest = cls(name, domid, open_console(domid))
                guest.wait("= ready", READY_S)
                return guest
            except GuestError as error:
                print(f"{name}: start {attempt} failed: {error}")
            with suppress(GuestError):
                xl("destroy", name)
        raise GuestError(f"{name} did not start in {STARTS} tries")

    @classmethod
    def restore(cls, name: str, file: Path) -> Self:
        """A guest that was saved; its regions are as they were."""
        xl("restore", str(file))
        domid = int(xl("domid", name))
        return cls(name, domid, open_console(domid))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def save(self, file: Path) -> None:
        """With xl; this domain is gone then."""
        self._hang_up()
        xl("save", self.name, str(file))

    def destroy(self) -> None:
        """No matter whether it is there."""
        self._hang_up()
        with suppress(GuestError):
            xl("destroy", str(self.domid))

    def _hang_up(self) -> None:
        """Once: its descriptor may be another's then."""
        if self.console >= 0:
            os.close(self.console)
        self.console = -1

    # What the guest is asked to do; README.md has the commands.

    def fill(self, kind: str, pages: int, seed: int, similar_percent: int = 0) -> int:
        """The new region's number."""
        return int(self._ask(f"fill {kind} {pages} {seed} {similar_percent}")["region"])

    def check(self, region: int, first: int = 0, count: int | None = None, step: int = 1) -> Accesses:
        return self._accesses(f"check {region}{_range(first, count, step)}")

    def change(self, region: int, first: int = 0, count: int | None = None, step: int = 1) -> Accesses:
        return self._accesses(f"change {region}{_range(first, count, step)}")

    def start_load(self, first: int, last: int, operations_per_s: int, write_percent: int, seed: int = 1) -> None:
        self._ask(f"load {first} {last} {operations_per_s} {write_percent} {seed}")

    def counts(self) -> Accesses:
        return self._accesses("counts")

    def stop_load(self) -> Accesses:
        return self._accesses("stop")

    def load_modules(self) -> None:
        """Drivers of disks and network interfaces."""
        self._ask("modules")

    def write_disk(self, region: int, device: str) -> Accesses:
        return self._accesses(f"disk write {region} {device}")

    def read_disk(self, region: int, device: str, into: int) -> Accesses:
        """What `region` wrote there, into another one, whose own content is lost."""
        return self._accesses(f"disk read {region} {device} {into}")

    def fetch_disk(self, region: int, device: str, into: int) -> None:
        """The same, and no CPU of the guest's looks at it: compare() does."""
        self._ask(f"disk fetch {region} {device} {into}")

    def compare(self, region: int, into: int) -> Accesses:
        """What `into` has with what `region` must hold."""
        return self._accesses(f"compare {region} {into}")

    def echo(self, own: str, peer: str, region: int, into: int) -> Accesses:
        """`region` over the network to who sends it back, into another one."""
        return self._accesses(f"net {own} {peer} {region} {into}")

    def free(self, region: int) -> None:
        self._ask(f"free {region}")

    def ping(self) -> None:
        self._ask("ping")

    def gfns(self, region: int) -> NDArray[np.uint32]:
        """The gfn of each of the region's pages."""
        runs = (run.split("+") for run in self._ask(f"gfns {region}")["gfns"].split(","))
        parts = [np.arange(int(first), int(first) + int(count), dtype=np.uint32) for first, count in runs]
        return np.concatenate(parts)

    def _accesses(self, line: str) -> Accesses:
        return Accesses(**{name: int(value) for name, value in self._ask(line).items()})

    def _ask(self, line: str) -> dict[str, str]:
        os.write(self.console, line.encode() + b"\n")
        answer = self.wait("= ", ANSWER_S).removeprefix("= ")
        if not answer.startswith("ok"):
            raise GuestError(f"{self.name}: {line}: {answer}")
        return dict(word.split("=", 1) for word in answer.split()[1:])

    def wait(self, beginning: str, timeout_s: float) -> str:
        """The next line that begins so. Others are the guest kernel's."""
        for line in self._lines(time.monotonic() + timeout_s):
            if line.startswith(beginning):
                return line
            print(f"{self.name}: {line}")
        raise GuestError(f"{self.name} did not say {beginning!r} within {timeout_s:.0f} s")

    def _lines(self, deadline_s: float) -> Iterator[str]:
        while (left_s := deadline_s - time.monotonic()) > 0:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                yield line.decode(errors="replace").strip()
            elif select.select([self.console], [], [], min(left_s, LOOK_S))[0]:
                try:
                    self._received += os.read(self.console, 65536)
                except OSError as error:
                    raise GuestError(f"{self.name}: its console is gone: {error}") from error
            elif not is_there(self.domid):
                raise GuestError(f"{self.name} is gone")


def is_there(domid: int) -> bool:
    return subprocess.run(["xl", "domname", str(domid)], capture_output=True, check=False).returncode == 0


def _range(first: int, count: int | None, step: int) -> str:
    if count is None:
        return f" {first}" if first else ""
    return f" {first} {count} {step}"


def open_console(domid: int) -> int:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        path = f"/local/domain/{domid}/console/tty"
        found = subprocess.run(["xenstore-read", path], capture_output=True, text=True, check=False)
        if found.stdout.strip():
            console = os.open(found.stdout.strip(), os.O_RDWR | os.O_NOCTTY)
            # Not what tty.setraw does by default: that drops what the guest has said already.
            tty.setraw(console, termios.TCSANOW)
            return console
        time.sleep(0.1)
    raise GuestError(f"domain {domid} has no console")


@contextmanager
def two_guests(memory_mib: int = 128) -> Iterator[tuple[Guest, Guest]]:
    with Guest.start("guest1", memory_mib) as first, Guest.start("guest2", memory_mib) as second:
        yield first, second
