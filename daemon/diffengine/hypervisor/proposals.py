# SPDX-License-Identifier: GPL-2.0-or-later
"""What is the same about every pager that takes proposals in batches: here, or through a queue. protocol.Pager."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.protocol import (
    Domids,
    Gfns,
    NewObjects,
    ObjectForms,
    ObjectIds,
    PageEntries,
    Results,
    StoreFullError,
)
from diffengine.native import NATIVE, NONE, Binding, Encoding, FullError, NativeError, check, writable


class ProposingPager(ABC):
    """Its subclasses say how a batch gets to the pager."""

    @abstractmethod
    def _propose(self, proposal: str, **arrays: NDArray[Any]) -> Results:
        """Carries out de_pager_`proposal`(), its arrays in the order of that contract."""

    @abstractmethod
    def _read_states(self, domid: int, first: int, count: int, *entries: Any) -> int:
        """As de_pager_states()."""

    @abstractmethod
    def _put(self, objects: NewObjects, ids: ObjectIds) -> None:
        """Puts objects. Their ids, also those of the first ones when a later one raises NativeError."""

    @abstractmethod
    def describe(self, objects: ObjectIds) -> ObjectForms: ...

    @abstractmethod
    def release(self, objects: ObjectIds) -> None: ...

    def watch(self, domids: Domids, gfns: Gfns) -> Results:
        return self._propose("watch", domains=domids, gfns=gfns)

    def unshare(self, domids: Domids, gfns: Gfns) -> Results:
        return self._propose("unshare", domains=domids, gfns=gfns)

    def evict(self, domids: Domids, gfns: Gfns, objects: ObjectIds) -> Results:
        return self._propose("evict", domains=domids, gfns=gfns, objects=objects)

    def share(self, source_domids: Domids, source_gfns: Gfns, client_domids: Domids, client_gfns: Gfns) -> Results:
        return self._propose(
            "share",
            domains=source_domids,
            gfns=source_gfns,
            client_domains=client_domids,
            client_gfns=client_gfns,
        )

    def swap_out(self, objects: ObjectIds) -> Results:
        return self._propose("swap_out", objects=objects)

    def states(self, domid: int, first: int, count: int) -> PageEntries:
        entries = PageEntries(
            np.zeros(count, dtype=np.uint8), np.full(count, NONE, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
        )
        status = self._read_states(
            domid,
            first,
            count,
            writable("uint8_t[]", entries.states),
            writable("uint32_t[]", entries.objects),
            writable("uint32_t[]", entries.generations),
        )
        if status != NATIVE.lib.DE_NOT_FOUND:
            check(status, f"reading the page table of domain {domid}")
        return entries

    def put(self, objects: NewObjects) -> ObjectIds:
        """See protocol.Pager."""
        ids: ObjectIds = np.full(len(objects.sizes), NONE, dtype=np.uint32)
        try:
            self._put(objects, ids)
        except NativeError as error:
            self.release(ids)
            if isinstance(error, FullError):
                raise StoreFullError("the store is full; allow it more memory") from error
            raise
        return ids

    def put_model(self, model: bytes) -> int:
        payload = np.frombuffer(model, dtype=np.uint8)
        nothing = np.full(1, NONE, dtype=np.uint32)
        ids = self.put(
            NewObjects(
                payloads=np.array([payload.ctypes.data], dtype=np.uint64),
                sizes=np.array([len(model)], dtype=np.uint16),
                encodings=np.array([Encoding.MODEL], dtype=np.uint8),
                checksums=np.zeros(1, dtype=np.uint32),
                reference_ids=nothing,
                reference_rows=nothing,
                model_id=NONE,
            )
        )
        return int(ids[0])


def percentiles_us(binding: Binding, latency: Any) -> dict[str, float]:
    """p50 and p99 of a struct de_latency in microseconds."""
    pointer = binding.ffi.addressof(latency)
    return {name: binding.lib.de_latency_quantile(pointer, q) / 1e3 for name, q in (("p50", 0.5), ("p99", 0.99))}
