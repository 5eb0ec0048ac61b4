# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine on a small embedded machine, driven step by step on a clock of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import Engine, EngineOptions
from diffengine.engine.pace import RealPace
from diffengine.hypervisor.embedded import Machine, Pager, Swap
from diffengine.hypervisor.programs import Guest
from diffengine.native import Store

PAGE = 4096
Pages = NDArray[np.uint8]  # (n, PAGE)


class Clock(RealPace):
    """Goes forward only when it is told to: what the engine computes takes no time, or a slow machine would decide when
    it looks again."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def cpu_s(self) -> float:
        return 0.0


@dataclass
class Bench:
    """domids and contents of the domains, in the order given."""

    machine: Machine
    pager: Pager
    store: Store
    engine: Engine
    clock: Clock
    contents: Sequence[Pages]
    domids: list[int] = field(default_factory=list)

    def sweep(self, sweeps: int) -> None:
        """Runs the engine for so many sweeps, in no time at all."""
        until = self.engine.report().sweeps + sweeps
        while self.engine.report().sweeps < until:
            wait_s = self.engine.step()
            self.clock.time_s += wait_s

    def read_all(self, number: int, operations: int = 2000) -> int:
        """Lets a guest read its pages at random. Wrong bytes."""
        guest = Guest(self.machine, self.domids[number], addresses(self.contents[number]), operations, 0.0, seed=1)
        return guest.join().wrong_bytes

    def write_pages(self, number: int, gfns: Sequence[int], byte: int) -> None:
        """As a device model does, through a mapping; the engine's log of written pages does not see it."""
        machine, count = self.machine, len(gfns)
        ffi, lib = machine.binding.ffi, machine.binding.lib
        pages, errors, c_gfns = (
            ffi.new("uint8_t *[]", count),
            ffi.new("int32_t[]", count),
            ffi.new("uint32_t[]", list(gfns)),
        )
        assert lib.de_machine_map(machine.handle, self.domids[number], True, c_gfns, count, pages, errors) == count
        for page in pages:
            ffi.memmove(page, bytes([byte]) * PAGE, PAGE)
        lib.de_machine_unmap(machine.handle, pages, count)

    def mapped_frames(self, number: int, gfns: Sequence[int]) -> NDArray[np.uint64]:
        """Where the frames of pages are: equal addresses are one frame."""
        with self.machine.map(self.domids[number], np.array(gfns, dtype=np.uint32)) as mapping:
            return mapping.addresses.copy()


def addresses(pages: Pages) -> NDArray[np.uint64]:
    return np.uint64(pages.ctypes.data) + np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE)


@contextmanager
def bench(
    contents: Sequence[Pages],
    options: EngineOptions,
    groups: Sequence[str] | None = None,
    min_resident: int = 0,
    machine_type: type[Machine] = Machine,
    pager_type: type[Pager] = Pager,
    store_bytes: int = 64 << 20,
    log_dirty: bool = False,
    swap_bytes: int = 0,
    clock: Clock | None = None,
) -> Iterator[Bench]:
    """One domain for each of `contents`, in the trust groups given (else all in one)."""
    machine = machine_type(sum(map(len, contents)) * 2 + 64)
    clock = clock or Clock()
    with ExitStack() as stack:
        swap = None
        if swap_bytes:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            swap = Swap(Path(folder) / "swap", swap_bytes)
            stack.callback(swap.close)
        store = stack.enter_context(Store(store_bytes))
        pager = pager_type(machine, store, swap)
        try:
            engine = Engine(machine, pager, options, clock)
            made = Bench(machine, pager, store, engine, clock, contents)
            for number, pages in enumerate(contents):
                domid = machine.create_domain(addresses(pages))
                pager.add_domain(domid, len(pages))
                engine.add_domain(domid, len(pages), groups[number] if groups else "all", min_resident, log_dirty)
                made.domids.append(domid)
            yield made
            engine.close()
        finally:
            pager.close()


def random_pages(count: int, seed: int = 0) -> Pages:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE), dtype=np.uint8)


def text_pages(count: int, seed: int = 0) -> Pages:
    """Pages that compress to about a third, all different."""
    rng = np.random.default_rng(seed)
    words = rng.integers(97, 123, (64, 8), dtype=np.uint8)
    return words[rng.integers(0, 64, (count, PAGE // 8))].reshape(count, PAGE)


def similar_pages(count: int, seed: int = 0) -> Pages:
    """Incompressible pages that differ in one 64-byte block each."""
    rng = np.random.default_rng(seed)
    pages = np.repeat(random_pages(1, seed), count, axis=0)
    for page in pages:
        at = int(rng.integers(0, 63)) * 64
        page[at : at + 64] = rng.integers(0, 256, 64, dtype=np.uint8)
    return pages
