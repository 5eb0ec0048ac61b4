# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine needs of a host: a hypervisor whose frames it looks at, and a pager that it proposes to.

Adapters implement these protocols. All calls take batches: arrays of gfns, or of (domid, gfn) pairs, and give arrays
back, so that a call may as well go through a queue to another process. What a host can't do is a *capability*: the
engine leaves the technique out, and counts why. An adapter that is asked for what its capabilities exclude answers
UNABLE for each page.

Every method raises HostGoneError when the other side is gone for good; a restarted engine starts from nothing and
finds its place again from `domains` and `states`. Errors of single pages are values in the arrays, never exceptions.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffengine.array_enum import ArrayEnum
from diffengine.errors import DiffengineError

Addresses = NDArray[np.uint64]
Domids = NDArray[np.uint16]
Gfns = NDArray[np.uint32]
ObjectIds = NDArray[np.uint32]
Results = NDArray[np.int32]


class HostGoneError(DiffengineError):
    """The hypervisor's or the pager's other end does not answer any more. Who starts us again may try later."""

    exit_code = 3


class StoreFullError(DiffengineError):
    """The pager's store takes no more objects. What was put before stays."""


class PageState(ArrayEnum):
    """The pager's entry of a page (enum de_page_state)."""

    RESIDENT = 0  # not in the pager's hands: ram, shared, or a hole
    WATCHED = 1  # nominated: a touch makes it RESIDENT; a page given back may stay so until an eviction is tried
    EVICTING = 2
    EVICTED = 3
    LOADING = 4
    NOMINATING = 5


class Outcome(ArrayEnum):
    """What became of one page of a proposal (enum de_proposal). All but DONE: its content stays where it was."""

    DONE = 0
    BUSY = -1  # mapped, shared, special, or on its way in or out
    TOUCHED = -2  # the guest touched it, or somebody mapped it, since it was watched
    DIFFERS = -3  # the object, or the partner, does not have the page's bytes
    NO_OBJECT = -4
    NO_PAGE = -5  # a hole, or evicted already
    NO_DOMAIN = -6  # gone, or halted
    INVALID = -7
    STALE = -8  # written while it was being shared
    MAPPED = -9
    FULL = -10  # its frame has as many sharers as it may
    NO_MEMORY = -11  # the hypervisor has no room for metadata, or no frame for a copy
    FAILED = -12
    UNABLE = -13  # the host can't do that
    SWAPPED = -14  # the object is in swap, or stands on one that is: put the content anew
    NEEDED = -15  # swap-out: an object in memory refers to it, and must go first
    SWAP_FULL = -16
    DISK = -17  # the disk refused the write
    HELD = -18  # the domain's device model has the page mapped
    NO_HOLDS = -19  # the domain has a device model that does not say what it maps
    IN_KERNEL = -20  # the guest stayed in its kernel, where its pages are not watched, or is paused


@dataclass(frozen=True)
class Capabilities:
    """What a host can do.

    sharing: live pages may share a frame (Xen: Intel only). paging: pages can be watched and evicted. claims: free
    frames can be promised to domains. log_dirty: the hypervisor tells which pages a guest wrote. most_sharers: gfns on
    one frame, at most. least_unclaimed: frames that have to be free and unclaimed for pages to be shared, as the
    hypervisor's own memory comes from those. Whether there is swap, the pager's counters say.
    """

    sharing: bool
    paging: bool
    claims: bool
    log_dirty: bool
    most_sharers: int
    least_unclaimed: int


class Life(Enum):
    """How far a domain is. STARTING: none of its vCPUs has turned paging on yet: firmware, a boot loader. STOPPED: it
    has shut down, or is suspended, to be saved maybe."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class DomainInfo:
    """A domain that may be worked on. gfns: the size of its physical address space, in pages.

    device_model: a process of dom0 emulates devices for it, and may write to any page (holds.h).
    """

    domid: int
    gfns: int
    device_model: bool = False
    life: Life = Life.RUNNING


@dataclass(frozen=True)
class DomainFrames:
    """own: frames that are the domain's alone, so neither shared ones nor those of pages that are out. claimed: how
    many more are promised to it."""

    own: int
    claimed: int


@dataclass(frozen=True)
class HostMemory:
    """Frames of the host, and what the hypervisor's sharing costs.

    claimed: how many of the free ones are promised to some domain. sharing_saved: gfns that need no frame of their own
    because they share one.
    """

    frames: int
    free: int
    used: int
    claimed: int
    sharing_saved: int
    metadata_bytes: int


class MappedPages(Protocol):
    """Frames mapped read-only. As long as they are, they can be neither nominated nor evicted: be quick.

    addresses: 0 where errors is not 0. errors: -EINVAL a hole; -ENOENT evicted: a page that is known to be out must
    not be mapped, since that asks the pager to bring it in.
    """

    @property
    def addresses(self) -> Addresses: ...
    @property
    def errors(self) -> NDArray[np.int32]: ...


class Host(Protocol):
    """The hypervisor, as the engine sees it."""

    def capabilities(self) -> Capabilities: ...

    def domains(self) -> Sequence[DomainInfo]:
        """The domains that exist now; one may be gone before the next call."""

    def memory(self) -> HostMemory: ...

    def map(self, domid: int, gfns: Gfns) -> AbstractContextManager[MappedPages]:
        """Maps pages until the block ends. A domain that is gone gives -ESRCH for every page."""

    def domain_frames(self, domid: int) -> DomainFrames | None:
        """None: it is gone."""

    def claim(self, domid: int, frames: int) -> bool:
        """Promises the domain that it may have so many frames of its own in all; 0 takes the promise back.

        False: there is a promise already, or there are too few free frames that are promised to nobody, or it has as
        many. A promise is kept for every allocation for the domain: a copy on write, a load. As long as some of it is
        left, frames that the domain gives up go back into it.
        """

    def log_dirty(self, domid: int, on: bool) -> bool:
        """Has writes of the domain's vCPUs logged, or not any more. False: refused; somebody logs them already (a
        migration), or the domain is gone. Never turn off what somebody else has turned on."""

    def take_dirty(self, domid: int, gfns: int) -> NDArray[np.bool_] | None:
        """Which of the domain's first `gfns` pages its vCPUs wrote since this was asked last; a page that was made
        private counts. What dom0 wrote through a mapping is not in it, nor is a hole that was filled.

        None: the host could not tell, and there may be writes that nobody will hear of. If somebody else turns logging
        off and on, both lose bits, and no host can tell: so it must be off before a domain is saved or migrated.
        """


@dataclass(frozen=True)
class PageEntries:
    """The pager's entries of a range of gfns. objects: NONE for a page that is not out. A page's generation changes
    whenever it becomes resident again."""

    states: NDArray[np.uint8]
    objects: ObjectIds
    generations: NDArray[np.uint32]


@dataclass(frozen=True)
class NewObjects:
    """n pages encoded, to be put into the store. Each has at most one reference page: an object that is there already
    (reference_ids), or an earlier row of this very batch (reference_rows); NONE for neither."""

    payloads: Addresses
    sizes: NDArray[np.uint16]
    encodings: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    reference_ids: ObjectIds
    reference_rows: NDArray[np.uint32]
    model_id: int


@dataclass(frozen=True)
class ObjectForms:
    """How objects are kept. sizes: bytes of the payload, 0 if there is no such object. patched: stands on another
    page's object."""

    encodings: NDArray[np.uint8]
    sizes: NDArray[np.uint16]
    patched: NDArray[np.bool_]


@dataclass(frozen=True)
class PagerCounters:
    """Counters since the pager began, bytes of its memory, and percentiles of its latencies in microseconds.

    objects: in the store, models included.
    store_bytes: memory that the objects take, all losses included. table_bytes: page table, object tables.
    swap_bytes: in use, of swap_limit_bytes; both 0 without swap.
    """

    evicted: int
    evictions: int
    loads: int
    touches: int
    corrupt: int
    objects: int
    store_bytes: int
    table_bytes: int
    swap_bytes: int
    cpu_s: float
    rebuild_us: dict[str, float]
    fault_us: dict[str, float]
    swap_limit_bytes: int = 0


class Pager(Protocol):
    """The pager, which checks every proposal itself. Arrays of one call have one length. Results: Outcome."""

    def add_domain(self, domid: int, gfns: int) -> None:
        """Becomes the domain's pager. Raises DiffengineError if it can't be paged; see de_pager_add_domain()."""

    def states(self, domid: int, first: int, count: int) -> PageEntries:
        """Entries of gfns first .. first + count - 1. A domain that is gone: all RESIDENT."""

    def watch(self, domids: Domids, gfns: Gfns) -> Results:
        """Nominates pages, so that the next access shows. BUSY: shared, mapped, or special."""

    def share(self, source_domids: Domids, source_gfns: Gfns, client_domids: Domids, client_gfns: Gfns) -> Results:
        """Gives each client the frame of its source, after comparing them."""

    def unshare(self, domids: Domids, gfns: Gfns) -> Results:
        """Makes pages private, each with a frame of its own. NO_MEMORY: no frame left."""

    def evict(self, domids: Domids, gfns: Gfns, objects: ObjectIds) -> Results:
        """Evicts pages as objects, each rebuilt and compared first; watched or not. The page table takes a reference
        of its own on each object."""

    def put(self, objects: NewObjects) -> ObjectIds:
        """Puts objects, each with one reference that is the caller's. Raises StoreFullError, or NativeError if a
        reference is not there any more, or in swap; then none of them stays, and no id is valid."""

    def put_model(self, model: bytes) -> int:
        """Puts the model that dense objects are coded with; its object's id. Raises StoreFullError."""

    def release(self, objects: ObjectIds) -> None:
        """Gives up one of the caller's references on each; NONE is passed over."""

    def rebuild(self, objects: ObjectIds, pages: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Rebuilds n objects into pages (n * 4096 bytes). False: no such object any more."""

    def describe(self, objects: ObjectIds) -> ObjectForms:
        """How each object is kept, whoever put it."""

    def swap_out(self, objects: ObjectIds) -> Results:
        """Moves objects to disk, patches before what they refer to. NEEDED: one in memory refers to it. SWAP_FULL.
        DISK: it could not be written. INVALID: it is there already, or too small to gain by it. UNABLE: no swap."""

    def compact(self) -> int:
        """Moves objects together, so that frames come free; the bytes given back."""

    def counters(self) -> PagerCounters: ...


def no_results(count: int, outcome: Outcome) -> Results:
    """The same outcome for every page."""
    results: NDArray[Any] = np.full(count, outcome, dtype=np.int32)
    return results
