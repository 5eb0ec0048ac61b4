# SPDX-License-Identifier: GPL-2.0-or-later
"""What the embedded machine is to any of its users: domains to make, pages to map, accounts. protocol.Host.

The machine's functions stand in machine.h, for users in the same process, and in machine_client.h, for those in
another, under the same names but for a prefix.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from diffengine.errors import DiffengineError
from diffengine.hypervisor.protocol import Capabilities, DomainFrames, DomainInfo, Gfns, HostGoneError, HostMemory
from diffengine.native import NATIVE, Addresses, Binding, as_addresses, readable, writable

LIST_BATCH = 256
MOST_SHARERS: int = NATIVE.lib.DE_SHARE_MAX_GFNS
# It needs one; claims take of them while they grow.
LEAST_UNCLAIMED = 32


class MachineError(DiffengineError):
    """The embedded machine refused: too little memory, no such domain."""


def check_errno(result: int, doing: str) -> int:
    if result == -errno.ECONNRESET:
        raise HostGoneError(f"the machine is gone ({doing}); start again when it is back")
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


class PagedMachine(Protocol):
    """A machine, here or in a process of its own, whose domains a pager can serve."""

    def hypervisor(self) -> Any: ...


class EmbeddedHost:
    """protocol.Host on the functions with one prefix, `handle` being what they take first."""

    def __init__(self, binding: Binding, prefix: str, handle: Any) -> None:
        self.binding = binding
        self.handle = handle
        self._prefix = prefix

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self.binding.lib, self._prefix + name)(self.handle, *arguments)

    def hypervisor(self) -> Any:
        """struct de_hypervisor of this machine, or connection."""
        return self._call("hypervisor")

    def create_domain(self, pages: Addresses, uuid: str | None = None) -> int:
        """A domain whose gfns 0 .. n - 1 hold copies of n pages. Its domid. uuid: of one that comes again."""
        null, domid = self.binding.ffi.NULL, self.binding.ffi.new("uint16_t *")
        if uuid is None:
            created = self._call("domain_create", len(pages), domid)
        else:
            c_uuid = self.binding.ffi.new("struct de_uuid *", [list(UUID(uuid).bytes)])
            created = self._call("domain_create_as", len(pages), c_uuid, domid)
        check_errno(created, "creating a domain")
        populated = self._call("populate", domid[0], null, as_addresses(pages), len(pages), null)
        if check_errno(populated, "populating a domain") != len(pages):
            self._call("domain_destroy", domid[0])
            raise MachineError(f"the machine has no frames left for {len(pages) - populated} pages; make it larger")
        return int(domid[0])

    def destroy_domain(self, domid: int) -> None:
        check_errno(self._call("domain_destroy", domid), f"destroying domain {domid}")

    def domain_uuid(self, domid: int) -> UUID | None:
        """None: it is gone."""
        hypervisor, uuid = self.hypervisor(), self.binding.ffi.new("struct de_uuid *")
        result = int(hypervisor.operations.domain_uuid(hypervisor.context, domid, uuid))
        if result == -errno.ECONNRESET:
            check_errno(result, f"asking for the UUID of domain {domid}")
        return UUID(bytes=bytes(uuid.bytes)) if result == 0 else None

    def capabilities(self) -> Capabilities:
        return Capabilities(
            sharing=True,
            paging=True,
            claims=True,
            log_dirty=True,
            most_sharers=MOST_SHARERS,
            least_unclaimed=LEAST_UNCLAIMED,
        )

    def domains(self) -> tuple[DomainInfo, ...]:
        """All domains of the machine, whoever made them."""
        found: list[DomainInfo] = []
        infos = self.binding.ffi.new("struct de_domain_info[]", LIST_BATCH)
        while True:
            first = found[-1].domid + 1 if found else 1
            count = check_errno(self._call("domain_list", first, infos, LIST_BATCH), "listing the domains")
            found += [DomainInfo(int(info.domain), int(info.gfns)) for info in infos[0:count]]
            if count < LIST_BATCH:
                return tuple(found)

    def memory(self) -> HostMemory:
        all_of_it = self.accounting()
        return HostMemory(**{name: getattr(all_of_it, name) for name in HostMemory.__dataclass_fields__})

    @contextmanager
    def map(self, domid: int, gfns: Gfns) -> Iterator[Mapping]:
        mapping = Mapping(np.zeros(len(gfns), dtype=np.uint64), np.zeros(len(gfns), dtype=np.int32))
        pages = self.binding.ffi.cast("uint8_t **", writable("uint64_t[]", mapping.addresses))
        errors = writable("int32_t[]", mapping.errors)
        mapped = self._call("map", domid, False, readable("uint32_t[]", gfns), len(gfns), pages, errors)
        if mapped == -errno.ESRCH:
            mapping.errors[:] = mapped
        else:
            check_errno(mapped, f"mapping pages of domain {domid}")
        try:
            yield mapping
        finally:
            self._call("unmap", as_addresses(mapping.addresses), len(gfns))

    def _attempt(self, doing: str, name: str, *arguments: Any) -> bool:
        """Did the machine do it. That it is gone is no refusal."""
        result = int(self._call(name, *arguments))
        if result == -errno.ECONNRESET:
            check_errno(result, doing)
        return result == 0

    def claim(self, domid: int, frames: int) -> bool:
        return self._attempt(f"claiming memory for domain {domid}", "claim", domid, frames)

    def domain_frames(self, domid: int) -> DomainFrames | None:
        result = self.binding.ffi.new("struct de_domain_accounting *")
        if not self._attempt(f"asking for the frames of domain {domid}", "domain_account", domid, result):
            return None
        return DomainFrames(own=int(result.private_gfns), claimed=int(result.claimed))

    def log_dirty(self, domid: int, on: bool) -> bool:
        name = "log_dirty_enable" if on else "log_dirty_disable"
        return self._attempt(f"logging the writes of domain {domid}", name, domid)

    def take_dirty(self, domid: int, gfns: int) -> NDArray[np.bool_] | None:
        bits = np.zeros(-(-gfns // 8), dtype=np.uint8)
        c_bits = writable("uint8_t[]", bits)
        if not self._attempt(f"asking what domain {domid} wrote", "log_dirty_read", domid, True, 0, gfns, c_bits):
            return None
        return np.unpackbits(bits, count=gfns, bitorder="little").view(np.bool_)

    def accounting(self) -> MachineAccounting:
        result = self.binding.ffi.new("struct de_machine_accounting *")
        # In the same process it can't fail, and gives nothing back.
        check_errno(self._call("account", result) or 0, "asking the machine for its accounts")
        names = MachineAccounting.__dataclass_fields__
        return MachineAccounting(**{name: int(getattr(result, name)) for name in names})

    def resident_bytes(self) -> int:
        """What the kernel says the frames really take."""
        return os.fstat(self._call("fd")).st_blocks * 512
