# SPDX-License-Identifier: GPL-2.0-or-later
"""The pager lets go of a domain, before it is saved, migrated or suspended: the same with a daemon and without one."""

from pathlib import Path

from diffengine.hypervisor.pager_control import PagerControl

PATIENCE_S = 120.0


def release(state: Path, domid: int) -> int:
    """All pages of the domain come back, and the pager does not take it again until `take_back`. How many.

    On a thread of the caller's own: the pager's queue for operators, which this waits for, is not the engine's. Raises
    ReleaseRefusedError or NoRoomError; then the domain goes on as before.
    """
    with PagerControl(state) as pager:
        pages = pager.pages_out(domid)
        pager.release(domid, PATIENCE_S)
        return pages


def take_back(state: Path, domid: int) -> None:
    with PagerControl(state) as pager:
        pager.take_back(domid)
