# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine in a process of its own (diffengine-machine), as one of its clients.

Contract: machine_client.h. A client's mappings go when it ends; domains, rings and programs stay with the machine.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ESRCH
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.hypervisor.embedded import (
    MachineAccounting,
    MachineError,
    Mapping,
    ProgramOptions,
    ProgramResult,
    c_program_options,
    check_errno,
    machine_capabilities,
    program_result,
)
from diffengine.hypervisor.protocol import Capabilities, DomainInfo, Gfns, HostMemory
from diffengine.native import Addresses, as_addresses, readable, writable

PROGRAM = Path(__file__).parents[1] / "bin" / "diffengine-machine"


class MachineClient:
    """A connection to a machine's process; protocol.Host. It may map pages, not write to them."""

    def __init__(self, socket_path: Path) -> None:
        result = ffi.new("struct de_machine_client **")
        connected = lib.de_client_connect(os.fsencode(socket_path), lib.DE_CLIENT_READER, result)
        check_errno(connected, f"connecting to the machine at {socket_path}")
        self.handle = ffi.gc(result[0], lib.de_client_free)
        self._domains: list[DomainInfo] = []

    def hypervisor(self) -> Any:
        """struct de_hypervisor of this connection."""
        return lib.de_client_hypervisor(self.handle)

    def create_domain(self, pages: Addresses) -> int:
        """A domain whose gfns 0 .. n - 1 hold copies of n pages. Its domid."""
        domid = ffi.new("uint16_t *")
        check_errno(lib.de_client_domain_create(self.handle, len(pages), domid), "creating a domain")
        populated = lib.de_client_populate(self.handle, domid[0], ffi.NULL, as_addresses(pages), len(pages), ffi.NULL)
        if check_errno(populated, "populating a domain") != len(pages):
            lib.de_client_domain_destroy(self.handle, domid[0])
            raise MachineError(f"the machine has no frames left for {len(pages) - populated} pages; make it larger")
        self._domains.append(DomainInfo(int(domid[0]), len(pages)))
        return int(domid[0])

    def destroy_domain(self, domid: int) -> None:
        check_errno(lib.de_client_domain_destroy(self.handle, domid), f"destroying domain {domid}")
        self._domains = [domain for domain in self._domains if domain.domid != domid]

    def capabilities(self) -> Capabilities:
        return machine_capabilities()

    def domains(self) -> tuple[DomainInfo, ...]:
        """Those that this client made."""
        return tuple(self._domains)

    def memory(self) -> HostMemory:
        all_of_it = self.accounting()
        return HostMemory(**{name: getattr(all_of_it, name) for name in HostMemory.__dataclass_fields__})

    @contextmanager
    def map(self, domid: int, gfns: Gfns) -> Iterator[Mapping]:
        mapping = Mapping(np.zeros(len(gfns), dtype=np.uint64), np.zeros(len(gfns), dtype=np.int32))
        pages = ffi.cast("uint8_t **", writable("uint64_t[]", mapping.addresses))
        errors = writable("int32_t[]", mapping.errors)
        mapped = lib.de_client_map(self.handle, domid, False, readable("uint32_t[]", gfns), len(gfns), pages, errors)
        if mapped == -ESRCH:
            mapping.errors[:] = mapped
        else:
            check_errno(mapped, f"mapping pages of domain {domid}")
        try:
            yield mapping
        finally:
            lib.de_client_unmap(self.handle, as_addresses(mapping.addresses), len(gfns))

    def claim(self, domid: int, frames: int) -> bool:
        return bool(lib.de_client_claim(self.handle, domid, frames) == 0)

    def accounting(self) -> MachineAccounting:
        result = ffi.new("struct de_machine_accounting *")
        check_errno(lib.de_client_account(self.handle, result), "asking the machine for its accounts")
        names = MachineAccounting.__dataclass_fields__
        return MachineAccounting(**{name: int(getattr(result, name)) for name in names})

    def resident_bytes(self) -> int:
        """What the kernel says the frames really take."""
        return os.fstat(lib.de_client_fd(self.handle)).st_blocks * 512

    def start_program(self, domid: int, options: ProgramOptions) -> int:
        """A guest program in the machine, which gets a copy of what the pages hold. Its number."""
        c_options, kept = c_program_options(options)
        contents, program = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        pages = as_addresses(options.content)
        added = lib.de_client_contents_add_pages(self.handle, pages, len(options.content), contents)
        check_errno(added, "copying a guest's contents to the machine")
        started = lib.de_client_program_start(self.handle, domid, c_options, contents[0], program)
        lib.de_client_contents_remove(self.handle, contents[0])
        check_errno(started, f"starting a guest program in domain {domid}")
        del kept
        return int(program[0])

    def read_program(self, program: int) -> ProgramResult:
        """Its counters up to now."""
        result = ffi.new("struct de_program_result *")
        check_errno(lib.de_client_program_read(self.handle, program, result), f"reading program {program}")
        return program_result(result)

    def stop_program(self, program: int) -> tuple[ProgramResult, NDArray[np.uint64]]:
        """Ends it: its counters, and its latest fault latencies in nanoseconds."""
        result, samples = ffi.new("struct de_program_result *"), np.zeros(1 << 15, dtype=np.uint64)
        stopped = lib.de_client_program_stop(
            self.handle, program, result, writable("uint64_t[]", samples), len(samples)
        )
        check_errno(stopped, f"stopping program {program}")
        return program_result(result), samples[: result.samples]

    def shut_down(self) -> None:
        """Ends the machine's process, and every guest."""
        check_errno(lib.de_client_shut_down(self.handle), "ending the machine")

    def close(self) -> None:
        """Hangs up. Nothing mapped may be in use any more."""
        ffi.release(self.handle)


class MachineProcess:
    """Starts diffengine-machine, and ends it with the block. It also ends when this process does."""

    def __init__(self, frames: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="diffengine-")
        self.socket_path = Path(self._directory.name) / "machine"
        command = [str(PROGRAM), "--socket", str(self.socket_path), "--frames", str(frames)]
        command += ["--parent", str(os.getpid())]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        if self._process.stdout is None or self._process.stdout.readline() != "ready\n":
            _, reason = self._process.communicate()
            self._directory.cleanup()
            raise MachineError(reason.strip() or "diffengine-machine did not start")

    def connect(self) -> MachineClient:
        return MachineClient(self.socket_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """Its exit status."""
        self._process.terminate()
        self._process.communicate()
        self._directory.cleanup()
        return self._process.returncode
