# SPDX-License-Identifier: GPL-2.0-or-later
"""The status socket: who gets in, what it takes from whom, and that nobody can make it wait or grow."""

import json
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon_host import Line, Loop, loop, started
from diffengine.service.events import MOST_WAITING, EventKind, Events, Follower
from diffengine.service.rpc import MOST_REQUEST_BYTES, Code
from diffengine.service.server import Limits, Server, SocketError

LARGE = "x" * 300_000


@pytest.fixture(scope="module")
def on() -> Iterator[Loop]:
    with loop() as made:
        yield made


async def call(method: str, parameters: dict[str, Any], may_change: bool) -> dict[str, Any]:
    """Stands for the daemon: says what it was asked."""
    if method == "defect":
        raise ZeroDivisionError
    text = LARGE if method == "large" else ""
    return {"method": method, "parameters": parameters, "may_change": may_change, "text": text}


def server(path: Path, events: Events | None = None, may_change: frozenset[int] | None = None, **limits: Any) -> Server:
    return Server(path, "no-such-group", call, events or Events(), may_change, Limits(**limits))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.sock"


def test_asks_and_answers_one_line_each(on: Loop, path: Path) -> None:
    with started(on, server(path)), closing(Line(path)) as line:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        answer = line.ask("status", id_="a", n=1)
        assert (answer["jsonrpc"], answer["id"]) == ("2.0", "a")
        assert answer["result"] == {"method": "status", "parameters": {"n": 1}, "may_change": True, "text": ""}
        # Without an id, nothing is answered.
        line.send(b'{"jsonrpc": "2.0", "method": "status"}')
        assert line.ask("domains", id_=2)["id"] == 2
    assert not path.exists()


def test_only_root_and_the_daemons_user_may_change(on: Loop, path: Path) -> None:
    with started(on, server(path, may_change=frozenset({os.geteuid() + 1}))), closing(Line(path)) as line:
        assert line.ask("status")["result"]["may_change"] is False


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", Code.PARSE),
        (b"\xff\xfe", Code.PARSE),
        (b"{", Code.PARSE),
        (b"[" * 15_000, Code.PARSE),
        (b'{"jsonrpc": "2.0", "method": "status", "params": {"n": NaN}}', Code.PARSE),
        (b'{"jsonrpc": "2.0", "method": "status", "params": {"n": ' + b"9" * 5000 + b"}}", Code.PARSE),
        (b"[]", Code.INVALID_REQUEST),
        (b'[{"jsonrpc": "2.0", "method": "status", "id": 1}]', Code.INVALID_REQUEST),
        (b'{"method": "status", "id": 1}', Code.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": 3, "id": 1}', Code.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "status", "id": []}', Code.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "status", "id": 1, "more": 1}', Code.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "status", "id": 1, "params": [1]}', Code.INVALID_PARAMETERS),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_answered(on: Loop, path: Path, sent: bytes, code: Code) -> None:
    with started(on, server(path)), closing(Line(path)) as line:
        line.send(sent)
        answer = line.read()
        assert answer is not None and answer["error"]["code"] == code
        assert "result" in line.ask("status")


def test_events_take_no_parameters_and_say_so(on: Loop, path: Path) -> None:
    with started(on, server(path)), closing(Line(path)) as line:
        answer = line.ask("events", id_=7, domain="web")
        assert (answer["id"], answer["error"]["code"]) == (7, Code.INVALID_PARAMETERS)
        assert "domain" in answer["error"]["message"]
        # It follows nothing: the next request is answered.
        assert "result" in line.ask("status")
        assert line.ask("events")["result"] == {"following": True}


def test_a_defect_is_told_of_and_ends_nothing(on: Loop, path: Path) -> None:
    with started(on, server(path)), closing(Line(path)) as line:
        assert line.ask("defect")["error"]["code"] == Code.INTERNAL
        assert "result" in line.ask("status")


def test_a_line_that_does_not_end_is_cut_off(on: Loop, path: Path) -> None:
    with started(on, server(path)), closing(Line(path)) as line:
        line.socket.sendall(b"x" * (MOST_REQUEST_BYTES + 1))
        answer = line.read()
        assert answer is not None and answer["error"]["code"] == Code.TOO_LONG
        assert line.read() is None


def test_who_asks_nothing_is_cut_off(on: Loop, path: Path) -> None:
    with started(on, server(path, idle_s=0.2)), closing(Line(path)) as line:
        line.socket.sendall(b'{"jsonrpc"')
        assert line.read() is None


def test_who_does_not_read_is_cut_off_and_others_are_answered(on: Loop, path: Path) -> None:
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "large"}).encode()
    # Who waited for the slow one here would wait for ten minutes.
    with started(on, server(path, write_s=600.0)), closing(Line(path)) as slow, closing(Line(path)) as other:
        for _ in range(50):
            slow.send(request)
        for _ in range(20):
            assert "result" in other.ask("status")
    with started(on, server(path, write_s=1.0)), closing(Line(path)) as slow:
        for _ in range(50):
            slow.send(request)
        hung_up = select.poll()
        hung_up.register(slow.socket, 0)
        assert hung_up.poll(60_000), "it is not cut off"
        received = 0
        try:
            while part := slow.socket.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
        # One answer at most was under way; the others were never made.
        assert received < 2 * len(LARGE)


def test_requests_are_slowed_down(on: Loop, path: Path) -> None:
    with started(on, server(path, requests_per_s=20.0, burst=2)), closing(Line(path)) as line:
        start_s = time.monotonic()
        for _ in range(12):
            line.ask("status")
        assert time.monotonic() - start_s > 0.4


def refused(path: Path) -> str:
    with closing(Line(path)) as line:
        answer = line.read()
        assert answer is not None and answer["error"]["code"] == Code.TOO_MANY
        return str(answer["error"]["message"])


def test_connections_are_limited_and_come_free_again(on: Loop, path: Path) -> None:
    with started(on, server(path, connections=3)):
        lines = [Line(path) for _ in range(3)]
        assert all("result" in line.ask("status") for line in lines)
        assert "too many connections" in refused(path)
        lines.pop().close()
        end_s = time.monotonic() + 30
        while True:
            line = Line(path)
            line.send(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}')
            answer = line.read()
            if answer and "result" in answer:
                break
            line.close()
            assert time.monotonic() < end_s
        for each in (*lines, line):
            each.close()


def test_no_user_takes_all_connections(on: Loop, path: Path) -> None:
    nobody = frozenset({os.geteuid() + 1})
    with started(on, server(path, may_change=nobody, connections_of_user=2)):
        lines = [Line(path) for _ in range(2)]
        assert all("result" in line.ask("status") for line in lines)
        assert f"user {os.geteuid()} has too many" in refused(path)
        for line in lines:
            line.close()
    with started(on, server(path, may_change=nobody, connections_of_others=1)), closing(Line(path)) as line:
        assert "result" in line.ask("status")
        assert "too many connections" in refused(path)


def test_events_reach_who_follows(on: Loop, path: Path) -> None:
    events = Events()
    with started(on, server(path, events)), closing(Line(path)) as line:
        assert line.ask("events")["result"] == {"following": True}
        on.loop.call_soon_threadsafe(events.tell, EventKind.PAUSED, "domain 3 is paused", 3)
        event = line.read()
        assert event is not None and event["method"] == "event"
        assert (event["params"]["event"], event["params"]["domid"]) == ("paused", 3)
        # Whatever it says now ends it.
        line.send(b"more")
        assert line.read() is None


def test_who_follows_too_slowly_is_told_what_was_lost() -> None:
    events = Events()
    woken: list[bool] = []
    follower: Follower = events.follow(lambda: woken.append(True))
    for number in range(MOST_WAITING + 5):
        events.tell(EventKind.GONE, f"domain {number} is gone", number)
    taken = follower.take()
    assert len(taken) == MOST_WAITING + 1
    assert taken[-1] == {"event": "lost", "count": 5}
    assert follower.take() == []


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(on: Loop, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with started(on, server(path)):
        with pytest.raises(SocketError, match="another daemon serves this socket"):
            on.run(start(server(path)))
        with closing(Line(path)) as line:
            assert "result" in line.ask("status")


async def start(other: Server) -> None:
    other.start()


def test_a_file_is_not_taken_for_a_socket(on: Loop, path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(SocketError, match="Address already in use"):
        on.run(start(server(path)))
    assert path.read_text() == "mine"
