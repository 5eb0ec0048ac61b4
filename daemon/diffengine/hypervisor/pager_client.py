# SPDX-License-Identifier: GPL-2.0-or-later
"""The pager in a process of its own, as the daemon proposes to it: protocol.Pager through the queue of pager_queue.h.

Arrays go into memory that both processes share, one command at a time. When the pager ends, commands raise
HostGoneError; a client that connects to its successor starts with no objects of its own, and finds what is out by
`states`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine._native import ffi, lib
from diffengine.hypervisor.proposals import ProposingPager, percentiles_us
from diffengine.hypervisor.protocol import (
    Addresses,
    HostGoneError,
    NewObjects,
    ObjectForms,
    ObjectIds,
    PagerCounters,
    Results,
)
from diffengine.native import NATIVE, NONE, Bytes, Encoding, NativeError, as_addresses, check, readable, writable

BATCH: int = lib.DE_QUEUE_BATCH
REBUILD_PAGES: int = lib.DE_QUEUE_PAGES
MOST_REFERENCES: int = lib.DE_STORE_MAX_REFERENCES
PAGE_BYTES: int = lib.DE_PAGE_SIZE
PROPOSALS: dict[str, tuple[int, str]] = {
    "watch": (lib.DE_COMMAND_WATCH, "watching pages"),
    "unshare": (lib.DE_COMMAND_UNSHARE, "making pages private"),
    "evict": (lib.DE_COMMAND_EVICT, "evicting pages"),
    "share": (lib.DE_COMMAND_SHARE, "sharing pages"),
    "swap_out": (lib.DE_COMMAND_SWAP_OUT, "swapping out"),
    "release": (lib.DE_COMMAND_RELEASE, "releasing objects"),
}


def check_answer(client: Any, status: int, doing: str) -> None:
    """As check(), in the pager's own words if it has any: its errno is not this process's."""
    text = ffi.string(lib.de_queue_area(client).refusal).decode(errors="replace")
    if status in (lib.DE_OK, lib.DE_FULL) or not text:
        check(status, doing)
    else:
        raise NativeError(f"{doing}: {text}")


class _Area:
    """The command's arrays in shared memory, as numpy sees them."""

    def __init__(self, area: Any) -> None:
        self.domains = _array(area.domains, np.dtype(np.uint16))
        self.gfns = _array(area.gfns, np.dtype(np.uint32))
        self.client_domains = _array(area.client_domains, np.dtype(np.uint16))
        self.client_gfns = _array(area.client_gfns, np.dtype(np.uint32))
        self.objects = _array(area.objects, np.dtype(np.uint32))
        self.results = _array(area.results, np.dtype(np.int32))
        self.encodings = _array(area.encodings, np.dtype(np.uint8))
        self.sizes = _array(area.sizes, np.dtype(np.uint16))
        self.checksums = _array(area.checksums, np.dtype(np.uint32))
        self.reference_counts = _array(area.reference_counts, np.dtype(np.uint8))
        self.references = _array(area.references, np.dtype(np.uint32)).reshape(BATCH, MOST_REFERENCES)


def _array(field: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(ffi.buffer(field), dtype=dtype)


def _batches(count: int, most: int = BATCH) -> Iterator[slice]:
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))


class PagerInUseError(NativeError):
    """Another client proposes to this pager, or one that was killed is not quite gone yet."""


class PagerClient(ProposingPager):
    """One connection; belongs to one thread. See protocol.Pager for the methods that it shares with others."""

    def __init__(self, state_directory: Path) -> None:
        """Connects to the pager of that state directory. HostGoneError: there is none."""
        result = ffi.new("struct de_queue_client **")
        status = lib.de_queue_connect(str(state_directory).encode(), result)
        if status == lib.DE_NOT_FOUND:
            raise HostGoneError(f"no pager runs in {state_directory}; start diffengine-pager first")
        if status == lib.DE_BUSY:
            raise PagerInUseError(f"the pager in {state_directory} is in use by another process; end that first")
        check(status, f"connecting to the pager in {state_directory}")
        self._store_domain = state_directory / "store-domain"
        self._client = ffi.gc(result[0], lib.de_queue_client_free)
        self._area = _Area(lib.de_queue_area(self._client))

    def close(self) -> None:
        """Hangs up. Objects that are no page's are released when the next client connects."""
        ffi.release(self._client)

    def _call(self, command: int, count: int, doing: str) -> None:
        status = lib.de_queue_call(self._client, command, count)
        if status == lib.DE_NOT_FOUND and not lib.de_queue_alive(self._client):
            raise HostGoneError(f"the pager is gone ({doing}); start again when it is back")
        check_answer(self._client, status, doing)

    def _call_domain(self, command: int, domid: int, doing: str) -> None:
        self._area.domains[0] = domid
        self._call(command, 1, doing)

    def store_in_domain(self) -> bool:
        """Whether the store lies in frames of a domain's, not in dom0's memory."""
        return self._store_domain.exists()

    def add_domain(self, domid: int, gfns: int) -> None:
        """A domain that this pager has already, or has taken over, stays as it is."""
        self._area.gfns[0] = gfns
        if self.has(domid):
            return
        self._call_domain(lib.DE_COMMAND_ADD_DOMAIN, domid, f"taking over the paging of domain {domid}")

    def has(self, domid: int) -> bool:
        """Whether it is the domain's pager; not any more once an operator had it released."""
        return bool(lib.de_queue_states(self._client, domid, 0, 0, ffi.NULL, ffi.NULL, ffi.NULL) != lib.DE_NOT_FOUND)

    def remove_domain(self, domid: int) -> None:
        """Forgets a domain that is gone, or whose pages are all restored."""
        self._call_domain(lib.DE_COMMAND_REMOVE_DOMAIN, domid, f"ending the paging of domain {domid}")

    def set_device_model(self, domid: int) -> None:
        """From now on the domain is evicted from only as its hold table allows; see de_pager_set_device_model()."""
        self._call_domain(lib.DE_COMMAND_DEVICE_MODEL, domid, f"making the hold table of domain {domid}")

    def restore(self, domid: int) -> None:
        """Loads every page of a domain that is out."""
        self._call_domain(lib.DE_COMMAND_RESTORE, domid, f"bringing back the pages of domain {domid}")

    def restore_part(self, domid: int, first: int, count: int) -> None:
        """The same of `count` gfns from `first` on."""
        self._area.gfns[:2] = first, count
        self._call_domain(lib.DE_COMMAND_RESTORE_PART, domid, f"bringing back pages of domain {domid}")

    def pages_out(self, domid: int) -> int:
        """How many of the domain's pages have no frame; 0 for one that the pager does not have."""
        pages = ffi.new("uint32_t *")
        status = lib.de_queue_count_out(self._client, domid, pages)
        if status != lib.DE_NOT_FOUND:
            check(status, f"reading the page table of domain {domid}")
        return int(pages[0])

    def failure(self, domid: int) -> str:
        """Why the domain was halted, "" if it was not."""
        text = ffi.new("char[]", 256)
        lib.de_queue_failure(self._client, domid, text, len(text))
        return bytes(ffi.string(text)).decode(errors="replace")

    def _read_states(self, domid: int, first: int, count: int, *entries: Any) -> int:
        """Read from the page table's file: the pager does not notice."""
        return int(lib.de_queue_states(self._client, domid, first, count, *entries))

    def _propose(self, proposal: str, **arrays: NDArray[Any]) -> Results:
        """One command per batch; `arrays` by their names in the area."""
        command, doing = PROPOSALS[proposal]
        count = len(next(iter(arrays.values())))
        results = np.empty(count, dtype=np.int32)
        for batch in _batches(count):
            size = batch.stop - batch.start
            for name, array in arrays.items():
                getattr(self._area, name)[:size] = array[batch]
            self._call(command, size, doing)
            results[batch] = self._area.results[:size]
        return results

    def _put(self, objects: NewObjects, ids: ObjectIds) -> None:
        done = 0
        while done < len(ids):
            done += self._put_batch(objects, done, ids)

    def _put_batch(self, objects: NewObjects, first: int, ids: ObjectIds) -> int:
        """Puts as many objects from `first` on as the area holds; how many."""
        area = self._area
        sizes = np.ascontiguousarray(objects.sizes[first : first + BATCH])
        addresses = np.ascontiguousarray(objects.payloads[first : first + BATCH])
        count = self._gather(addresses, sizes)
        rows = slice(first, first + count)
        area.encodings[:count] = objects.encodings[rows]
        area.sizes[:count] = sizes[:count]
        area.checksums[:count] = objects.checksums[rows]
        self._set_references(objects, rows, ids)
        self._call(lib.DE_COMMAND_PUT, count, "putting objects into the store")
        ids[rows] = area.objects[:count]
        failed = area.results[:count][area.results[:count] != lib.DE_OK]
        if len(failed):
            check(int(failed[0]), "putting objects into the store")
        return count

    def _gather(self, addresses: Addresses, sizes: NDArray[np.uint16]) -> int:
        return int(
            lib.de_queue_gather(self._client, as_addresses(addresses), readable("uint16_t[]", sizes), len(sizes))
        )

    def _set_references(self, objects: NewObjects, rows: slice, ids: ObjectIds) -> None:
        """A model first, where there is one, then the page that the object stands on."""
        count = rows.stop - rows.start
        within = objects.reference_rows[rows]
        earlier = (within != NONE) & (within < rows.start)
        references = objects.reference_ids[rows].copy()
        references[earlier] = ids[within[earlier]]
        same = (within != NONE) & ~earlier
        references[same] = (within[same] - np.uint32(rows.start)) | np.uint32(lib.DE_QUEUE_IN_BATCH)
        dense = objects.encodings[rows] == Encoding.DENSE
        has_page = (objects.reference_ids[rows] != NONE) | (within != NONE)
        self._area.references[:count, 0] = np.where(dense, np.uint32(objects.model_id), references)
        self._area.references[:count, 1] = references
        self._area.reference_counts[:count] = dense.astype(np.uint8) + has_page.astype(np.uint8)

    def release(self, objects: ObjectIds) -> None:
        self._propose("release", objects=objects[objects != NONE])

    def rebuild(self, objects: ObjectIds, pages: Bytes) -> NDArray[np.bool_]:
        """See protocol.Pager. False also for what is in swap."""
        right = np.zeros(len(objects), dtype=np.bool_)
        for batch in _batches(len(objects), REBUILD_PAGES):
            size = batch.stop - batch.start
            self._area.objects[:size] = objects[batch]
            self._call(lib.DE_COMMAND_REBUILD, size, "rebuilding pages")
            right[batch] = self._area.results[:size] == lib.DE_OK
            into = pages[batch.start * PAGE_BYTES : batch.stop * PAGE_BYTES]
            lib.de_queue_pages(self._client, writable("uint8_t[]", into), size)
        return right

    def describe(self, objects: ObjectIds) -> ObjectForms:
        """See protocol.Pager."""
        count = len(objects)
        forms = ObjectForms(np.empty(count, np.uint8), np.empty(count, np.uint16), np.empty(count, np.bool_))
        for batch in _batches(count):
            size = batch.stop - batch.start
            self._area.objects[:size] = objects[batch]
            self._call(lib.DE_COMMAND_DESCRIBE, size, "asking how objects are kept")
            forms.encodings[batch] = self._area.encodings[:size]
            forms.sizes[batch] = self._area.sizes[:size]
            forms.patched[batch] = self._area.reference_counts[:size] != 0
        return forms

    def compact(self) -> int:
        self._call(lib.DE_COMMAND_COMPACT, 1, "compacting the store")
        return int(self._area.objects[0]) * PAGE_BYTES

    def counters(self) -> PagerCounters:
        page = ffi.new("struct de_pager_page *")
        check(lib.de_queue_statistics(self._client, page), "reading the pager's statistics")
        own, store, swap = page.pager, page.store, page.swap
        return PagerCounters(
            evicted=int(own.evicted),
            evictions=int(own.evictions),
            loads=int(own.loads),
            touches=int(own.touches),
            corrupt=int(own.corrupt),
            objects=int(store.objects),
            store_bytes=int(store.populated_bytes),
            table_bytes=int(own.table_bytes + store.table_bytes + swap.table_bytes),
            swap_bytes=int(swap.used) * PAGE_BYTES,
            cpu_s=page.cpu_ns / 1e9,
            rebuild_us=percentiles_us(NATIVE, own.rebuild),
            fault_us=percentiles_us(NATIVE, own.fault),
            swap_limit_bytes=int(swap.slots) * PAGE_BYTES,
        )
