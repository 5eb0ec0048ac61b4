# SPDX-License-Identifier: GPL-2.0-or-later
"""A small xenstored of our own: the wire protocol (xs_wire.h), a tree with owners, watches; and ways to fail.

Tests change its tree as dom0's tools would, by its methods.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HEADER = struct.Struct("=IIII")
DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH = 1, 2, 3, 4, 5
WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR = 11, 12, 13, 14, 15, 16
MOST_BYTES = 4096
# What a misbehaving peer sends instead of an answer to a request with this header; None: nothing, from now on.
Misbehaviour = Callable[[int, int], bytes | None]


def packet(operation: int, request: int, payload: bytes) -> bytes:
    return HEADER.pack(operation, request, 0, len(payload)) + payload


class _Connection:
    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.watches: list[tuple[str, bytes]] = []
        self.lock = threading.Lock()

    def send(self, data: bytes) -> None:
        with self.lock, suppress(OSError):
            self.socket.sendall(data)


class XenstorePeer:
    """Serves at `path` from `listen` to `die`; the tree outlives both, as no real one's does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.misbehaviour: Misbehaviour | None = None
        self.connected = 0  # times that somebody has connected
        self._nodes: dict[str, bytes] = {"/": b"", "/tool": b""}
        self._permissions: dict[str, list[str]] = {"/": ["n0"]}
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()
        self._listening: socket.socket | None = None

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(os.fspath(self.path))
        self._listening.listen(4)
        self._start(self._accept, self._listening)

    def die(self) -> None:
        """And is not there until `listen`."""
        if self._listening:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None
        self.hang_up()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def hang_up(self) -> None:
        """On everybody; who connects again is served."""
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)

    # The tree, as dom0's tools see it.

    def write(self, path: str, value: str | bytes, permissions: list[str] | None = None) -> None:
        """Permissions: those of the node above, if none are named."""
        with self._lock:
            self._make_parents(path)
            self._nodes[path] = value.encode() if isinstance(value, str) else value
            if permissions:
                self._permissions[path] = permissions
            self._tell(path)

    def read(self, path: str) -> str | None:
        with self._lock:
            value = self._nodes.get(path)
            return None if value is None else value.decode()

    def remove(self, path: str) -> None:
        with self._lock:
            for each in [each for each in self._nodes if each == path or each.startswith(path + "/")]:
                del self._nodes[each]
                self._permissions.pop(each, None)
            self._tell(path)

    def permissions(self, path: str) -> list[str]:
        with self._lock:
            while path not in self._permissions:
                path = path.rpartition("/")[0] or "/"
            return self._permissions[path]

    def tell(self, path: str) -> None:
        """Of a special path: @introduceDomain."""
        with self._lock:
            self._tell(path)

    def send_all(self, data: bytes) -> None:
        """Something that nobody has asked for."""
        with self._lock:
            for connection in self._connections:
                connection.send(data)

    def _make_parents(self, path: str) -> None:
        while path := path.rpartition("/")[0]:
            self._nodes.setdefault(path, b"")

    def _names(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        return [
            each[len(prefix) :] for each in self._nodes if each.startswith(prefix) and "/" not in each[len(prefix) :]
        ]

    def _tell(self, path: str) -> None:
        for connection in self._connections:
            for watched, token in connection.watches:
                if path == watched or path.startswith(watched + "/"):
                    connection.send(packet(WATCH_EVENT, 0, path.encode() + b"\0" + token + b"\0"))

    # The wire.

    def _start(self, target: Callable[[Any], None], given: Any) -> None:
        thread = threading.Thread(target=target, args=(given,), name="xenstore-peer")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            connection = _Connection(connected)
            with self._lock:
                # Who has connected can be hung up on.
                self._connections.append(connection)
                self.connected += 1
                self._start(self._serve, connection)

    def _serve(self, connection: _Connection) -> None:
        connected = connection.socket
        with connected, suppress(OSError, EOFError):
            while True:
                operation, request, _, size = HEADER.unpack(_exactly(connected, HEADER.size))
                payload = _exactly(connected, size)
                if self.misbehaviour:
                    said = self.misbehaviour(operation, request)
                    if said is None:
                        continue
                    connection.send(said)
                else:
                    connection.send(self._answer(connection, operation, request, payload))
        with self._lock:
            self._connections.remove(connection)

    def _answer(self, connection: _Connection, operation: int, request: int, payload: bytes) -> bytes:
        first, _, rest = payload.partition(b"\0")
        path = first.decode()
        with self._lock:
            if operation == WATCH:
                token = rest.rstrip(b"\0")
                connection.watches.append((path, token))
                fired = packet(WATCH_EVENT, 0, path.encode() + b"\0" + token + b"\0")
                return packet(WATCH, request, b"OK\0") + fired
            if operation in (WRITE, MKDIR):
                self._make_parents(path)
                if operation == WRITE or path not in self._nodes:
                    self._nodes[path] = rest if operation == WRITE else b""
                self._tell(path)
                return packet(operation, request, b"OK\0")
            if path not in self._nodes:
                return packet(ERROR, request, b"ENOENT\0")
            if operation == READ:
                return packet(READ, request, self._nodes[path])
            if operation == DIRECTORY:
                listed = b"".join(name.encode() + b"\0" for name in self._names(path))
                fits = len(listed) <= MOST_BYTES
                return packet(DIRECTORY, request, listed) if fits else packet(ERROR, request, b"E2BIG\0")
            if operation == GET_PERMS:
                return packet(GET_PERMS, request, b"".join(each.encode() + b"\0" for each in self.permissions(path)))
            if operation == SET_PERMS:
                self._permissions[path] = [each.decode() for each in rest.split(b"\0")[:-1]]
                return packet(SET_PERMS, request, b"OK\0")
            if operation == RM:
                self.remove(path)
                return packet(RM, request, b"OK\0")
        return packet(ERROR, request, b"ENOSYS\0")


def _exactly(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connected.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@contextmanager
def xenstore_peer(path: Path) -> Iterator[XenstorePeer]:
    peer = XenstorePeer(path)
    peer.listen()
    try:
        yield peer
    finally:
        peer.die()
