# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd is told, and what goes to its journal."""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon_host import daemon_parts, loop
from diffengine.service.events import EventKind, Events
from diffengine.service.supervisor import Supervisor, SupervisorError, handed_over, log_handler, supervisor


def test_the_watchdog_is_fed_by_the_engines_steps_and_by_nothing_else(tmp_path: Path) -> None:
    sent: list[str] = []
    fed, free_again = threading.Event(), threading.Event()

    def send(state: str) -> None:
        sent.append(state)
        if state.startswith("WATCHDOG=1"):
            fed.set()

    # Fed at every sign of progress: 0.2 ms is less than any step takes.
    told = Supervisor(send, watchdog_s=0.0008)
    with loop() as on, daemon_parts(tmp_path / "status.sock", on, supervisor=told) as parts:
        assert fed.wait(240)
        assert any("saving" in state and "of 2 domains" in state for state in sent)
        stuck = threading.Event()

        def hang(_: object) -> None:
            stuck.set()
            free_again.wait()

        hanging = parts.worker.submit(hang)
        try:
            assert stuck.wait(240)
            # It may take its time, which systemd knows; but it is not alive for that.
            assert sent[-1] == "WATCHDOG_USEC=3600000000"
            before = len(sent)
            assert not threading.Event().wait(0.3)
            assert len(sent) == before
        finally:
            free_again.set()
        hanging.result(240)
        fed.clear()
        assert fed.wait(240)
        assert "WATCHDOG_USEC=800" in sent


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor({}).ready()
    assert handed_over({}) is None
    assert handed_over({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None
    assert type(log_handler({})) is logging.StreamHandler
    # An installation without systemd-python under systemd says what is missing.
    for module in ("systemd", "systemd.daemon", "systemd.journal"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SupervisorError, match=r"pip install diffengine\[systemd\]"):
        supervisor({"NOTIFY_SOCKET": "/nowhere"})
    with pytest.raises(SupervisorError, match="handed a socket over"):
        handed_over({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def test_events_have_fields_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    with (tmp_path / "journal").open("w") as journal:
        monkeypatch.setattr(sys, "stderr", journal)
        there = os.fstat(journal.fileno())
        handler = log_handler({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
    handler.send = lambda text, **fields: sent.append({"MESSAGE": text, **fields})  # type: ignore[attr-defined]
    log = logging.getLogger("diffengine")
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    try:
        text = "domain 3 (web) is left alone: not enabled"
        Events().tell(EventKind.LEFT_ALONE, text, 3, "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "not_enabled")
        Events().tell(EventKind.SETTINGS, "settings read")
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    first, second = sent
    assert {name: value for name, value in first.items() if name.startswith("DIFFENGINE_")} == {
        "DIFFENGINE_EVENT": "left_alone",
        "DIFFENGINE_DOMAIN": "3",
        "DIFFENGINE_UUID": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "DIFFENGINE_REASON": "not_enabled",
    }
    assert (first["MESSAGE"], first["SYSLOG_IDENTIFIER"], first["PRIORITY"]) == (text, "diffengine", "6")
    assert "DIFFENGINE_DOMAIN" not in second
