# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore, as little of it as the daemon needs, with an end to every wait.

What speaks the protocol is pyxs (pyxs_connection.py), which belongs to the `xen` extra: nothing else knows that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from diffengine.errors import DiffengineError

SOCKETS = (Path("/run/xenstored/socket"), Path("/var/run/xenstored/socket"))
# What there is if xenstored is not dom0's (a stub domain's).
DEVICE = Path("/dev/xen/xenbus")
PATIENCE_S = 5.0


class XenstoreError(DiffengineError):
    """xenstored refused what was asked. error: the errno value."""

    def __init__(self, doing: str, error: int, why: str) -> None:
        super().__init__(f"xenstore: {doing}: {why}")
        self.error = error


class XenstoreGoneError(DiffengineError):
    """This connection is of no use any more: its other end went, does not answer, or talks nonsense."""


# path, token; on the connection's own thread, so it must not ask xenstore.
Told = Callable[[str, str], None]


class Xenstore(Protocol):
    """One connection. Paths are absolute. Every call raises XenstoreGoneError once the connection has ended, or if no
    answer comes in time; XenstoreError for a refusal."""

    def read(self, path: str) -> str | None:
        """Bytes that are no UTF-8 are escaped. None: there is no such node."""

    def write(self, path: str, text: str) -> None:
        """What is no printable ASCII is escaped."""

    def remove(self, path: str) -> None:
        """With all that is below; no error if there is none."""

    def names(self, path: str) -> list[str] | None:
        """Of the nodes just below. None: there is no such node."""

    def make_private(self, path: str) -> None:
        """Makes the node if there is none. It is dom0's from now on, and no other domain's, as is what will be made
        below it."""

    def changers(self, path: str) -> list[int]:
        """Domains other than dom0 that may write the node, or give leave to."""

    def watch(self, path: str, token: str) -> None:
        """`told` hears of every change at or below; at once of the path itself."""

    def close(self) -> None:
        """`ended` is not called any more, if it was not before."""


def find_xenstore() -> Path | None:
    """Where dom0 speaks to xenstored; None: nowhere."""
    return next((path for path in (*SOCKETS, DEVICE) if path.exists()), None)


def connect_xenstore(path: Path, told: Told, ended: Callable[[str], None], patience_s: float = PATIENCE_S) -> Xenstore:
    """By a unix socket or a device. ended: called once, with why, when the connection ends by itself.

    Raises XenstoreGoneError; DiffengineError if pyxs is not installed.
    """
    try:
        from diffengine.hypervisor.xen.pyxs_connection import PyxsConnection
    except ImportError as error:
        raise DiffengineError(
            "xenstore: pyxs is not installed; on Debian: apt install python3-pyxs, or pip install 'diffengine[xen]'"
        ) from error
    return PyxsConnection(path, told, ended, patience_s)
