# SPDX-License-Identifier: GPL-2.0-or-later
"""Free frames for what may come back at once, promised by the host: a burst of copies on write, or of loads, finds them
however much other domains allocate.

A claim is for what a domain may have in all (domain_set_outstanding_pages() in Xen): what is left of it shrinks with
each page that comes back, and grows with each one that is shared or evicted. So it is looked at again and again.

A frame with a claim to it is none for the hypervisor itself, which takes of the others for each page that is shared. On
a full host these come first, or nothing could be shared until the whole reserve is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.pages import NEEDS_FRAME, Domain, PageTable
from diffengine.engine.reasons import Reason, Reasons
from diffengine.hypervisor.protocol import DomainFrames, Host, HostMemory
from diffengine.native import PAGE_BYTES

# To change a claim is to give it back and to claim anew, and in between somebody else may take the frames: so not for
# every page.
LEAST_TRIM = 64
PAGES_PER_MIB = (1 << 20) // PAGE_BYTES


def shares_of_reserve(needs: NDArray[np.int64], reserve: int, free: int) -> NDArray[np.int64]:
    """Frames for each domain: all that it may need, if there are so many, else in proportion."""
    frames, needed = max(0, min(reserve, free)), int(needs.sum())
    if needed <= frames:
        return needs
    result: NDArray[np.int64] = needs * frames // needed
    return result


def is_due(claimed: int, share: int, scarce: bool = False) -> bool:
    """Is it time to change a claim of which so much is left. scarce: the host has too few frames without a claim."""
    if scarce and claimed > share:
        return True
    too_small = claimed < share - share // 4
    too_large = claimed > share + max(share // 4, LEAST_TRIM) or (claimed > 0 and share == 0)
    return too_small or too_large


@dataclass(frozen=True)
class _Claim:
    domid: int
    frames: DomainFrames
    share: int


class Reserve:
    """Claims for all domains together."""

    def __init__(self, host: Host, table: PageTable, reasons: Reasons, mib: float) -> None:
        self._host = host
        self._table = table
        self._reasons = reasons
        self._able = host.capabilities().claims
        self._least_unclaimed = host.capabilities().least_unclaimed
        self._claimants: set[int] = set()
        self.mib = mib

    def adjust(self) -> None:
        """Claims what the domains' pages may need now; what is refused is asked for again the next time."""
        if not self._able:
            return
        # A domain without such pages may be under construction, and its claim the toolstack's.
        needs = {domain.domid: need for domain in self._table.domains if (need := self._need(domain))}
        memory = self._host.memory()
        claims = self._claims(sorted(needs.keys() | self._claimants), needs, memory)
        scarce = memory.free - memory.claimed < self._least_unclaimed
        # Those first that give something up.
        for claim in sorted(claims, key=lambda claim: claim.share - claim.frames.claimed):
            if is_due(claim.frames.claimed, claim.share, scarce):
                # A refusal is this domain's, whoever was visited last.
                self._reasons.begin_visit(claim.domid)
                self._change(claim)

    def adopt(self, domain: Domain) -> None:
        """A claim of a domain that comes with pages out is an earlier engine's, and from now on ours."""
        frames = self._host.domain_frames(domain.domid) if self._able and self._need(domain) else None
        if frames and frames.claimed:
            self._claimants.add(domain.domid)

    def forget(self, domain: Domain) -> None:
        """Nobody looks after its claim any more, so it must not grow with what the guest gives back."""
        if domain.domid in self._claimants:
            self._claimants.remove(domain.domid)
            self._host.claim(domain.domid, 0)

    def close(self) -> None:
        """Gives all claims back: the next engine may come late, or never."""
        for domid in sorted(self._claimants):
            self._host.claim(domid, 0)
        self._claimants.clear()

    def _need(self, domain: Domain) -> int:
        return int(np.count_nonzero(NEEDS_FRAME[self._table.place[domain.part]]))

    def _claims(self, domids: Sequence[int], needs: dict[int, int], memory: HostMemory) -> list[_Claim]:
        found = {domid: frames for domid in domids if (frames := self._host.domain_frames(domid))}
        if not found:
            return []
        # Twice what is needed: sharing takes of it, and claims are not looked at all the time.
        left = memory.free - memory.claimed - 2 * self._least_unclaimed
        free = left + sum(frames.claimed for frames in found.values())
        wanted = np.array([needs.get(domid, 0) for domid in found], dtype=np.int64)
        shares = shares_of_reserve(wanted, int(self.mib * PAGES_PER_MIB), free)
        return [_Claim(domid, found[domid], share) for domid, share in zip(found, shares.tolist(), strict=True)]

    def _change(self, claim: _Claim) -> None:
        if claim.frames.claimed:
            self._host.claim(claim.domid, 0)
        self._claimants.discard(claim.domid)
        share = claim.share
        while share and not self._host.claim(claim.domid, claim.frames.own + share):
            # Somebody was faster, or its pages came back meanwhile.
            self._reasons.add(Reason.RESERVE_REFUSED, 1)
            share //= 2
        if share:
            self._claimants.add(claim.domid)
