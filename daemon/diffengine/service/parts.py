# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's pages that are not at home, in parts that do not take long to bring back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.protocol import PageState

# Some 20 us each from memory, some ms from a disk.
PART_PAGES = 512


@dataclass(frozen=True)
class Part:
    """`count` gfns from `first` on, of which `out` are out; the others that are not at home are watched."""

    first: int
    count: int
    out: int


def parts_away(states: NDArray[np.uint8]) -> list[Part]:
    """Parts of a domain with up to PART_PAGES pages that are not at home; all parts together have all of them."""
    away = np.flatnonzero(states != PageState.RESIDENT)
    parts = []
    for start in range(0, len(away), PART_PAGES):
        gfns = away[start : start + PART_PAGES]
        out = int((states[gfns] != PageState.WATCHED).sum())
        parts.append(Part(int(gfns[0]), int(gfns[-1] - gfns[0]) + 1, out))
    return parts
