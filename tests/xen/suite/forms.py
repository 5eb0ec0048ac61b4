# SPDX-License-Identifier: GPL-2.0-or-later
"""How pages that are out are kept, and how many of each kind guests have read back."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from guests import Accesses, Guest

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import Gfns, PageState
from diffengine.native import Encoding

TOTALS = Path("totals.json")
NAMES = {
    Encoding.RAW: "raw",
    Encoding.FILL: "fill",
    Encoding.LZ4: "lz4",
    Encoding.ZSTD: "zstd",
    Encoding.PATCH: "patched",
    Encoding.DENSE: "dense",
    Encoding.SWAPPED: "swapped",
}


def count_out(pager: PagerClient, guest: Guest, gfns: Gfns) -> Counter[str]:
    """Of these pages those that are out, by how they are kept. A page whose object is another's, too, counts as shared
    object as well."""
    entries = pager.states(guest.domid, 0, int(gfns.max()) + 1)
    mine = gfns[entries.states[gfns] == PageState.EVICTED]
    objects = entries.objects[mine]
    counts: Counter[str] = Counter()
    if len(mine):
        forms = pager.describe(objects)
        counts.update(NAMES[Encoding(code)] for code in forms.encodings.tolist())
        _, users = np.unique(objects, return_counts=True)
        counts["shared object"] = int(users[users > 1].sum())
        counts["out"] = len(mine)
    return counts


def add_to_totals(counts: Counter[str]) -> None:
    """What guests have read back right, summed over the run."""
    totals = Counter(json.loads(TOTALS.read_text()) if TOTALS.is_file() else {})
    totals.update(counts)
    TOTALS.write_text(json.dumps(totals, indent=1) + "\n")


def add_cow_breaks(count: int) -> None:
    add_to_totals(Counter({"cow breaks": count}))


def read_back(pager: PagerClient, guest: Guest, regions: list[int]) -> Counter[str]:
    """The guest reads all these pages, of which some are out; each must be right. What was out, by kind."""
    counts: Counter[str] = Counter()
    for region in regions:
        before = count_out(pager, guest, guest.gfns(region))
        found: Accesses = guest.check(region)
        assert found.reads > 0
        assert found.wrong_bytes == 0, f"{guest.name}: {found}"
        counts.update(before)
    add_to_totals(counts)
    return counts
