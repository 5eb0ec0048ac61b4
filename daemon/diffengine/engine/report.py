# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine tells of itself."""

from dataclasses import dataclass

import numpy as np

from diffengine.engine.pages import PageTable, Place

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
