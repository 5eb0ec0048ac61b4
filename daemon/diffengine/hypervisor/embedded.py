# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine and its pager in this process: Xen's semantics without Xen. Contracts: machine.h and pager.h."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.machine import EmbeddedHost, PagedMachine, check_errno
from diffengine.hypervisor.proposals import ProposingPager, percentiles_us
from diffengine.hypervisor.protocol import (
    NewObjects,
    ObjectForms,
    ObjectIds,
    Outcome,
    PagerCounters,
    Results,
    no_results,
)
from diffengine.native import (
    NATIVE,
    NONE,
    PAGE_BYTES,
    Binding,
    Bytes,
    Rebuilder,
    Store,
    check,
    readable,
    writable,
)


class Machine(EmbeddedHost):
    """Frames in a memfd, domains, p2m; protocol.Host. Free it after its pager and its guests."""

    def __init__(self, frames: int, binding: Binding = NATIVE) -> None:
        result = binding.ffi.new("struct de_machine **")
        check_errno(binding.lib.de_machine_create(frames, result), f"making a machine of {frames} frames")
        super().__init__(binding, "de_machine_", binding.ffi.gc(result[0], binding.lib.de_machine_free))

    def close(self) -> None:
        """Frees it now rather than when Python drops it."""
        self.binding.ffi.release(self.handle)


@dataclass(frozen=True)
class PagerStatistics:
    """Counters of struct de_pager_statistics, and percentiles of its latencies in microseconds."""

    evicted: int
    evictions: int
    shares: int
    loads: int
    touches: int
    corrupt: int
    table_bytes: int
    rebuild_us: dict[str, float]
    fault_us: dict[str, float]


class Swap:
    """A swap file (swap.h), encrypted under a key that goes with this process. Close it after its store."""

    def __init__(self, path: Path, size: int, binding: Binding = NATIVE, disk: Any = None) -> None:
        """`disk`: struct de_swap_disk, the real one if None.

        Raises NativeError if the file can't be made, or the disk has no room for it.
        """
        self._binding, ffi = binding, binding.ffi
        c_path = ffi.new("char[]", os.fsencode(path))
        options = ffi.new("struct de_swap_options *", {"path": c_path, "bytes": size, "disk": disk or ffi.NULL})
        result = ffi.new("struct de_swap **")
        check(binding.lib.de_swap_open(options, result), f"making the swap file {path}")
        self.handle = result[0]

    def usage(self) -> tuple[int, int, int]:
        """Bytes in use, of how many, and memory that its tables take."""
        statistics = self._binding.ffi.new("struct de_swap_statistics *")
        self._binding.lib.de_swap_statistics(self.handle, statistics)
        return statistics.used * PAGE_BYTES, statistics.slots * PAGE_BYTES, int(statistics.table_bytes)

    def close(self) -> None:
        self._binding.lib.de_swap_close(self.handle)


def threads_cpu_s() -> dict[str, float]:
    """The threads of this process, and CPU seconds of each as the kernel's scheduler counts them."""
    return {path.name: _thread_cpu_s(path) for path in Path("/proc/self/task").iterdir()}


def _thread_cpu_s(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):  # it has just ended
        return 0.0


class Pager(ProposingPager):
    """The pager's core on a machine and a store; serves faults on threads of its own until `close`. protocol.Pager."""

    def __init__(
        self,
        machine: PagedMachine,
        store: Store,
        swap: Swap | None = None,
        threads_cpu_s: Callable[[], dict[str, float]] = threads_cpu_s,
    ) -> None:
        """`threads_cpu_s`: all threads that there are, and CPU seconds of each."""
        self._store = store
        self._swap = swap
        self._rebuilder: Rebuilder | None = None
        self._machine = machine
        self._ffi, self._lib = store.binding.ffi, store.binding.lib
        self._threads_cpu_s = threads_cpu_s
        before = threads_cpu_s().keys()
        hypervisor = self._ffi.new("struct de_hypervisor *", machine.hypervisor())
        result = self._ffi.new("struct de_pager **")
        check(self._lib.de_pager_create(store.handle, hypervisor, result), "making the pager")
        self._pager = self._ffi.gc(result[0], self._lib.de_pager_free)
        if swap is not None:
            check(self._lib.de_pager_attach_swap(self._pager, swap.handle), "attaching the swap file")
        check(self._lib.de_pager_start(self._pager), "starting the pager")
        self._threads = threads_cpu_s().keys() - before

    def add_domain(self, domid: int, gfns: int) -> None:
        check(self._lib.de_pager_add_domain(self._pager, domid, gfns), f"taking over the paging of domain {domid}")

    def _propose(self, proposal: str, **arrays: NDArray[Any]) -> Results:
        results = np.empty(len(next(iter(arrays.values()))), dtype=np.int32)
        c_arrays = [readable(f"{array.dtype}_t[]", array) for array in arrays.values()]
        call = getattr(self._lib, f"de_pager_{proposal}")
        call(self._pager, *c_arrays, len(results), writable("int32_t[]", results))
        return results

    def _read_states(self, domid: int, first: int, count: int, *entries: Any) -> int:
        return int(self._lib.de_pager_states(self._pager, domid, first, count, *entries))

    def swap_out(self, objects: ObjectIds) -> Results:
        return super().swap_out(objects) if self._swap is not None else no_results(len(objects), Outcome.UNABLE)

    def _put(self, objects: NewObjects, ids: ObjectIds) -> None:
        # The store's batch wants one array that references and new ids are found in: existing objects come first.
        count = len(ids)
        both = np.concatenate([objects.reference_ids, ids])
        rows = np.arange(count, dtype=np.uint32)
        references = np.where(objects.reference_ids != NONE, rows, np.uint32(NONE))
        within = objects.reference_rows != NONE
        references[within] = objects.reference_rows[within] + np.uint32(count)
        try:
            self._store.put(
                objects.payloads,
                objects.sizes,
                objects.encodings,
                objects.checksums,
                rows + np.uint32(count),
                references,
                both,
                objects.model_id,
            )
        finally:
            ids[:] = both[count:]

    def release(self, objects: ObjectIds) -> None:
        self._store.release(objects)

    def rebuild(self, objects: ObjectIds, pages: Bytes) -> NDArray[np.bool_]:
        return self._reader().rebuild(objects, pages)

    def describe(self, objects: ObjectIds) -> ObjectForms:
        return ObjectForms(*self._reader().describe(objects))

    def _reader(self) -> Rebuilder:
        if self._rebuilder is None:
            self._rebuilder = Rebuilder(self._store)
        return self._rebuilder

    def compact(self) -> int:
        return self._store.compact()

    def counters(self) -> PagerCounters:
        own, store = self.statistics(), self._store.statistics()
        swap_used, swap_limit, swap_tables = self._swap.usage() if self._swap else (0, 0, 0)
        return PagerCounters(
            evicted=own.evicted,
            evictions=own.evictions,
            loads=own.loads,
            touches=own.touches,
            corrupt=own.corrupt,
            objects=store.objects,
            store_bytes=store.populated_bytes,
            table_bytes=own.table_bytes + store.table_bytes + swap_tables,
            swap_bytes=swap_used,
            swap_limit_bytes=swap_limit,
            cpu_s=sum(cpu_s for thread, cpu_s in self._threads_cpu_s().items() if thread in self._threads),
            rebuild_us=own.rebuild_us,
            fault_us=own.fault_us,
        )

    def restore(self, domid: int) -> None:
        """Loads every page of a domain that is out."""
        check(self._lib.de_pager_restore(self._pager, domid), f"bringing back the pages of domain {domid}")

    def statistics(self) -> PagerStatistics:
        result = self._ffi.new("struct de_pager_statistics *")
        self._lib.de_pager_read_statistics(self._pager, result)
        counters = ("evicted", "evictions", "shares", "loads", "touches", "corrupt", "table_bytes")
        return PagerStatistics(
            **{name: int(getattr(result, name)) for name in counters},
            rebuild_us=percentiles_us(self._store.binding, result.rebuild),
            fault_us=percentiles_us(self._store.binding, result.fault),
        )

    def close(self) -> None:
        """Stops serving. Pages that are out stay out: restore them first, or be done with the guests."""
        self._ffi.release(self._pager)
        if self._rebuilder is not None:
            self._rebuilder.close()
