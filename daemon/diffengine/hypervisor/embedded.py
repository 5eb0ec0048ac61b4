# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine, its pager and its guests, in this process: Xen's semantics without Xen.

Contracts: machine.h and pager.h. Everything takes batches; a batch of guest pages is (domids uint16, gfns uint32).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.errors import DiffengineError
from diffengine.hypervisor.protocol import (
    Capabilities,
    DomainInfo,
    HostMemory,
    NewObjects,
    ObjectIds,
    Outcome,
    PageEntries,
    PagerCounters,
    StoreFullError,
    no_results,
)
from diffengine.native import (
    NONE,
    PAGE_BYTES,
    Addresses,
    Bytes,
    Encoding,
    FullError,
    NativeError,
    Rebuilder,
    Store,
    as_addresses,
    check,
    readable,
    writable,
)

Domids = NDArray[np.uint16]
Gfns = NDArray[np.uint32]


class MachineError(DiffengineError):
    """The embedded machine refused: too little memory, no such domain."""


class Proposal(IntEnum):
    """enum de_proposal: what became of one page of a proposal to the pager."""

    DONE = lib.DE_PROPOSAL_DONE
    BUSY = lib.DE_PROPOSAL_BUSY
    TOUCHED = lib.DE_PROPOSAL_TOUCHED
    DIFFERS = lib.DE_PROPOSAL_DIFFERS
    NO_OBJECT = lib.DE_PROPOSAL_NO_OBJECT
    NO_PAGE = lib.DE_PROPOSAL_NO_PAGE
    NO_DOMAIN = lib.DE_PROPOSAL_NO_DOMAIN
    INVALID = lib.DE_PROPOSAL_INVALID
    STALE = lib.DE_PROPOSAL_STALE
    MAPPED = lib.DE_PROPOSAL_MAPPED
    FULL = lib.DE_PROPOSAL_FULL
    NO_MEMORY = lib.DE_PROPOSAL_NO_MEMORY
    FAILED = lib.DE_PROPOSAL_FAILED


def check_errno(result: int, doing: str) -> int:
    if result < 0:
        raise MachineError(f"{doing}: {os.strerror(-result)}")
    return result


@dataclass(frozen=True)
class MachineAccounting:
    """struct de_machine_accounting: frames of the whole machine; metadata_bytes is what sharing costs it."""

    frames: int
    free: int
    used: int
    claimed: int
    shared_frames: int
    sharing_saved: int
    paged: int
    mapped: int
    metadata_bytes: int


@dataclass(frozen=True)
class Mapping:
    """protocol.MappedPages."""

    addresses: Addresses
    errors: NDArray[np.int32]


def machine_capabilities() -> Capabilities:
    return Capabilities(sharing=True, paging=True, claims=True, log_dirty=False, most_sharers=lib.DE_SHARE_MAX_GFNS)


class PagedMachine(Protocol):
    """A machine, here or in a process of its own, whose domains a pager can serve."""

    def hypervisor(self) -> Any: ...


class Machine:
    """Frames in a memfd, domains, p2m; protocol.Host. Free it after its pager and its guests."""

    def __init__(self, frames: int) -> None:
        result = ffi.new("struct de_machine **")
        check_errno(lib.de_machine_create(frames, result), f"making a machine of {frames} frames")
        self.handle = ffi.gc(result[0], lib.de_machine_free)
        self._domains: list[DomainInfo] = []

    def hypervisor(self) -> Any:
        """struct de_hypervisor of this machine."""
        return lib.de_machine_hypervisor(self.handle)

    def create_domain(self, pages: Addresses) -> int:
        """A domain whose gfns 0 .. n - 1 hold copies of n pages. Its domid."""
        domid = ffi.new("uint16_t *")
        check_errno(lib.de_machine_domain_create(self.handle, len(pages), domid), "creating a domain")
        populated = lib.de_machine_populate(self.handle, domid[0], ffi.NULL, as_addresses(pages), len(pages), ffi.NULL)
        if check_errno(populated, "populating a domain") != len(pages):
            raise MachineError(f"the machine has no frames left for {len(pages) - populated} pages; make it larger")
        self._domains.append(DomainInfo(int(domid[0]), len(pages)))
        return int(domid[0])

    def destroy_domain(self, domid: int) -> None:
        check_errno(lib.de_machine_domain_destroy(self.handle, domid), f"destroying domain {domid}")
        self._domains = [domain for domain in self._domains if domain.domid != domid]

    def capabilities(self) -> Capabilities:
        return machine_capabilities()

    def domains(self) -> tuple[DomainInfo, ...]:
        return tuple(self._domains)

    def memory(self) -> HostMemory:
        all_of_it = self.accounting()
        return HostMemory(**{name: getattr(all_of_it, name) for name in HostMemory.__dataclass_fields__})

    @contextmanager
    def map(self, domid: int, gfns: Gfns) -> Iterator[Mapping]:
        mapping = Mapping(np.zeros(len(gfns), dtype=np.uint64), np.zeros(len(gfns), dtype=np.int32))
        pages = ffi.cast("uint8_t **", writable("uint64_t[]", mapping.addresses))
        mapped = lib.de_machine_map(
            self.handle,
            domid,
            False,
            readable("uint32_t[]", gfns),
            len(gfns),
            pages,
            writable("int32_t[]", mapping.errors),
        )
        if mapped == -errno.ESRCH:
            mapping.errors[:] = mapped
        else:
            check_errno(mapped, f"mapping pages of domain {domid}")
        try:
            yield mapping
        finally:
            lib.de_machine_unmap(self.handle, as_addresses(mapping.addresses), len(gfns))

    def claim(self, domid: int, frames: int) -> bool:
        return bool(lib.de_machine_claim(self.handle, domid, frames) == 0)

    def accounting(self) -> MachineAccounting:
        result = ffi.new("struct de_machine_accounting *")
        lib.de_machine_account(self.handle, result)
        names = MachineAccounting.__dataclass_fields__
        return MachineAccounting(**{name: int(getattr(result, name)) for name in names})

    def resident_bytes(self) -> int:
        """What the kernel says the frames really take."""
        return os.fstat(lib.de_machine_fd(self.handle)).st_blocks * 512


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

    def __init__(self, path: Path, size: int) -> None:
        """Raises NativeError if the file can't be made, or the disk has no room for it."""
        c_path = ffi.new("char[]", os.fsencode(path))
        options = ffi.new("struct de_swap_options *", {"path": c_path, "bytes": size})
        result = ffi.new("struct de_swap **")
        check(lib.de_swap_open(options, result), f"making the swap file {path}")
        self.handle = result[0]

    def usage(self) -> tuple[int, int, int]:
        """Bytes in use, of how many, and memory that its tables take."""
        statistics = ffi.new("struct de_swap_statistics *")
        lib.de_swap_statistics(self.handle, statistics)
        return statistics.used * PAGE_BYTES, statistics.slots * PAGE_BYTES, int(statistics.table_bytes)

    def close(self) -> None:
        lib.de_swap_close(self.handle)


def _threads() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


class Pager:
    """The pager's core on a machine and a store; serves faults on threads of its own until `close`. protocol.Pager."""

    def __init__(self, machine: Machine, store: Store, swap: Swap | None = None) -> None:
        self._machine = machine
        self._store = store
        self._swap = swap
        self._rebuilder: Rebuilder | None = None
        before = _threads()
        hypervisor = ffi.new("struct de_hypervisor *", machine.hypervisor())
        result = ffi.new("struct de_pager **")
        check(lib.de_pager_create(store.handle, hypervisor, result), "making the pager")
        self._pager = ffi.gc(result[0], lib.de_pager_free)
        if swap is not None:
            check(lib.de_pager_attach_swap(self._pager, swap.handle), "attaching the swap file")
        check(lib.de_pager_start(self._pager), "starting the pager")
        self._threads = _threads() - before

    def add_domain(self, domid: int, gfns: int) -> None:
        check(lib.de_pager_add_domain(self._pager, domid, gfns), f"taking over the paging of domain {domid}")

    def share(
        self, source_domids: Domids, source_gfns: Gfns, client_domids: Domids, client_gfns: Gfns
    ) -> NDArray[np.int32]:
        """Shares pairs of pages. Values of Proposal."""
        results = np.empty(len(source_gfns), dtype=np.int32)
        lib.de_pager_share(
            self._pager,
            readable("uint16_t[]", source_domids),
            readable("uint32_t[]", source_gfns),
            readable("uint16_t[]", client_domids),
            readable("uint32_t[]", client_gfns),
            len(results),
            writable("int32_t[]", results),
        )
        return results

    def evict(self, domids: Domids, gfns: Gfns, objects: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Evicts pages as store objects, each rebuilt and compared first. Values of Proposal."""
        results = np.empty(len(gfns), dtype=np.int32)
        lib.de_pager_evict(
            self._pager,
            readable("uint16_t[]", domids),
            readable("uint32_t[]", gfns),
            readable("uint32_t[]", objects),
            len(results),
            writable("int32_t[]", results),
        )
        return results

    def watch(self, domids: Domids, gfns: Gfns) -> NDArray[np.int32]:
        """Nominates pages. Values of Proposal."""
        return self._propose(lib.de_pager_watch, domids, gfns)

    def unshare(self, domids: Domids, gfns: Gfns) -> NDArray[np.int32]:
        """Makes pages private. Values of Proposal."""
        return self._propose(lib.de_pager_unshare, domids, gfns)

    def _propose(self, call: Any, domids: Domids, gfns: Gfns) -> NDArray[np.int32]:
        results = np.empty(len(gfns), dtype=np.int32)
        c_domids, c_gfns = readable("uint16_t[]", domids), readable("uint32_t[]", gfns)
        call(self._pager, c_domids, c_gfns, len(results), writable("int32_t[]", results))
        return results

    def states(self, domid: int, first: int, count: int) -> PageEntries:
        entries = PageEntries(
            np.zeros(count, dtype=np.uint8), np.full(count, NONE, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
        )
        status = lib.de_pager_states(
            self._pager,
            domid,
            first,
            count,
            writable("uint8_t[]", entries.states),
            writable("uint32_t[]", entries.objects),
            writable("uint32_t[]", entries.generations),
        )
        if status != lib.DE_NOT_FOUND:
            check(status, f"reading the page table of domain {domid}")
        return entries

    def put(self, objects: NewObjects) -> ObjectIds:
        """See protocol.Pager."""
        # The store's batch wants one array that references and new ids are found in: existing objects come first.
        count = len(objects.sizes)
        ids = np.concatenate([objects.reference_ids, np.full(count, NONE, dtype=np.uint32)])
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
                ids,
                objects.model_id,
            )
        except NativeError as error:
            self._store.release(ids[count:])
            if isinstance(error, FullError):
                raise StoreFullError("the store is full; allow it more memory") from error
            raise
        return ids[count:]

    def put_model(self, model: bytes) -> int:
        payload = ffi.from_buffer("uint8_t[]", model)
        new_object = ffi.new(
            "struct de_object *",
            {"encoding": int(Encoding.MODEL), "payload": payload, "payload_bytes": len(payload)},
        )
        result = ffi.new("uint32_t *")
        try:
            check(lib.de_store_put(self._store.handle, new_object, result), "putting a model into the store")
        except FullError as error:
            raise StoreFullError("the store is full; allow it more memory") from error
        return int(result[0])

    def release(self, objects: ObjectIds) -> None:
        self._store.release(objects)

    def rebuild(self, objects: ObjectIds, pages: Bytes) -> NDArray[np.bool_]:
        if self._rebuilder is None:
            self._rebuilder = Rebuilder(self._store)
        return self._rebuilder.rebuild(objects, pages)

    def swap_out(self, objects: ObjectIds) -> NDArray[np.int32]:
        results = no_results(len(objects), Outcome.UNABLE)
        if self._swap is not None:
            c_objects = readable("uint32_t[]", objects)
            lib.de_pager_swap_out(self._pager, c_objects, len(objects), writable("int32_t[]", results))
        return results

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
            store_bytes=store.populated_bytes,
            table_bytes=own.table_bytes + store.table_bytes + swap_tables,
            swap_bytes=swap_used,
            swap_limit_bytes=swap_limit,
            cpu_s=sum(_thread_cpu_s(thread) for thread in self._threads),
            rebuild_us=own.rebuild_us,
            fault_us=own.fault_us,
        )

    def restore(self, domid: int) -> None:
        """Loads every page of a domain that is out."""
        check(lib.de_pager_restore(self._pager, domid), f"bringing back the pages of domain {domid}")

    def statistics(self) -> PagerStatistics:
        result = ffi.new("struct de_pager_statistics *")
        lib.de_pager_read_statistics(self._pager, result)
        counters = ("evicted", "evictions", "shares", "loads", "touches", "corrupt", "table_bytes")
        return PagerStatistics(
            **{name: int(getattr(result, name)) for name in counters},
            rebuild_us=_percentiles(result.rebuild),
            fault_us=_percentiles(result.fault),
        )

    def close(self) -> None:
        """Stops serving. Pages that are out stay out: restore them first, or be done with the guests."""
        ffi.release(self._pager)
        if self._rebuilder is not None:
            self._rebuilder.close()


def _thread_cpu_s(thread: str) -> float:
    """CPU seconds of a thread of this process, as the kernel's scheduler counts them; 0 if it has ended."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _percentiles(latency: Any) -> dict[str, float]:
    pointer = ffi.addressof(latency)
    return {name: lib.de_latency_quantile(pointer, q) / 1e3 for name, q in (("p50", 0.5), ("p99", 0.99))}


@dataclass(frozen=True)
class GuestResult:
    """struct de_guest_result, and the faults' durations as the guest saw them."""

    reads: int
    writes: int
    wrong_bytes: int
    faults: int
    cow_breaks: int
    stall_ns: int
    run_ns: int
    fault_ns: NDArray[np.uint64]


class Guest:
    """A program in a domain that reads and writes random pages and checks every byte it reads."""

    def __init__(
        self,
        machine: Machine,
        domid: int,
        content: Addresses,
        operations: int,
        write_fraction: float,
        seed: int,
        samples: int = 65536,
    ) -> None:
        """Starts it. `content`: what its pages hold at the start; it must stay mapped until `join`."""
        self._content = content
        self._samples = np.zeros(samples, dtype=np.uint64)
        options = ffi.new(
            "struct de_guest_options *",
            {
                "seed": seed,
                "operations": operations,
                "write_fraction": write_fraction,
                "first_gfn": 0,
                "gfns": len(content),
                "content": as_addresses(content),
                "sample_capacity": samples,
            },
        )
        result = ffi.new("struct de_guest **")
        started = lib.de_guest_start(machine.handle, domid, options, result)
        check_errno(started, f"starting a guest program in domain {domid}")
        self._guest = result[0]

    def progress(self) -> int:
        """Operations done so far; not after `join`."""
        return int(lib.de_guest_progress(self._guest))

    def stop(self) -> None:
        lib.de_guest_stop(self._guest)

    def join(self) -> GuestResult:
        """Waits for its end. Raises MachineError if an access failed."""
        result = ffi.new("struct de_guest_result *")
        lib.de_guest_join(self._guest, result, writable("uint64_t[]", self._samples))
        check_errno(result.status, "a guest's access to its memory")
        names = ("reads", "writes", "wrong_bytes", "faults", "cow_breaks", "stall_ns", "run_ns")
        counters = {name: int(getattr(result, name)) for name in names}
        return GuestResult(**counters, fault_ns=self._samples[: result.samples])


class ProgramKind(IntEnum):
    """enum de_program_kind."""

    IDLE = lib.DE_PROGRAM_IDLE
    WORKING_SET = lib.DE_PROGRAM_WORKING_SET
    PHASES = lib.DE_PROGRAM_PHASES
    TRACE = lib.DE_PROGRAM_TRACE


class Generated(IntEnum):
    """enum de_generated_kind."""

    ZERO = lib.DE_GENERATED_ZERO
    IDENTICAL = lib.DE_GENERATED_IDENTICAL
    RANDOM = lib.DE_GENERATED_RANDOM
    SIMILAR = lib.DE_GENERATED_SIMILAR


class FreeAs(IntEnum):
    """enum de_generated_free."""

    KEEP = lib.DE_FREE_KEEP
    ZERO = lib.DE_FREE_ZERO
    RELEASE = lib.DE_FREE_RELEASE


@dataclass(frozen=True)
class ProgramOptions:
    """struct de_program_options; gfns are 0 .. len(content) - 1. content: 0 for a zero page."""

    kind: ProgramKind
    seed: int
    operations_per_s: float
    content: Addresses
    hot: NDArray[np.uint32] | None = None
    zipf: float = 0.0
    excursion_fraction: float = 0.0
    write_fraction: float = 0.0
    generated: Generated = Generated.ZERO
    similar_percent: int = 0
    free_as: FreeAs = FreeAs.KEEP
    phase_s: float = 0.0
    trace: bytes = b""
    bits_per_map: int = 0
    interval_s: float = 0.0
    sample_capacity: int = 1 << 16


@dataclass(frozen=True)
class ProgramResult:
    """struct de_program_result but for its samples: counters so far."""

    status: int
    phase: int
    reads: int
    writes: int
    releases: int
    wrong_bytes: int
    faults: int
    cow_breaks: int
    stall_ns: int
    run_ns: int


def c_program_options(options: ProgramOptions) -> tuple[Any, Any]:
    """struct de_program_options, and what must be kept as long as it is used."""
    hot, trace = options.hot, ffi.from_buffer("uint8_t[]", options.trace)
    c_options = ffi.new(
        "struct de_program_options *",
        {
            "kind": int(options.kind),
            "seed": options.seed,
            "operations_per_s": options.operations_per_s,
            "first_gfn": 0,
            "gfns": len(options.content),
            "content": as_addresses(options.content),
            "sample_capacity": options.sample_capacity,
            "hot": ffi.NULL if hot is None else readable("uint32_t[]", hot),
            "hot_count": 0 if hot is None else len(hot),
            "zipf": options.zipf,
            "excursion_fraction": options.excursion_fraction,
            "write_fraction": options.write_fraction,
            "generated": int(options.generated),
            "similar_percent": options.similar_percent,
            "free_as": int(options.free_as),
            "phase_ns": round(options.phase_s * 1e9),
            "bits": trace,
            "bits_per_map": options.bits_per_map,
            "maps": len(options.trace) * 8 // options.bits_per_map if options.bits_per_map else 0,
            "interval_ns": round(options.interval_s * 1e9),
        },
    )
    return c_options, (options, trace, c_options)


class Program:
    """A guest program (program.h) running on a thread and a vCPU of its own."""

    def __init__(self, machine: Machine, domid: int, options: ProgramOptions) -> None:
        """Starts it. What `content` points at must stay mapped until `join`."""
        self._samples = np.zeros(options.sample_capacity, dtype=np.uint64)
        # The program keeps reading the bitmaps where they are.
        c_options, self._kept = c_program_options(options)
        result = ffi.new("struct de_program **")
        started = lib.de_program_start(machine.handle, domid, c_options, result)
        check_errno(started, f"starting a guest program in domain {domid}")
        self._program = result[0]

    def read(self) -> ProgramResult:
        """Counters up to now; not after `join`."""
        result = ffi.new("struct de_program_result *")
        lib.de_program_read(self._program, result)
        return program_result(result)

    def stop(self) -> None:
        lib.de_program_stop(self._program)

    def join(self) -> tuple[ProgramResult, NDArray[np.uint64]]:
        """Waits for its end: its counters, and its latest fault latencies in nanoseconds."""
        result = ffi.new("struct de_program_result *")
        lib.de_program_join(self._program, result, writable("uint64_t[]", self._samples))
        return program_result(result), self._samples[: result.samples]


def program_result(result: Any) -> ProgramResult:
    return ProgramResult(**{name: int(getattr(result, name)) for name in ProgramResult.__dataclass_fields__})
