# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C of a simulation."""

import os
import signal
import threading

import pytest

from diffengine.simulation.interruption import interruption


def test_it_is_told_again_where_it_was_dropped() -> None:
    with interruption() as noted:
        noted.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            noted.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_others_made_of_it_stays() -> None:
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption() as noted:
            os.kill(os.getpid(), signal.SIGINT)
            noted.check()
    finally:
        signal.signal(signal.SIGINT, mine)


def test_on_another_thread_nothing_is_changed() -> None:
    def enter() -> None:
        with interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
