# SPDX-License-Identifier: GPL-2.0-or-later
"""The same pages, the same engine, as many sweeps: on Xen and on the embedded machine each technique gets as many."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from guests import Guest
from hypercalls import KINDS, counting, read_counts
from regions import RealGfns
from scale import SMALLER
from stack import OPTIONS, STATE, PagerProcess, pager_process
from sweeping import Counts, sweep

from diffengine.engine import Engine
from diffengine.hypervisor.embedded import Machine, Pager
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.xen import XenHost
from diffengine.native import Addresses, PageCopies, Store

# Kind, pages, per cent alike, and whether both guests have the very same.
FILLS = (
    ("zero", 600, 0, True),
    ("identical", 600, 0, True),
    ("similar", 900, 95, True),
    ("similar", 1500, 90, False),
    ("words", 1200, 0, False),
    ("random", 600, 0, False),
)
SWEEPS = 8
MOST_APART = 0.02
STORE_BYTES = 64 << 20
REGIONS = Path("/tmp/regions.json")
OF_PAGER, OF_ENGINE = Path("/tmp/hypercalls-pager"), Path("/tmp/hypercalls-engine")
FIGURES = Path("figures.json")


@pytest.fixture(scope="module")
def real(guests: tuple[Guest, Guest]) -> RealGfns:
    """Both guests' regions, one after another."""
    found = {}
    for guest in guests:
        regions = [
            guest.fill(kind, pages // SMALLER, 81 if both else 100 + guest.domid, percent)
            for kind, pages, percent, both in FILLS
        ]
        found[guest.domid] = np.concatenate([guest.gfns(region) for region in regions])
    return found


@pytest.fixture(scope="module")
def pager(guests: tuple[Guest, Guest]) -> Iterator[PagerProcess]:
    with pager_process(environment=counting(OF_PAGER)) as process:
        yield process


def on_xen(real: RealGfns) -> Counts:
    REGIONS.write_text(json.dumps({domid: gfns.tolist() for domid, gfns in real.items()}))
    words = [sys.executable, str(Path(__file__).parent / "sweeping.py"), str(REGIONS), str(SWEEPS)]
    environment = {**os.environ, **counting(OF_ENGINE)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def on_the_machine(contents: list[Addresses]) -> Counts:
    # Room as Xen has it: what is claimed is none for the notes that sharing takes.
    machine = Machine(3 * sum(map(len, contents)))
    try:
        with Store(STORE_BYTES) as store:
            pager = Pager(machine, store)
            engine = Engine(machine, pager, OPTIONS)
            for pages in contents:
                domid = machine.create_domain(pages)
                pager.add_domain(domid, len(pages))
                engine.add_domain(domid, len(pages), "all", 0, False)
            counts = sweep(engine, SWEEPS)
            engine.close()
            pager.close()
    finally:
        machine.close()
    return counts


def test_counts_are_within_two_per_cent(
    guests: tuple[Guest, Guest], pager: PagerProcess, host: XenHost, real: RealGfns
) -> None:
    copies = {domid: PageCopies(len(gfns)) for domid, gfns in real.items()}
    contents = []
    for domid, gfns in real.items():
        with host.map(domid, gfns) as mapping:
            assert not mapping.errors.any()
            contents.append(copies[domid].take(mapping.addresses))
    free = host.memory().free
    found = {"machine": on_the_machine(contents), "xen": on_xen(real)}
    saved = host.memory().free - free
    print(found)
    whole = sum(len(gfns) for gfns in real.values())
    for name, there in found["machine"].items():
        assert abs(found["xen"][name] - there) <= MOST_APART * max(there, whole // 20), name
    assert all(found["machine"][name] > whole // 20 for name in ("shared", "patched", "compressed"))
    read_all_back(guests, found, saved)


def read_all_back(guests: tuple[Guest, Guest], found: dict[str, Counts], saved: int) -> None:
    """And leave what all of it took in a file that the rig prints."""
    before = read_counts(OF_PAGER)
    for guest in guests:
        assert [guest.check(region).wrong_bytes for region in range(len(FILLS))] == [0] * len(FILLS)
    client = PagerClient(STATE)
    try:
        counters = client.counters()
    finally:
        client.close()
    back, engine = read_counts(OF_PAGER) - before, read_counts(OF_ENGINE)
    loads, load_ns = (int(number) for number in back[KINDS.index("load")])
    assert loads > 0
    calls = {
        process: {kind: int(number) for kind, number in zip(KINDS, counts[:, 0], strict=True)}
        for process, counts in (("pager", before), ("engine", engine))
    }
    figures = {
        "pages by place": found,
        "frames saved": saved,
        "calls until then": calls,
        "calls per frame saved": round(int(before[:, 0].sum() + engine[:, 0].sum()) / saved, 2),
        "calls per page read back": round(int(back[:, 0].sum()) / loads, 2),
        "events answered per page read back": round(int(back[KINDS.index("notify"), 0]) / loads, 2),
        "load hypercall, mean us": round(load_ns / loads / 1e3, 1),
        "rebuild p50 us": round(counters.rebuild_us["p50"], 1),
        "fault p50 us": round(counters.fault_us["p50"], 1),
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(figures)
