# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen host as the engine sees it: protocol.Host."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ESRCH
from mmap import PROT_READ
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.protocol import Addresses, Capabilities, DomainFrames, DomainInfo, Gfns, HostMemory, Life
from diffengine.hypervisor.xen import log_dirty
from diffengine.hypervisor.xen.connection import DOM0, Connection, XenDomain, XenError
from diffengine.hypervisor.xen.probe import Abilities, probe
from diffengine.native import PAGE_BYTES

# A sharers' list in Xen has 256 buckets under one lock.
MOST_SHARERS = 256

# The kernel maps 512 gfns at a time (privcmd.c, a page of them), and says that a batch has pages to wait for only if
# the *last* of such a block is one that is out: then the library asks again until somebody has brought it in. So the
# last of each block is a gfn that no guest has memory at, which is refused with EINVAL and can never be out.
BLOCK = 512
HOLE = 0xFFFF_FFFF

# Above this, physical addresses of a guest are memory up to the last; below it, its memory ends at what it may have,
# and only special pages and devices come behind.
FOUR_GIB = 1 << 20

# Xen's mem_sharing.c in a release build: a page_sharing_info of 32 bytes for each frame and a gfn_info of 32 for each
# gfn; either takes 48 with the allocator's own.
SHARING_ALLOCATION_BYTES = 48
# native/xen/adapter.c refuses to nominate pages for sharing with less: Xen would stop when it runs out.
LEAST_UNCLAIMED = 1024


@dataclass(frozen=True)
class Mapping:
    """protocol.MappedPages."""

    addresses: Addresses
    errors: NDArray[np.int32]


def memory_gfns(domain: XenDomain, highest_gfn: int) -> int:
    """How far the domain's memory reaches. Its special pages, just below 4 GiB, would make a small one look large."""
    if highest_gfn >= FOUR_GIB:
        return highest_gfn + 1
    return min(highest_gfn + 1, domain.max_pages)


def sharing_metadata_bytes(frames: int, saved: int) -> int:
    """frames are shared by frames + saved gfns."""
    return SHARING_ALLOCATION_BYTES * (frames + frames + saved)


def may_be_worked_on(domain: XenDomain) -> bool:
    """Xen can take pages of HVM and PVH domains with nested paging. One without vCPUs is a tool's, and never runs."""
    guest = domain.domid != DOM0 and not domain.is_store
    return guest and domain.hvm and domain.hap and not domain.dying and domain.vcpus > 0


def domain_key(domain: XenDomain) -> tuple[int, UUID]:
    """Domids come again."""
    return domain.domid, domain.uuid


def in_blocks(gfns: Gfns) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """The gfns with a hole at the end of each block of the kernel's, and where each of them is now."""
    places = np.arange(len(gfns), dtype=np.intp)
    places += places // (BLOCK - 1)
    padded = np.full(int(places[-1]) + 2 if len(gfns) else 0, HOLE, dtype=np.uint64)
    padded[places] = gfns
    return padded, places


class XenHost:
    """protocol.Host over libxenctrl and libxenforeignmemory. Close it; mappings go when their block ends."""

    def __init__(self) -> None:
        """Raises XenUnavailableError, which says what to do."""
        self._connection = Connection()
        self._translating: set[tuple[int, UUID]] = set()
        try:
            self._abilities = probe(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def abilities(self) -> Abilities:
        return self._abilities

    def capabilities(self) -> Capabilities:
        return Capabilities(
            sharing=self._abilities.sharing,
            paging=self._abilities.paging,
            claims=True,
            log_dirty=True,
            most_sharers=MOST_SHARERS,
            least_unclaimed=LEAST_UNCLAIMED,
        )

    def domains(self) -> tuple[DomainInfo, ...]:
        found = []
        domains = self._connection.domains()
        for domain in domains:
            if may_be_worked_on(domain) and (gfns := self.gfns(domain)):
                found.append(DomainInfo(domain.domid, gfns, domain.emulated, self._life(domain)))
        self._translating &= {domain_key(domain) for domain in domains}
        return tuple(found)

    def _life(self, domain: XenDomain) -> Life:
        """An OS that has turned paging on is not asked again."""
        if domain.shut_down:
            return Life.STOPPED
        key = domain_key(domain)
        if key not in self._translating and self._connection.translates(domain):
            self._translating.add(key)
        return Life.RUNNING if key in self._translating else Life.STARTING

    def gfns(self, domain: XenDomain) -> int:
        """The size of its memory's address space, in pages; 0 if it is gone."""
        try:
            return memory_gfns(domain, self._connection.highest_gfn(domain.domid))
        except XenError as error:
            if error.error == ESRCH:
                return 0
            raise

    def memory(self) -> HostMemory:
        """What guests and Xen itself have. dom0's memory is not for guests, whatever dom0 does with it, and what the
        pager's store takes is counted there."""
        physical = self._connection.physical_memory()
        domains = self._connection.domains()
        ours = sum(domain.pages for domain in domains if domain.domid == DOM0 or domain.is_store)
        frames, saved = self._connection.sharing_counts()
        return HostMemory(
            frames=physical.total - ours,
            free=physical.free,
            used=physical.total - physical.free - ours,
            claimed=physical.claimed,
            sharing_saved=saved,
            metadata_bytes=sharing_metadata_bytes(frames, saved),
        )

    @contextmanager
    def map(self, domid: int, gfns: Gfns) -> Iterator[Mapping]:
        """See protocol.Host. A page that is out gives -ENOENT, and Xen asks its pager for it all the same."""
        padded, places = in_blocks(gfns)
        if not len(padded):
            yield Mapping(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32))
            return
        errors = np.zeros(len(padded), dtype=np.int32)
        base = self._map(domid, padded, errors)
        try:
            offsets = places.astype(np.uint64) * np.uint64(PAGE_BYTES)
            page_errors = errors[places]
            addresses = np.where(page_errors == 0, offsets + np.uint64(base or 0), np.uint64(0))
            yield Mapping(addresses, page_errors)
        finally:
            if base:
                self._unmap(base, len(padded))

    def _map(self, domid: int, gfns: NDArray[np.uint64], errors: NDArray[np.int32]) -> int:
        """The address of the first page. Errors are negative errno values."""
        ffi = self._connection.libraries.ffi
        pointer = self._connection.libraries.foreignmemory.xenforeignmemory_map(
            self._connection.memory,
            domid,
            PROT_READ,
            len(gfns),
            _pointer(ffi, "uint64_t[]", gfns),
            _pointer(ffi, "int[]", errors, True),
        )
        if pointer:
            return int(ffi.cast("uintptr_t", pointer))
        if ffi.errno != ESRCH:
            raise XenError(f"mapping {len(gfns)} pages of domain {domid}", ffi.errno)
        errors[:] = -ESRCH
        return 0

    def _unmap(self, base: int, pages: int) -> None:
        ffi = self._connection.libraries.ffi
        self._connection.libraries.foreignmemory.xenforeignmemory_unmap(
            self._connection.memory, ffi.cast("void *", base), pages
        )

    def claim(self, domid: int, frames: int) -> bool:
        """See protocol.Host. Xen takes a new promise only when the former one was taken back."""
        return self._connection.attempt("xc_domain_claim_pages", domid, frames) >= 0

    def domain_frames(self, domid: int) -> DomainFrames | None:
        for domain in self._connection.domains():
            if domain.domid == domid:
                return DomainFrames(own=domain.pages, claimed=domain.outstanding_pages)
        return None

    def log_dirty(self, domid: int, on: bool) -> bool:
        return (log_dirty.enable if on else log_dirty.disable)(self._connection, domid)

    def take_dirty(self, domid: int, gfns: int) -> NDArray[np.bool_] | None:
        return log_dirty.take(self._connection, domid, gfns)


def _pointer(ffi: Any, kind: str, array: NDArray[Any], writes: bool = False) -> Any:
    return ffi.from_buffer(kind, array, require_writable=writes)
