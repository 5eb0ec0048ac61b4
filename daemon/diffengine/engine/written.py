# SPDX-License-Identifier: GPL-2.0-or-later
"""M without digests, an option per domain: the hypervisor logs which pages the guest's vCPUs wrote.

Nothing is ever saved on the log's word: whatever is proposed is compared byte by byte. So a write that it does not tell
of (by dom0 through a mapping, or after somebody else reset it) costs savings, not content. Such writes are found all
the same: each page is digested in one sweep in LOOK_AGAIN_SWEEPS whatever the log says, and where a comparison failed.
A log that misses more than it tells is not used any more.
"""

import numpy as np
from numpy.typing import NDArray

from diffengine.engine import clock
from diffengine.engine.pages import READABLE, WRITTEN, Domain, PageTable
from diffengine.engine.reasons import Reason, Reasons
from diffengine.hypervisor.protocol import Host, Outcome, Results
from diffengine.native import PageNumbers

# A visit over unchanged memory digests so many times less than the first.
LOOK_AGAIN_SWEEPS = 128
# Fewer than this may be a device's buffers in a guest that does little else.
MOST_MISSED = 64
# Pages that are looked at again come in runs, so that most visits find nothing to digest, and are soon over.
LOOK_AGAIN_RUN = 1024


def look_again(gfns: NDArray[np.uint32], sweep: int) -> NDArray[np.bool_]:
    """The pages that are digested in this sweep whatever the log says."""
    result: NDArray[np.bool_] = gfns // LOOK_AGAIN_RUN % LOOK_AGAIN_SWEEPS == sweep % LOOK_AGAIN_SWEEPS
    return result


def is_blind(told: int, missed: int) -> bool:
    """Is a log useless, of so many changes that it told and missed among pages that were looked at again."""
    return missed > MOST_MISSED and missed > told


def differing(results: Results) -> NDArray[np.bool_]:
    """Answers to a proposal which say that a page is not what it was taken for."""
    result: NDArray[np.bool_] = (results == Outcome.DIFFERS) | (results == Outcome.NO_PAGE)
    return result


class WrittenPages:
    """The logs of those domains that have one."""

    def __init__(self, host: Host, table: PageTable, reasons: Reasons) -> None:
        self._host = host
        self._table = table
        self._reasons = reasons
        self._able = host.capabilities().log_dirty
        self._sweep = 0
        self._due: dict[int, NDArray[np.bool_]] = {}
        # The same: to look at a few takes a tenth of the time.
        self._due_bytes: dict[int, bytes] = {}

    def begin(self, domain: Domain) -> None:
        """Turns the log on, if the host can and nobody else uses it."""
        if not self._able:
            self._reasons.add(Reason.NO_LOG, 1)
        elif self._host.log_dirty(domain.domid, True):
            self._table.keep_notes()
            # No digest is known yet.
            self._table.notes[domain.part] |= WRITTEN
            domain.logged = True
        else:
            self._reasons.add(Reason.LOG_IN_USE, 1)

    def end(self, domain: Domain) -> None:
        """Turns it off: the domain is to be left alone, or saved, or migrated. Its pages are digested from now on."""
        if domain.logged:
            self._host.log_dirty(domain.domid, False)
        domain.logged = False
        self._due.pop(domain.domid, None)
        self._due_bytes.pop(domain.domid, None)

    def begin_sweep(self, sweep: int, weight: int = 1) -> None:
        """Takes what was written since the last sweep; what is written from now on is told in the next one. weight: as
        how many visits of what was not written this one counts."""
        self._sweep = sweep
        for domain in self._table.domains:
            if not domain.logged:
                continue
            if sweep % LOOK_AGAIN_SWEEPS == 0:
                domain.told = domain.missed = 0
            written = self._host.take_dirty(domain.domid, domain.gfns)
            if written is None:
                self._give_up(domain, Reason.LOG_FAILED)
            elif is_blind(domain.told, domain.missed):
                self._give_up(domain, Reason.LOG_BLIND)
            else:
                self._table.notes[domain.part][written] |= WRITTEN
                self._due[domain.domid] = due = self._find_due(domain)
                self._due_bytes[domain.domid] = due.tobytes()
                self._count_quiet(domain, weight)

    def _give_up(self, domain: Domain, reason: Reason) -> None:
        """The log is left on: whoever reset it may be using it."""
        domain.logged = False
        self._reasons.add(reason, 1)

    def _find_due(self, domain: Domain) -> NDArray[np.bool_]:
        """Of each run of a domain's pages: is there something to digest in this sweep."""
        starts = np.arange(0, domain.gfns, LOOK_AGAIN_RUN)
        written = np.logical_or.reduceat((self._table.notes[domain.part] & WRITTEN) != 0, starts)
        due: NDArray[np.bool_] = written | look_again(starts.astype(np.uint32), self._sweep)
        return due

    def _count_quiet(self, domain: Domain, weight: int) -> None:
        """The visit of all pages of runs with nothing to digest, at once: for one portion after the other it would take
        longer than all the rest of their visits."""
        table = self._table
        quiet = np.repeat(~self._due[domain.domid], LOOK_AGAIN_RUN)[: domain.gfns]
        clock.count_visit_of_all(table.quiet[domain.part], quiet & READABLE[table.place[domain.part]], weight)

    def nothing_due(self, domain: Domain, part: range) -> bool:
        """Are a domain's gfns all in runs with nothing to digest: most often so, and soon found."""
        if not domain.logged:
            return False
        first, end = part.start // LOOK_AGAIN_RUN, -(-part.stop // LOOK_AGAIN_RUN)
        return self._due_bytes[domain.domid].find(1, first, end) < 0

    def due(self, domain: Domain, pages: PageNumbers) -> PageNumbers:
        """The pages whose visit was not counted when the sweep began."""
        if not domain.logged:
            return pages
        chosen: PageNumbers = pages[self._due[domain.domid][(pages - np.uint32(domain.first)) // LOOK_AGAIN_RUN]]
        return chosen

    def to_digest(self, domain: Domain, pages: PageNumbers) -> NDArray[np.bool_]:
        """Which of a domain's pages have to be digested."""
        if not domain.logged:
            return np.ones(len(pages), dtype=np.bool_)
        needed = (self._table.notes[pages] & WRITTEN) != 0
        result: NDArray[np.bool_] = needed | look_again(pages - np.uint32(domain.first), self._sweep)
        return result

    def note(self, domain: Domain, pages: PageNumbers, changed: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Pages that were digested now; known: whose digest was known before."""
        if not domain.logged:
            return
        notes = self._table.notes
        told = (notes[pages] & WRITTEN) != 0
        notes[pages] &= ~WRITTEN
        again = changed & known & look_again(pages - np.uint32(domain.first), self._sweep)
        missed = int((again & ~told).sum())
        domain.told += int((again & told).sum())
        domain.missed += missed
        self._reasons.add(Reason.LOG_MISSED, missed)
