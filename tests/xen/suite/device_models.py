# SPDX-License-Identifier: GPL-2.0-or-later
"""HVM guests' QEMUs, with the shim and without: what they have mapped, second by second, and of what."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from guests import Guest
from numpy.typing import NDArray
from stack import PROGRAM, STATE

from diffengine.hypervisor.protocol import Gfns

SHIM = PROGRAM.with_name("libdiffengine-ioemu.so")
WRAPPER = Path("/tmp/device-model")
# docs/formats.md, hold table.
TABLE_HEADER_BYTES = 4096
COUNT_BITS = 31
SAMPLE_S = 1.0
# The shim unmaps after 10 s; what was in use within these seconds may be mapped.
IN_USE_S = 12.0
# After a sample that comes so late nothing is known of what the emulated machine did meanwhile.
LATE_S = 2.0


def wrapper() -> str:
    """Of a guest's configuration: the shipped wrapper, told of this test's pager."""
    settings = f"DIFFENGINE_STATE={STATE} DIFFENGINE_IOEMU_LIBRARY={SHIM}"
    WRAPPER.write_text(f'#!/bin/sh\n{settings} exec /opt/rig/diffengine-device-model "$@"\n')
    WRAPPER.chmod(0o755)
    return f'device_model_override="{WRAPPER}"\n'


def device_model_of(domid: int) -> int:
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue
        if b"-xen-domid" in words and words[words.index(b"-xen-domid") + 1] == str(domid).encode():
            return int(process.name)
    raise AssertionError(f"domain {domid} has no device model")


def pinned(pid: int) -> int:
    """Guest pages in the process's address space."""
    pages = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "privcmd" in line:
            first, end = (int(address, 16) for address in line.split()[0].split("-"))
            pages += (end - first) // 4096
    return pages


def has_hold_table(pid: int, domid: int) -> bool:
    return f"holds-{domid}" in Path(f"/proc/{pid}/maps").read_text()


def held(domid: int) -> NDArray[np.bool_]:
    """Which gfns the device model holds, by the table; none if there is no table."""
    try:
        table = np.fromfile(STATE / f"holds-{domid}", dtype=np.uint8, offset=TABLE_HEADER_BYTES)
    except FileNotFoundError:
        table = np.zeros(0, dtype=np.uint8)
    return np.asarray(table & COUNT_BITS, dtype=np.bool_)


@dataclass(frozen=True)
class Sample:
    """unused: pages mapped beyond those that disk I/O was on within the last IN_USE_S."""

    at_s: float
    pinned: int
    unused: int


@dataclass
class Use:
    """Disk I/O on these pages."""

    gfns: Gfns
    begin_s: float
    end_s: float = float("inf")


@dataclass
class Watch:
    pid: int
    domid: int
    samples: list[Sample] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.ended.is_set():
            self.samples.append(self._sample())
            self.ended.wait(SAMPLE_S)

    def _sample(self) -> Sample:
        # A page has its hold before it is mapped, and until it is not any more.
        before = held(self.domid)
        pages = pinned(self.pid)
        at_s = time.monotonic()
        after = held(self.domid)
        in_use = [use.gfns for use in self.uses if use.end_s >= at_s - IN_USE_S]
        gfns = np.unique(np.concatenate(in_use)) if in_use else np.zeros(0, dtype=np.uint32)
        if not len(before):
            # Nobody says what of it is mapped; all of it, at most.
            return Sample(at_s, pages, max(0, pages - len(gfns)))
        return Sample(at_s, pages, pages - int((before | after)[gfns].sum()))

    @contextmanager
    def use(self, gfns: Gfns) -> Iterator[None]:
        use = Use(gfns, time.monotonic())
        self.uses.append(use)
        yield
        use.end_s = time.monotonic()

    def judged(self) -> list[Sample]:
        """Those before which no other came late."""
        late_s = [
            later.at_s
            for before, later in zip(self.samples, self.samples[1:], strict=False)
            if later.at_s - before.at_s > LATE_S
        ]
        return [sample for sample in self.samples if not any(0 <= sample.at_s - at_s < IN_USE_S for at_s in late_s)]

    def figure(self) -> dict[str, list[list[float]]]:
        begin_s = self.samples[0].at_s
        return {
            "samples": [[round(sample.at_s - begin_s, 1), sample.pinned, sample.unused] for sample in self.samples],
            "io_s": [[round(use.begin_s - begin_s, 1), round(use.end_s - begin_s, 1)] for use in self.uses],
        }


@contextmanager
def watching(guest: Guest) -> Iterator[Watch]:
    watch = Watch(device_model_of(guest.domid), guest.domid)
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join()
