# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine tells of itself."""

from dataclasses import dataclass

import numpy as np

from diffengine.engine.pages import EVICTABLE, FUTILE, Domain, PageTable, Place
from diffengine.engine.reasons import Reason
from diffengine.native import NONE, PAGE_BYTES

TECHNIQUES = ("sharing", "patching", "compression", "swapping")


@dataclass(frozen=True)
class EngineReport:
    """At one moment. sweeps: completed visits of all memory; cycles: completed sharing cycles.

    saved_by: bytes that are not needed thanks to each technique, before what tables cost. pages: how many are where.
    refaults and touches by domid.
    """

    sweeps: int
    cycles: int
    passes: int
    cpu_s: float
    table_bytes: int
    saved_by: dict[str, int]
    pages: dict[str, int]
    refaults: dict[int, int]
    touches: dict[int, int]
    reasons: dict[str, int]


@dataclass(frozen=True)
class DomainReport:
    """Of one domain. pages: how many are where. saved_by: bytes, as in EngineReport; a frame that several domains
    share counts for each in proportion. reasons: None before its first complete sweep."""

    domid: int
    gfns: int
    min_resident: int
    pages: dict[str, int]
    saved_by: dict[str, int]
    refaults: int
    touches: int
    reasons: dict[str, int] | None


def domain_report(table: PageTable, domain: Domain, reasons: dict[str, int] | None) -> DomainReport:
    places = table.place[domain.part]
    counts = np.bincount(places, minlength=len(Place))
    saved = np.bincount(places, weights=table.saved[domain.part], minlength=len(Place)) if table.evicts else counts * 0
    return DomainReport(
        domid=domain.domid,
        gfns=domain.gfns,
        min_resident=domain.min_resident,
        pages={place.name.lower(): int(counts[place]) for place in Place if place is not Place.GONE},
        saved_by={
            "sharing": saved_by_sharing(table, domain),
            "patching": int(saved[Place.PATCHED]),
            "compression": int(saved[Place.COMPRESSED]),
            "swapping": int(saved[Place.SWAPPED]),
        },
        refaults=domain.refaults,
        touches=domain.touches,
        reasons=with_futile(table, domain, reasons),
    )


def with_futile(table: PageTable, domain: Domain, reasons: dict[str, int] | None) -> dict[str, int] | None:
    """A page that does not get smaller is tried, and counted, once; it is in the way at each visit."""
    if reasons is None or not table.evicts:
        return reasons
    kept = EVICTABLE[table.place[domain.part]] & ((table.notes[domain.part] & FUTILE) != 0)
    count = int(kept.sum())
    return {**reasons, Reason.INCOMPRESSIBLE.value: count} if count else reasons


def saved_by_sharing(table: PageTable, domain: Domain) -> int:
    """A frame with n sharers saves n - 1 frames; each sharer's part of that."""
    if not table.shares:
        return 0
    sources = table.source[domain.part]
    sharers = table.sharers[sources[sources != NONE]]
    return int(((sharers - 1.0) / np.maximum(sharers, 1)).sum() * PAGE_BYTES)


def count_places(table: PageTable) -> dict[str, int]:
    counts = np.bincount(table.place, minlength=len(Place))
    return {place.name.lower(): int(counts[place]) for place in Place if place is not Place.GONE}


def saved_by_eviction(table: PageTable) -> dict[str, int]:
    """Bytes saved by patching, by compression, and of pages that went on to swap."""
    if not table.evicts:
        return {"patching": 0, "compression": 0, "swapping": 0}
    sums = np.bincount(table.place, weights=table.saved, minlength=len(Place))
    places = {"patching": Place.PATCHED, "compression": Place.COMPRESSED, "swapping": Place.SWAPPED}
    return {name: int(sums[place]) for name, place in places.items()}


def split_net(gross: dict[str, int], net: float) -> dict[str, float]:
    """Divides the net saving among techniques as they contributed; losses fall on all of them alike."""
    total = sum(gross.values())
    if total <= 0:
        used = [name for name in gross if name != "swapping"]
        return {name: net / len(used) if name in used else 0.0 for name in gross}
    return {name: net * value / total for name, value in gross.items()}
