# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded machine in a process of its own (diffengine-machine), as one of its clients.

Contract: machine_client.h. A client's mappings go when it ends; domains, rings and programs stay with the machine.
"""

import errno
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.hypervisor.machine import EmbeddedHost, MachineError, check_errno
from diffengine.hypervisor.programs import ProgramOptions, ProgramResult, c_program_options, program_result
from diffengine.hypervisor.protocol import HostGoneError
from diffengine.hypervisor.scratch import scratch_directory
from diffengine.native import NATIVE, as_addresses, writable

PROGRAM = Path(__file__).parents[1] / "bin" / "diffengine-machine"


class MachineClient(EmbeddedHost):
    """A connection to a machine's process; protocol.Host. It may map pages, not write to them."""

    def __init__(self, socket_path: Path) -> None:
        result = ffi.new("struct de_machine_client **")
        connected = lib.de_client_connect(os.fsencode(socket_path), lib.DE_CLIENT_READER, result)
        if connected in (-errno.ENOENT, -errno.ECONNREFUSED):
            raise HostGoneError(f"no machine runs at {socket_path}; start diffengine-machine first")
        check_errno(connected, f"connecting to the machine at {socket_path}")
        super().__init__(NATIVE, "de_client_", ffi.gc(result[0], lib.de_client_free))

    def start_program(self, domid: int, options: ProgramOptions) -> int:
        """A guest program in the machine, which gets a copy of what the pages hold. Its number."""
        c_options, kept = c_program_options(NATIVE, options)
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
        self._directory = ExitStack()
        self.socket_path = self._directory.enter_context(scratch_directory()) / "machine"
        command = [str(PROGRAM), "--socket", str(self.socket_path), "--frames", str(frames)]
        command += ["--parent", str(os.getpid())]
        # A group of its own: Ctrl-C is for the command alone, which ends its processes in order.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
        self.pid = self._process.pid
        if self._process.stdout is None or self._process.stdout.readline() != "ready\n":
            _, reason = self._process.communicate()
            self._directory.close()
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
        self._directory.close()
        return self._process.returncode
