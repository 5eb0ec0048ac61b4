# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator can set."""

from dataclasses import dataclass

from diffengine.engine.policy import BUILT_IN_POLICIES, Policy


@dataclass(frozen=True)
class EngineOptions:
    """policy: what each Clock state allows. seed: keys every hash; random in production.

    passes: how many passes make a sharing cycle; None: as many as table_memory_bytes makes necessary.
    table_memory_bytes: limit of the sharing table; None: what one pass needs.
    similarity_bytes_per_page: size of the similarity index.
    cpu_share: of one core, for all of the engine's work. visit_interval_s: at least so long between two visits of a
    page (the paper: 4 s). c4_visits: C3 for so many visits makes C4; a sharing cycle, if that is longer.
    refault_limit: pages of a domain that may come back per minute before eviction stops.
    fault_limit: touches of watched pages and refaults of a domain per second that watching is slowed down at.
    evicted_share_limit: of a domain's pages, at most this share is out at a time.
    high_watermark, low_watermark: of the host's memory; when more than `high` is in use, objects go to swap until it is
    less than `low`.
    reserve_mib: free frames claimed for pages that may come back at once, of all domains together.
    patch_limit: longest fast patch. dense: C4 pages take the dense form, else LZ4.
    """

    policy: Policy = BUILT_IN_POLICIES["default"]
    seed: int = 0
    passes: int | None = None
    table_memory_bytes: int | None = None
    similarity_bytes_per_page: float = 12
    cpu_share: float = 0.5
    visit_interval_s: float = 4.0
    c4_visits: int = 3
    refault_limit: int = 600
    fault_limit: float = 50.0
    evicted_share_limit: float = 0.98
    high_watermark: float = 0.9
    low_watermark: float = 0.8
    reserve_mib: float = 16
    patch_limit: int = 2048
    dense: bool = True


# What a running engine can be told; the rest decides what it is built of.
LIVE_OPTIONS = (
    "cpu_share",
    "visit_interval_s",
    "c4_visits",
    "refault_limit",
    "fault_limit",
    "evicted_share_limit",
    "high_watermark",
    "low_watermark",
    "reserve_mib",
    "patch_limit",
    "dense",
)
