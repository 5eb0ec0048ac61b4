# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine for so many sweeps of guests' regions on Xen, as a process of its own: python3 sweeping.py REGIONS SWEEPS.

REGIONS: a JSON file, by domid the gfns. Prints how many pages are where, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
from regions import RealGfns, RegionsHost, RegionsPager
from stack import OPTIONS, STATE

from diffengine.engine import Engine
from diffengine.hypervisor.xen import XenHost

Counts = dict[str, int]


def sweep(engine: Engine, sweeps: int) -> Counts:
    """Without the pauses between them: in units of sweeps, time is the same everywhere."""
    while engine.report().sweeps < sweeps:
        engine.step()
    return engine.report().pages


def sweep_regions(real: RealGfns, sweeps: int) -> Counts:
    with XenHost() as host:
        sizes = {domain.domid: domain.gfns for domain in host.domains()}
    pager = RegionsPager(STATE, real, sizes)
    with RegionsHost(real) as host:
        engine = Engine(host, pager, OPTIONS)
        for domid, gfns in real.items():
            pager.add_domain(domid, len(gfns))
            engine.add_domain(domid, len(gfns), "all")
        counts = sweep(engine, sweeps)
        engine.close()
    assert pager.counters().corrupt == 0
    pager.close()
    return counts


if __name__ == "__main__":
    regions = json.loads(Path(sys.argv[1]).read_text())
    real = {int(domid): np.array(gfns, dtype=np.uint32) for domid, gfns in regions.items()}
    print(json.dumps(sweep_regions(real, int(sys.argv[2]))))
