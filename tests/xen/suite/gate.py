# SPDX-License-Identifier: GPL-2.0-or-later
"""Evictions that wait between the pager's last look and the hypercall: gate_evictions.c, preloaded into a pager."""

import time
from pathlib import Path

import numpy as np

LIBRARY = Path("/opt/rig/gate_evictions.so")
REACHED_S = 120.0


class Gate:
    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(LIBRARY), "GATE_EVICTIONS": str(file)}
        self._words = np.memmap(file, dtype=np.uint32, mode="r+", shape=(2,))

    def shut(self) -> None:
        self._words[0] = 1

    def open(self) -> None:
        self._words[0] = 0

    def wait_for_eviction(self) -> None:
        """Until one waits."""
        deadline_s = time.monotonic() + REACHED_S
        while not self._words[1]:
            assert time.monotonic() < deadline_s, "no eviction was asked for"
            time.sleep(0.01)
