# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd, where it started the daemon: the socket it hands over, and what it is told. Elsewhere all of it is nothing.

The one module that knows systemd-python, which is an extra: who starts the daemon by hand needs none of it.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping

from diffengine.errors import DiffengineError

# One order on the engine's thread may take so long: bringing back the pages of a large domain from a slow disk.
ORDER_S = 3600.0
# A status line for people; the watchdog is fed with it.
TELL_INTERVAL_S = 2.0
US_PER_S = 1_000_000


class SupervisorError(DiffengineError):
    """What systemd expects can't be done; what to install."""


class Supervisor:
    """Told of the engine's progress by the engine's own thread: a timer would feed the watchdog of one that hangs."""

    def __init__(self, send: Callable[[str], object], watchdog_s: float = 0.0) -> None:
        """send: takes what sd_notify takes. watchdog_s: what systemd allows between two signs of life; 0: for ever."""
        self._send = send
        self._watchdog_s = watchdog_s
        self._told_s = float("-inf")

    @property
    def interval_s(self) -> float:
        """To be told of progress at least so often."""
        return min(TELL_INTERVAL_S, self._watchdog_s / 4) if self._watchdog_s else TELL_INTERVAL_S

    def ready(self) -> None:
        self._send("READY=1")

    def ending(self) -> None:
        self._send("STOPPING=1")

    def progress(self, status: Callable[[], str]) -> None:
        """The engine has made a step, or waits on purpose."""
        now_s = time.monotonic()
        if now_s - self._told_s >= self.interval_s:
            self._told_s = now_s
            self._send(f"WATCHDOG=1\nSTATUS={status()}")

    def order_begins(self) -> None:
        """An order may take longer than any step."""
        if self._watchdog_s:
            self._send(f"WATCHDOG_USEC={int(ORDER_S * US_PER_S)}")

    def order_ends(self) -> None:
        if self._watchdog_s:
            self._send(f"WATCHDOG_USEC={int(self._watchdog_s * US_PER_S)}")


def nobody() -> Supervisor:
    """Where nothing supervises."""
    return Supervisor(lambda state: None)


def supervisor(environment: Mapping[str, str] = os.environ) -> Supervisor:
    """Raises SupervisorError if systemd waits for a word that can't be sent."""
    if not environment.get("NOTIFY_SOCKET"):
        return nobody()
    try:
        from systemd.daemon import notify
    except ImportError as error:
        raise _missing("is waiting to be told that the daemon is ready") from error
    ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    untrusted_us = environment.get("WATCHDOG_USEC", "0")
    watchdog_s = int(untrusted_us) / US_PER_S if ours and untrusted_us.isdecimal() else 0.0
    return Supervisor(notify, watchdog_s)


def handed_over(environment: Mapping[str, str] = os.environ) -> socket.socket | None:
    """The status socket, made and listening, if systemd handed it over (LISTEN_FDS). Raises SupervisorError."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or not environment.get("LISTEN_FDS"):
        return None
    try:
        from systemd.daemon import is_socket_unix, listen_fds
    except ImportError as error:
        raise _missing("handed a socket over") from error
    descriptors = listen_fds()
    if len(descriptors) != 1 or not is_socket_unix(descriptors[0], socket.SOCK_STREAM, 1):
        raise SupervisorError(
            "systemd handed over what is not one listening unix socket; see ListenStream= in diffengine.socket"
        )
    taken = socket.socket(fileno=descriptors[0])
    taken.setblocking(False)
    return taken


def log_handler(environment: Mapping[str, str] = os.environ) -> logging.Handler:
    """To the journal with fields of its own, where stderr goes there; else to stderr."""
    if goes_to_journal(environment):
        try:
            from systemd.journal import JournalHandler
        except ImportError:
            pass  # the text alone, then
        else:
            handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="diffengine")
            return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("diffengine: %(message)s"))
    return handler


def goes_to_journal(environment: Mapping[str, str]) -> bool:
    try:
        there = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def _missing(what: str) -> SupervisorError:
    return SupervisorError(f"systemd {what}, for which Python's systemd is missing: pip install diffengine[systemd]")
