# SPDX-License-Identifier: GPL-2.0-or-later
"""What the paper printed, or drew (read off its figures): Gupta et al., Difference Engine, OSDI 2008."""

from dataclasses import dataclass

# Table 1: three 512-MB VMs (Windows XP, Debian, Slackware).
TABLE_1_PAGES = {"total": 393_120, "zero": 149_038, "unique": 191_646, "shared": 3_577}
TABLE_1_AFTER_SHARING = 195_224
TABLE_1_AFTER_PATCHING = 88_422
TABLE_1_REFERENCES = 50_727
TABLE_1_PATCHED = 144_497
TABLE_1_MEAN_PATCH_BYTES = 1_070

# Table 2, microseconds.
TABLE_2_US = {
    "share": 6.2,
    "copy on write": 25.1,
    "compress": 29.7,
    "decompress": 10.4,
    "patch": 338.1,
    "unpatch": 18.6,
    "swap out": 48.9,
    "swap in": 7151.6,
}

# Figure 2 (drawn), % saved by patching after sharing, with one candidate and 18-bit hashes.
FIGURE_2 = {
    (1, 1): (12.4, 18.7),
    (2, 1): (20.1, 38.8),
    (4, 1): (21.9, 38.9),
    (1, 2): (10.8, 14.1),
    (2, 2): (18.2, 23.6),
}
FIGURE_2_WIDE_KEYS = 24.7  # MIXED-1, (2, 1), 32-bit hashes

# Figure 4 (drawn): share of patched and compressed pages still untouched after so many seconds.
FIGURE_4 = {10.0: 0.80, 100.0: 0.50}

# Figures 5 to 7 (drawn): plateau saving in %, by kind of page and technique alone.
FIGURES_5_TO_7 = {
    "identical": {"sharing": 77.8, "patching": 81.0, "compression": 84.5},
    "random": {"sharing": 3.6, "patching": 7.9, "compression": 10.7},
    "similar": {"sharing": 3.5, "patching": 47.1, "compression": 11.7},
}


@dataclass(frozen=True)
class OverTime:
    """Figures 8 to 11 (drawn): savings in %, mean over time and at the end."""

    mean: float
    end: float
    by_technique: dict[str, float]
    esx_mean: float
    esx_end: float


FIGURES_9_TO_11 = {
    "homogeneous": OverTime(71.5, 91.6, {"sharing": 64.8, "patching": 5.0, "compression": 1.9}, 45.5, 91.5),
    "MIXED-1": OverTime(51.2, 66.3, {"sharing": 34.9, "patching": 13.9, "compression": 2.4}, 32.1, 38.1),
    "MIXED-2": OverTime(50.4, 66.6, {"sharing": 32.0, "patching": 15.5, "compression": 2.9}, 20.6, 30.7),
}

# Figure 8 (drawn): equal VMs save this much on average, in %.
FIGURE_8 = (58.0, 63.0)

# Table 3: (baseline, Difference Engine).
TABLE_3 = {
    "kernel build, s": (670.0, 710.0),
    "vim build + lmbench, s": (620.0, 702.0),
    "RUBiS, requests": (3149.0, 3130.0),
}

# Figure 12: requests served at 1,600 clients, by how many 650-MB VMs share 2.8 GB.
FIGURE_12 = {4: 183_620, 5: 213_993, 6: 258_035, 7: 205_934}
