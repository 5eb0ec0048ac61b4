# SPDX-License-Identifier: GPL-2.0-or-later
"""A store in dom0's memory takes nothing more once dom0 has little left: all guests wait for a dom0 that swaps. One in
the frames of a domain of its own does not concern dom0.

How much it may take at most, the pager is told (--store-mib), and its tmpfs.
"""

import re
import time
from pathlib import Path

from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import NewObjects, ObjectIds, StoreFullError

MEMINFO = Path("/proc/meminfo")
MIB = 1 << 20
# Reading the kernel's figures takes some 20 us; one batch of objects is some MiB at most.
LOOK_INTERVAL_S = 0.05


def available_bytes(meminfo: str) -> int:
    """What dom0 can use without swapping, as its kernel reckons. Raises ValueError if it does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError("no MemAvailable")
    return int(found[1]) << 10


class SparingPager(PagerClient):
    """Puts no objects while dom0 has less than so much."""

    def __init__(self, state_directory: Path, meminfo: Path = MEMINFO) -> None:
        super().__init__(state_directory)
        self._meminfo = meminfo
        self._looked_s = float("-inf")
        self._available_bytes = 0
        self.least_available_bytes = 0

    def put(self, objects: NewObjects) -> ObjectIds:
        self._spare()
        return super().put(objects)

    def put_model(self, model: bytes) -> int:
        self._spare()
        return super().put_model(model)

    def _spare(self) -> None:
        if not self.least_available_bytes or self.store_in_domain():
            return
        if time.monotonic() - self._looked_s >= LOOK_INTERVAL_S:
            self._looked_s = time.monotonic()
            self._available_bytes = available_bytes(self._meminfo.read_text())
        if self._available_bytes < self.least_available_bytes:
            raise StoreFullError(
                f"dom0 has only {self._available_bytes / MIB:,.0f} MiB left, and keeps "
                f"{self.least_available_bytes / MIB:,.0f}; give it more memory, the pager swap, or lower [dom0] "
                "min_available_mib"
            )
