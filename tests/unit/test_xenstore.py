# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection to xenstore: what it reads and writes, and that every wait has an end, whatever the other end does."""

import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffengine.errors import DiffengineError
from diffengine.hypervisor.xen.pyxs_connection import changers
from diffengine.hypervisor.xen.xenstore import Xenstore, XenstoreError, XenstoreGoneError, connect_xenstore
from xenstore_peer import ERROR, HEADER, READ, WATCH_EVENT, XenstorePeer, packet, xenstore_peer

DEADLINE_S = 60.0
# Of a peer that answers at once.
PATIENCE_S = 20.0


class Heard:
    """Watch events, and why the connection ended."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.ended: list[str] = []
        self._changed = threading.Condition()

    def told(self, path: str, token: str) -> None:
        with self._changed:
            self.events.append((path, token))
            self._changed.notify_all()

    def end(self, why: str) -> None:
        with self._changed:
            self.ended.append(why)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), (self.events, self.ended)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[XenstorePeer]:
    with xenstore_peer(tmp_path / "socket") as made:
        yield made


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def store(peer: XenstorePeer, heard: Heard) -> Iterator[Xenstore]:
    made = connect_xenstore(peer.path, heard.told, heard.end, PATIENCE_S)
    yield made
    made.close()


def test_reads_and_writes_as_xenstore_has_it(peer: XenstorePeer, store: Xenstore) -> None:
    assert store.read("/tool/none") is None
    store.write("/tool/here/value", "5 \N{EURO SIGN}\n")
    assert peer.read("/tool/here/value") == r"5 \u20ac\n"
    assert store.read("/tool/here/value") == r"5 \u20ac\n"
    peer.write("/tool/here/bytes", b"\xff\x00x")
    assert store.read("/tool/here/bytes") == "\\xff\0x"
    assert sorted(store.names("/tool/here") or []) == ["bytes", "value"]
    assert store.names("/tool/none") is None
    store.write("/tool/here/value", "")
    assert peer.read("/tool/here/value") == " "
    store.write("/tool/here/value", "x" * 5000)
    assert len(peer.read("/tool/here/value") or "") < 4096
    store.remove("/tool/here")
    store.remove("/tool/here")
    assert peer.read("/tool/here/value") is None
    for path in ("/tool/a b", "tool//x", "/x" * 3000):
        with pytest.raises(XenstoreError):
            store.read(path)
    assert store.names("/tool") == []


def test_what_it_makes_is_dom0s_alone(peer: XenstorePeer, store: Xenstore) -> None:
    peer.write("/tool/de", "", ["n0", "b5"])
    assert store.changers("/tool/de") == [5]
    store.make_private("/tool/de")
    assert peer.permissions("/tool/de/below") == ["n0"]
    assert store.changers("/tool/de") == []
    store.make_private("/tool/new")
    assert peer.permissions("/tool/new") == ["n0"]


@pytest.mark.parametrize(
    ("permissions", "found"),
    [
        ([b"n0"], []),
        ([b"r0", b"r7"], []),
        ([b"w0"], [-1]),
        ([b"n3"], [3]),
        ([b"b3"], [3, -1]),
        ([b"n0", b"w0", b"b4", b"w5", b"n6"], [4, 5]),
        ([], []),
    ],
)
def test_who_may_change_a_node(permissions: list[bytes], found: list[int]) -> None:
    assert changers(permissions) == found


def test_hears_of_changes_below_what_it_watches(peer: XenstorePeer, store: Xenstore, heard: Heard) -> None:
    store.watch("/tool/de", "settings")
    store.watch("@introduceDomain", "domains")
    heard.wait(lambda: ("/tool/de", "settings") in heard.events)
    peer.write("/tool/de/engine/cpu_share", "1")
    heard.wait(lambda: ("/tool/de/engine/cpu_share", "settings") in heard.events)
    peer.write("/tool/else", "1")
    peer.tell("@introduceDomain")
    heard.wait(lambda: heard.events.count(("@introduceDomain", "domains")) == 2)
    assert ("/tool/else", "settings") not in heard.events
    assert heard.ended == []


def test_a_peer_that_dies_ends_the_connection_and_who_waits(peer: XenstorePeer, store: Xenstore, heard: Heard) -> None:
    asked = threading.Event()

    def says_nothing(operation: int, request: int) -> None:
        asked.set()

    peer.misbehaviour = says_nothing
    said: list[str] = []

    def ask() -> None:
        try:
            store.read("/tool")
        except XenstoreGoneError as error:
            said.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(DEADLINE_S)
    peer.hang_up()
    asking.join(DEADLINE_S)
    assert said == ["xenstore: it has hung up"]
    heard.wait(lambda: heard.ended == ["it has hung up"])
    with pytest.raises(XenstoreGoneError, match="hung up"):
        store.read("/tool")
    store.close()
    store.close()
    assert heard.ended == ["it has hung up"]


def test_a_peer_that_stalls_is_given_up(peer: XenstorePeer, heard: Heard) -> None:
    store = connect_xenstore(peer.path, heard.told, heard.end, 0.2)
    try:
        peer.misbehaviour = lambda operation, request: None
        start_s = time.monotonic()
        with pytest.raises(XenstoreGoneError, match="no answer within 0.2 s"):
            store.read("/tool")
        assert time.monotonic() - start_s >= 0.2
        peer.misbehaviour = None
        with pytest.raises(XenstoreGoneError):
            store.read("/tool")
    finally:
        store.close()


def test_half_a_packet_is_no_reason_to_wait_for_ever(peer: XenstorePeer, heard: Heard) -> None:
    store = connect_xenstore(peer.path, heard.told, heard.end, 0.2)
    try:
        peer.misbehaviour = lambda operation, request: HEADER.pack(READ, request, 0, 100) + b"only this"
        with pytest.raises(XenstoreGoneError):
            store.read("/tool")
    finally:
        store.close()


NONSENSE: dict[str, Callable[[int, int], bytes]] = {
    "no operation": lambda operation, request: packet(77, request, b""),
    "another operation": lambda operation, request: packet(WATCH_EVENT - 1, request, b"OK\0"),
    "another request": lambda operation, request: packet(operation, request + 1000, b"5"),
    "too long": lambda operation, request: HEADER.pack(operation, request, 0, 1 << 31),
    "another transaction": lambda operation, request: HEADER.pack(operation, request, 9, 1) + b"5",
    "an error that is none": lambda operation, request: packet(ERROR, request, b"\xff\xfe\0"),
    "bytes": lambda operation, request: struct.pack("=QQQQ", *[0x5A5A5A5A5A5A5A5A] * 4),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_ends_the_connection(kind: str, peer: XenstorePeer, store: Xenstore) -> None:
    peer.misbehaviour = NONSENSE[kind]
    with pytest.raises(XenstoreGoneError):
        store.read("/tool")
    peer.misbehaviour = None
    with pytest.raises(XenstoreGoneError):
        store.read("/tool")


def test_permissions_that_are_none_end_the_connection(peer: XenstorePeer, store: Xenstore) -> None:
    peer.misbehaviour = lambda operation, request: packet(operation, request, b"what\0")
    with pytest.raises(XenstoreGoneError, match="permissions that are none"):
        store.changers("/tool")


def test_an_event_that_is_none_is_harmless(peer: XenstorePeer, store: Xenstore, heard: Heard) -> None:
    store.read("/tool")
    peer.send_all(packet(WATCH_EVENT, 0, b"no zero byte"))
    peer.send_all(packet(WATCH_EVENT, 0, b""))
    heard.wait(lambda: heard.events == [("no zero byte", ""), ("", "")])
    assert store.read("/tool") == ""


def test_an_error_that_xenstore_has_is_told_by_its_name(peer: XenstorePeer, store: Xenstore) -> None:
    peer.misbehaviour = lambda operation, request: packet(ERROR, request, b"EACCES\0")
    with pytest.raises(XenstoreError, match="reading /tool: Permission denied"):
        store.read("/tool")


def test_nobody_there_is_said_at_once(tmp_path: Path, heard: Heard) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DiffengineError, match="xenstore: /"):
            connect_xenstore(path, heard.told, heard.end)
    assert heard.ended == []
