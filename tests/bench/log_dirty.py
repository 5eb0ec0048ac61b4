# SPDX-License-Identifier: GPL-2.0-or-later
"""log_dirty.py IMAGE...: CPU time of the engine's visits of memory that nobody writes, with the host's log of written
pages and by digests. Prints JSON: of each sweep, the first one first."""

import json
import sys
from collections.abc import Sequence

import numpy as np

from diffengine.engine import Engine, EngineOptions, Policy
from diffengine.engine.visits import portions_of_sweep
from diffengine.hypervisor.embedded import Machine, Pager
from diffengine.images import open_images
from diffengine.native import Store

SWEEPS = 12
# What becomes of pages after a visit is no part of it.
NOTHING = Policy("nothing", {})


def sweep_cpu_s(image_paths: Sequence[str], log_dirty: bool) -> list[float]:
    with open_images(image_paths) as images, Store(1 << 24) as store:
        machine = Machine(images.pages + 64)
        pager = Pager(machine, store)
        engine = Engine(machine, pager, EngineOptions(policy=NOTHING))
        for image in images.images:
            numbers = np.arange(image.first_page, image.first_page + image.pages, dtype=np.uint32)
            domid = machine.create_domain(images.addresses(numbers))
            engine.add_domain(domid, image.pages, "all", log_dirty=log_dirty)
        took_s = []
        # Not asked for after each step: reports read all of the engine's tables, and leave the caches to them.
        steps = portions_of_sweep(max(image.pages for image in images.images))
        for sweep in range(1, SWEEPS + 1):
            for _ in range(steps):
                engine.step()
            report = engine.report()
            assert report.sweeps == sweep
            took_s.append(report.cpu_s)
        engine.close()
        pager.close()
        return np.diff(took_s, prepend=0.0).tolist()


if __name__ == "__main__":
    print(json.dumps({"log": sweep_cpu_s(sys.argv[1:], True), "digests": sweep_cpu_s(sys.argv[1:], False)}))
