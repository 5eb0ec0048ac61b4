# SPDX-License-Identifier: GPL-2.0-or-later
"""What keeps a domain from saving more, ranked, in words: a pure function of what the snapshot says."""

from dataclasses import dataclass

from diffengine.engine.reasons import Reason
from diffengine.native import PAGE_BYTES
from diffengine.service.snapshot import DomainStatus

# Why, and what can be done about it ("": nothing, or nothing that would be right).
WORDS: dict[str, tuple[str, str]] = {
    Reason.MODIFIED: ("written since the last visit: in use", ""),
    Reason.REFERENCED: ("not written, but not known to be unused yet", "wait; or shorten visit_interval_s"),
    Reason.NOT_SHAREABLE: ("has a partner, but this host can't share live pages", "see `diffengine check`"),
    Reason.PARTNER_WATCHED: ("its partner is being watched; shared at a later visit", ""),
    Reason.TABLE_FULL: ("the sharing table was full", "raise table_memory_mib"),
    Reason.NO_REFERENCE: ("no similar page to be a patch of", "put domains with like software into one trust group"),
    Reason.REFERENCE_IN_USE: ("the similar page is in use", ""),
    Reason.REFERENCE_GONE: ("the similar page came back meanwhile", ""),
    Reason.PATCH_TOO_LARGE: ("its patch would be longer than patch_limit", ""),
    Reason.INCOMPRESSIBLE: ("does not get smaller", ""),
    Reason.FAULT_LIMIT: ("had to wait to be watched: fault_limit", "raise fault_limit, if the guest bears more faults"),
    Reason.REFAULT_LIMIT: ("cold, but too many came back lately: refault_limit", "raise it, if the guest bears it"),
    Reason.MIN_RESIDENT: ("cold, but min_resident_mib is reached", "lower the domain's min_resident_mib"),
    Reason.EVICTED_SHARE: ("cold, but evicted_share_limit is reached", "raise evicted_share_limit"),
    Reason.STORE_FULL: ("the pager's store is full, or dom0's memory", "give the pager a larger store, or swap"),
    Reason.UNMAPPED: ("could not be mapped just then", ""),
    Reason.RESERVE_REFUSED: ("times the host had no free memory to reserve", "make room, or lower reserve_mib"),
    Reason.NO_LOG: ("its log of written pages can't be had on this host", ""),
    Reason.LOG_IN_USE: ("its log of written pages is somebody else's: a migration?", ""),
    Reason.LOG_FAILED: ("its log of written pages could not be read", ""),
    Reason.LOG_BLIND: ("its log of written pages told nothing", ""),
    Reason.LOG_MISSED: ("its log of written pages missed some", ""),
}  # fmt: skip
OUTCOMES = {
    "busy": "mapped, shared or special just then",
    "touched": "touched between watching and evicting",
    "differs": "changed while it was being encoded",
    "no_object": "its object was gone",
    "no_page": "a hole, or out already",
    "no_domain": "the domain was gone or halted",
    "invalid": "the pager found the proposal wrong",
    "failed": "the hypervisor refused",
    "stale": "written while it was being shared",
    "mapped": "mapped by somebody",
    "full": "the frame has as many sharers as it may",
    "no_memory": "the hypervisor had no memory for it",
    "unable": "the host can't do that",
    "swapped": "its object is in swap",
    "needed": "an object in memory still needs it",
    "swap_full": "swap is full",
    "disk": "the disk refused the write",
    "held": "the device model has it mapped",
    "no_holds": "the device model does not say what it maps",
    "in_kernel": "the guest stayed in its kernel, or is paused",
}
# What can be done about an outcome of a step.
CHANGES = {"share_no_memory": "wait: what goes out makes room"}
STEPS = {"share": "sharing", "unshare": "making private", "watch": "watching", "evict": "evicting", "swap": "swapping"}


@dataclass(frozen=True)
class Explanation:
    """reason: a Reason, an outcome of the pager's, or a Cause. pages: at the latest sweep, as are bytes. change: what
    to do."""

    reason: str
    pages: int
    bytes: int
    text: str
    change: str


def explain(domain: DomainStatus, all_paused: bool) -> list[Explanation]:
    """What keeps most pages from being saved comes first."""
    whole = domain.memory_bytes // PAGE_BYTES
    if domain.standing != "worked_on":
        change = "set the domain's `enabled` to true" if domain.standing == "not_enabled" else ""
        return [_explanation(domain.standing, whole, f"left alone: {domain.why}", change)]
    found = (
        [_explanation("engine_paused", whole, "the whole engine is paused", "diffengine resume")] if all_paused else []
    )
    if domain.reasons is None:
        return [*found, _explanation("first_sweep", whole, "not all of it was visited yet", "wait")]
    ranked = sorted(domain.reasons.items(), key=lambda item: (-item[1], item[0]))
    return found + [_explanation(reason, pages, *words(reason)) for reason, pages in ranked if pages > 0]


def words(reason: str) -> tuple[str, str]:
    if reason in WORDS:
        return WORDS[reason]
    step, _, outcome = reason.partition("_")
    return f"{STEPS.get(step, step)} was refused: {OUTCOMES.get(outcome, outcome)}", CHANGES.get(reason, "")


def _explanation(reason: str, pages: int, text: str, change: str) -> Explanation:
    return Explanation(str(reason), pages, pages * PAGE_BYTES, text, change)
