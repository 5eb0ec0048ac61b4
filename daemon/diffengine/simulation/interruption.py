# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C that is not lost.

What a signal's handler raises is dropped where C code looks for an attribute and takes every exception for "there is
none": numpy does, of each enum that has no answer ready (array_enum.py), and enum's own is Python code.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether there was a Ctrl-C."""

    def __init__(self) -> None:
        self._came = False

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """The signal's handler."""
        self._came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt, once more where it was dropped."""
        if self._came:
            raise KeyboardInterrupt


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Notes Ctrl-C inside, if it is this thread's and means what it usually does."""
    noted, before = Interruption(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, noted.note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
