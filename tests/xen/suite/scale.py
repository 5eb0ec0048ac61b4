# SPDX-License-Identifier: GPL-2.0-or-later
"""How much is done: bochs, which emulates an Intel CPU, is some ten times slower than QEMU."""

from pathlib import Path

INTEL = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
SMALLER = 10 if INTEL else 1
