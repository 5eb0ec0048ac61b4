# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests do: programs that read and write their domain's memory and check every byte. Contract: program.h."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine._native import lib
from diffengine.hypervisor.machine import EmbeddedHost, check_errno
from diffengine.native import Addresses, Binding, as_addresses, readable, writable


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
        machine: EmbeddedHost,
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
        self._binding = machine.binding
        options = self._binding.ffi.new(
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
        result = self._binding.ffi.new("struct de_guest **")
        started = self._binding.lib.de_guest_start(machine.handle, domid, options, result)
        check_errno(started, f"starting a guest program in domain {domid}")
        self._guest = result[0]

    def progress(self) -> int:
        """Operations done so far; not after `join`."""
        return int(self._binding.lib.de_guest_progress(self._guest))

    def stop(self) -> None:
        self._binding.lib.de_guest_stop(self._guest)

    def join(self) -> GuestResult:
        """Waits for its end. Raises MachineError if an access failed."""
        result = self._binding.ffi.new("struct de_guest_result *")
        self._binding.lib.de_guest_join(self._guest, result, writable("uint64_t[]", self._samples))
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
    WORDS = lib.DE_GENERATED_WORDS


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


def c_program_options(binding: Binding, options: ProgramOptions) -> tuple[Any, Any]:
    """struct de_program_options, and what must be kept as long as it is used."""
    ffi, hot = binding.ffi, options.hot
    trace = ffi.from_buffer("uint8_t[]", options.trace)
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

    def __init__(self, machine: EmbeddedHost, domid: int, options: ProgramOptions) -> None:
        """Starts it. What `content` points at must stay mapped until `join`."""
        self._samples = np.zeros(options.sample_capacity, dtype=np.uint64)
        self._binding = machine.binding
        # The program keeps reading the bitmaps where they are.
        c_options, self._kept = c_program_options(self._binding, options)
        result = self._binding.ffi.new("struct de_program **")
        started = self._binding.lib.de_program_start(machine.handle, domid, c_options, result)
        check_errno(started, f"starting a guest program in domain {domid}")
        self._program = result[0]

    def read(self) -> ProgramResult:
        """Counters up to now; not after `join`."""
        result = self._binding.ffi.new("struct de_program_result *")
        self._binding.lib.de_program_read(self._program, result)
        return program_result(result)

    def stop(self) -> None:
        self._binding.lib.de_program_stop(self._program)

    def join(self) -> tuple[ProgramResult, NDArray[np.uint64]]:
        """Waits for its end: its counters, and its latest fault latencies in nanoseconds."""
        result = self._binding.ffi.new("struct de_program_result *")
        self._binding.lib.de_program_join(self._program, result, writable("uint64_t[]", self._samples))
        return program_result(result), self._samples[: result.samples]


def program_result(result: Any) -> ProgramResult:
    return ProgramResult(**{name: int(getattr(result, name)) for name in ProgramResult.__dataclass_fields__})
