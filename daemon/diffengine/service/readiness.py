# SPDX-License-Identifier: GPL-2.0-or-later
"""When a domain's pages may be worked on: a pure function of how far it is, and since when.

A guest in its firmware or boot loader has next to nothing to save, and what there is will be overwritten: the paper's
engine leaves it alone, too. While it is being suspended, saved or destroyed, every eviction is one too many.
"""

from diffengine.hypervisor.protocol import Life
from diffengine.service.attached import Cause, LeftAlone

# Since when a domain runs that was there before us, or that has pages out: long enough.
LONG_AGO = float("-inf")


def why_not_yet(life: Life, running_since_s: float, now_s: float, grace_s: float) -> LeftAlone | None:
    """None: it may be worked on. running_since_s: when its OS was first seen to run with paging on."""
    if life is Life.STOPPED:
        return LeftAlone(Cause.STOPPED, "it has shut down, or is suspended")
    if life is Life.STARTING:
        return LeftAlone(Cause.STARTING, "its OS has not turned paging on yet")
    if now_s - running_since_s < grace_s:
        return LeftAlone(Cause.STARTING, f"it has just started; left alone for its first {grace_s:g} s")
    return None
