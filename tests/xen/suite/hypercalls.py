# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes of ours ask Xen for: count_hypercalls.c, preloaded into them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = ("nominate", "evict", "load", "share nominate", "share", "map", "notify", "other")
LIBRARY = Path("/opt/rig/count_hypercalls.so")


def counting(file: Path) -> dict[str, str]:
    """For the environment of a process that is to be counted."""
    file.unlink(missing_ok=True)
    return {"LD_PRELOAD": str(LIBRARY), "COUNT_HYPERCALLS": str(file)}


def read_counts(file: Path) -> NDArray[np.uint64]:
    """Calls, and nanoseconds, by kind."""
    return np.fromfile(file, dtype=np.uint64).reshape(len(KINDS), 2)
