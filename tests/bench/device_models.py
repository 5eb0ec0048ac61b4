# SPDX-License-Identifier: GPL-2.0-or-later
"""What the shim costs a device model: the test device model's disk I/O, with it and without, in turn."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.targets import Row

SEQUENTIAL_OPERATIONS = 100_000
# Fewer than the device model has buckets for.
IN_USE_GFNS = 700
# An operation is of 8 pages: most pages are used once. They are kept raw: what decoding takes is measured elsewhere.
EVICTED_GFNS = 800
RANDOM_OPERATIONS = 100
# More than it has buckets for: each is mapped anew when its turn comes.
ANEW_GFNS = 2_000
ANEW_OPERATIONS = 1_000
SETTINGS = {"DIFFENGINE_IOEMU_IDLE_MS": "10000"}
CLUSTERS = (1, 4, 16, 64)
RUNS = 3
MAPPED = re.compile(r" mapped at a time: (\d+) of")


@dataclass(frozen=True)
class Run:
    """cpu_us: of the device model, per operation. mapped: pages, on average over the run."""

    cpu_us: float
    wall_us: float
    mapped: int


def run(build: Path, shim: str, mode: str, operations: int, gfns: int, settings: Mapping[str, str] = SETTINGS) -> Run:
    """Raises CalledProcessError if a byte was wrong."""
    programs = (
        build / "native/diffengine-machine",
        build / "native/diffengine-pager",
        build / "ioemu_shim/device-model",
    )
    command = [build / "ioemu_shim/test-ioemu", *programs, shim, str(operations), "0", mode, str(gfns)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    figures = json.loads(line)
    found = MAPPED.search(done.stdout)
    assert found
    per_us = 1e6 / figures["operations"]
    return Run(figures["cpu_seconds"] * per_us, figures["seconds"] * per_us, int(found[1]))


def rows(build: Path, runs: int) -> list[Row]:
    shim = str(build / "ioemu_shim/libdiffengine-ioemu.so")
    pairs = []
    for turn in range(runs):
        # Whoever comes second finds the machine warm.
        which = (shim, "none") if turn % 2 else ("none", shim)
        found = {name: run(build, name, "sequential", SEQUENTIAL_OPERATIONS, IN_USE_GFNS) for name in which}
        pairs.append((found[shim].cpu_us, found["none"].cpu_us))
    out = [run(build, shim, "random", RANDOM_OPERATIONS, EVICTED_GFNS) for _ in range(runs)]
    note = (
        f"{median(one for one, _ in pairs):.1f} us of CPU per 32 KiB, without {median(one for _, one in pairs):.1f}; "
        f"random over evicted pages {median(one.cpu_us for one in out):.0f}, "
        f"{median(one.wall_us for one in out):.0f} us in all"
    )
    ratios = tuple(with_shim / without for with_shim, without in pairs)
    return [Row("device I/O in order over pages in use, CPU / without the shim", 1.03, ratios, note=note)]


def clusters(build: Path) -> None:
    """By pages mapped together: I/O in order over pages that are mapped anew, and random I/O over evicted ones."""
    shim = str(build / "ioemu_shim/libdiffengine-ioemu.so")
    for pages in CLUSTERS:
        settings = {**SETTINGS, "DIFFENGINE_IOEMU_CLUSTER_PAGES": str(pages)}
        anew = [run(build, shim, "sequential", ANEW_OPERATIONS, ANEW_GFNS, settings) for _ in range(RUNS)]
        out = [run(build, shim, "random", RANDOM_OPERATIONS, EVICTED_GFNS, settings) for _ in range(RUNS)]
        print(
            f"{pages:2} pages: in order, mapped anew, {median(one.cpu_us for one in anew):.1f} us of CPU, "
            f"{median(one.wall_us for one in anew):.1f} in all; random, evicted, "
            f"{median(one.cpu_us for one in out):.1f} us of CPU, {median(one.wall_us for one in out):.1f} in all",
            flush=True,
        )


if __name__ == "__main__":
    clusters(Path(sys.argv[1]))
