# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine, its pager and its guests, in this process: Xen's semantics without Xen.

Contracts: machine.h and pager.h. Everything takes batches; a batch of guest pages is (domids uint16, gfns uint32).
"""

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.errors import DiffengineError
from diffengine.native import Addresses, Store, as_addresses, check, readable, writable

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


def _check_errno(result: int, doing: str) -> int:
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


class Machine:
    """Frames in a memfd, domains, p2m. Free it after its pager and its guests."""

    def __init__(self, frames: int) -> None:
        result = ffi.new("struct de_machine **")
        _check_errno(lib.de_machine_create(frames, result), f"making a machine of {frames} frames")
        self.handle = ffi.gc(result[0], lib.de_machine_free)

    def create_domain(self, pages: Addresses) -> int:
        """A domain whose gfns 0 .. n - 1 hold copies of n pages. Its domid."""
        domid = ffi.new("uint16_t *")
        _check_errno(lib.de_machine_domain_create(self.handle, len(pages), domid), "creating a domain")
        populated = lib.de_machine_populate(self.handle, domid[0], ffi.NULL, as_addresses(pages), len(pages), ffi.NULL)
        if _check_errno(populated, "populating a domain") != len(pages):
            raise MachineError(f"the machine has no frames left for {len(pages) - populated} pages; make it larger")
        return int(domid[0])

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


class Pager:
    """The pager's core on a machine and a store; serves faults on threads of its own until `close`."""

    def __init__(self, machine: Machine, store: Store) -> None:
        self._machine = machine
        hypervisor = ffi.new("struct de_hypervisor *", lib.de_machine_hypervisor(machine.handle))
        result = ffi.new("struct de_pager **")
        check(lib.de_pager_create(store.handle, hypervisor, result), "making the pager")
        self._pager = ffi.gc(result[0], lib.de_pager_free)
        check(lib.de_pager_start(self._pager), "starting the pager")

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
        _check_errno(started, f"starting a guest program in domain {domid}")
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
        _check_errno(result.status, "a guest's access to its memory")
        names = ("reads", "writes", "wrong_bytes", "faults", "cow_breaks", "stall_ns", "run_ns")
        counters = {name: int(getattr(result, name)) for name in names}
        return GuestResult(**counters, fault_ns=self._samples[: result.samples])
