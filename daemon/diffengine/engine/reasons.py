# SPDX-License-Identifier: GPL-2.0-or-later
"""Why pages were not saved, counted: each time that the engine, or its host, said no."""

from collections import Counter
from enum import StrEnum

import numpy as np

from diffengine.hypervisor.protocol import Outcome, Results


class Reason(StrEnum):
    """What stood in the way of one page, at one visit."""

    MODIFIED = "modified"  # C1
    REFERENCED = "referenced"  # C2, and nothing to share it with
    NOT_SHAREABLE = "host_cannot_share"
    PARTNER_WATCHED = "partner_watched"
    TABLE_FULL = "sharing_table_full"
    NO_REFERENCE = "no_similar_page"
    REFERENCE_IN_USE = "reference_in_use"
    REFERENCE_GONE = "reference_gone"
    PATCH_TOO_LARGE = "patch_too_large"
    INCOMPRESSIBLE = "incompressible"
    FAULT_LIMIT = "fault_limit"
    REFAULT_LIMIT = "refault_limit"
    MIN_RESIDENT = "min_resident"
    EVICTED_SHARE = "evicted_share_limit"
    STORE_FULL = "store_full"
    UNMAPPED = "not_mapped"
    # Not of pages: how often the host would not claim frames.
    RESERVE_REFUSED = "reserve_refused"
    # Nor are these: why a domain's log of written pages was not used, and what it failed to tell.
    NO_LOG = "log_dirty_host_cannot"
    LOG_IN_USE = "log_dirty_refused"
    LOG_FAILED = "log_dirty_failed"
    LOG_BLIND = "log_dirty_blind"
    LOG_MISSED = "log_dirty_missed_pages"


class Reasons:
    """Counters by name: those above, and what hosts answered, as share_stale, watch_busy, evict_touched.

    Since the beginning for all domains; for each domain, those of its visits in the latest complete sweep.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sweep: dict[int, Counter[str]] = {}
        self._latest: dict[int, Counter[str]] = {}
        self._visited: Counter[str] = Counter()

    def begin_sweep(self) -> None:
        self._sweep = {}
        self._visited = Counter()

    def begin_visit(self, domid: int) -> None:
        """What is counted from now on is this domain's."""
        if domid not in self._sweep:
            self._sweep[domid] = Counter()
        self._visited = self._sweep[domid]

    def end_sweep(self) -> None:
        self._latest = self._sweep
        self.begin_sweep()

    def _count(self, reason: str, pages: int) -> None:
        self._counts[reason] += pages
        self._visited[reason] += pages

    def add(self, reason: Reason, pages: int) -> None:
        if pages:
            self._count(reason, int(pages))

    def add_results(self, step: str, results: Results) -> None:
        """Counts what is not DONE among the results of `share`, `watch`, `unshare`, `evict` or `swap`."""
        outcomes, counts = np.unique(results[results != Outcome.DONE], return_counts=True)
        for outcome, count in zip(outcomes.tolist(), counts.tolist(), strict=True):
            self._count(f"{step}_{Outcome(outcome).name.lower()}", count)

    def as_dict(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))

    def of_domain(self, domid: int) -> dict[str, int] | None:
        """Pages by reason in the latest sweep; None: none was completed since the domain came."""
        latest = self._latest.get(domid)
        return None if latest is None else dict(latest.most_common())
