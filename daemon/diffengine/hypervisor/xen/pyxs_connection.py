# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore.Xenstore on pyxs.

pyxs has nobody to look after it. Its client waits for ever when its router's thread has ended, which one unexpected
packet makes it do, or when xenstored stalls; its `select` can't have descriptors beyond 1023; a length is believed
whatever it is. So its router and its transport are replaced by ours here, where every wait has an end and whatever goes
wrong ends the whole connection. What is left of it knows packets, operations, paths and permissions.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from errno import EINVAL, ENOENT
from pathlib import Path
from stat import S_ISCHR
from typing import Any, TypeVar

from pyxs._internal import NUL, Op
from pyxs.client import Client, Router, RVar
from pyxs.connection import PacketConnection
from pyxs.exceptions import ConnectionError as PyxsConnectionError
from pyxs.exceptions import PyXSError, UnexpectedPacket

from diffengine.errors import one_line
from diffengine.hypervisor.xen.xenstore import Told, XenstoreError, XenstoreGoneError

# Of a payload, by the protocol.
MOST_BYTES = 4096
# dom0's, and no right for anybody else.
PRIVATE = [b"n0"]
Given = TypeVar("Given")
Result = TypeVar("Result")


class _Transport:
    """Bytes to and from a socket or /dev/xen/xenbus; no wait is longer than the patience."""

    def __init__(self, path: Path, patience_s: float) -> None:
        self._patience_s = patience_s
        try:
            self._fd = _open(path, patience_s)
        except OSError as error:
            raise PyxsConnectionError(f"{path}: {error.strerror or error}") from error

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        if size > MOST_BYTES:
            raise PyxsConnectionError(f"a packet of {size} bytes")
        data = b""
        deadline_s = time.monotonic() + self._patience_s
        while len(data) < size:
            part = self._now(os.read, size - len(data))
            if part is None:
                self._wait(select.POLLIN, deadline_s)
            elif not part:
                raise PyxsConnectionError("it has hung up")
            else:
                data += part
        return data

    def send(self, data: bytes) -> None:
        deadline_s = time.monotonic() + self._patience_s
        while data:
            written = self._now(os.write, data)
            if written is None:
                self._wait(select.POLLOUT, deadline_s)
            else:
                data = data[written:]

    def _now(self, operation: Callable[[int, Given], Result], given: Given) -> Result | None:
        """None: it would have to wait. An OSError must not reach pyxs, which would close what others still use."""
        try:
            return operation(self._fd, given)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PyxsConnectionError(error.strerror or str(error)) from error

    def _wait(self, what: int, deadline_s: float) -> None:
        poll = select.poll()
        poll.register(self._fd, what)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise PyxsConnectionError("it stalls")

    def close(self) -> None:
        os.close(self._fd)


def _open(path: Path, patience_s: float) -> int:
    if S_ISCHR(path.stat().st_mode):
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        connection.connect(os.fspath(path))
        connection.setblocking(False)
        return connection.detach()


class _Packets(PacketConnection):  # type: ignore[misc]
    def __init__(self, path: Path, patience_s: float) -> None:
        self.path = path
        self._patience_s = patience_s

    def create_transport(self) -> _Transport:
        return _Transport(self.path, self._patience_s)


class _Answer(RVar):  # type: ignore[misc]
    """What a caller waits for; not longer than the patience."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s

    def get(self) -> Any:
        with self.condition:
            if not self.condition.wait_for(lambda: self.target is not None, self._patience_s):
                raise PyxsConnectionError(f"no answer within {self._patience_s:g} s")
        return self.target


class _Router(Router):  # type: ignore[misc]
    """Hands packets to who waits for them. When its thread ends, nobody waits on."""

    def __init__(self, connection: _Packets, told: Told, ended: Callable[[str], None], patience_s: float) -> None:
        super().__init__(connection)
        self.thread.name = "xenstore-packets"
        self._told = told
        self._tell_end = ended
        self._patience_s = patience_s
        self._why_ended = ""

    def __call__(self) -> None:
        why = "closed"
        try:
            poll = select.poll()
            for each in (self.connection, self.r_terminator):
                poll.register(each.fileno(), select.POLLIN)
            while self.r_terminator.fileno() not in dict(poll.poll()):
                self._take(self.connection.recv())
        except (PyXSError, OSError, ValueError) as error:
            why = _reason(error)
        self._end(why)

    def _take(self, packet: Any) -> None:
        if packet.op != Op.WATCH_EVENT:
            answer = self.rvars.pop(packet.rq_id, None)
            if answer is None:
                raise UnexpectedPacket("an answer that nobody waits for")
            answer.set(packet)
            return
        path, token, *_ = packet.payload.split(NUL) + [b""]
        self._told(_text(path), _text(token))

    def send(self, packet: Any) -> _Answer:
        answer = _Answer(self._patience_s)
        with self.send_lock:
            if self._why_ended:
                raise PyxsConnectionError(self._why_ended)
            self.rvars[packet.rq_id] = answer
            self.connection.send(packet)
        return answer

    def _end(self, why: str) -> None:
        """On the thread, last of all: whoever waits gets an answer that is an error, and is told."""
        with self.send_lock:
            self._why_ended = why
            self.connection.close()
            while self.rvars:
                _, answer = self.rvars.popitem()
                answer.set(_Ended(why))
        if why != "closed":
            self._tell_end(why)

    def terminate(self) -> None:
        """From any other thread, any number of times."""
        if self.thread.is_alive():
            self.w_terminator.send(NUL)
            self.thread.join()
        self.r_terminator.close()
        self.w_terminator.close()


class _Ended:
    """In the place of an answer: raises when it is looked at."""

    def __init__(self, why: str) -> None:
        self._why = why

    @property
    def op(self) -> Any:
        raise PyxsConnectionError(self._why)


class PyxsConnection:
    """xenstore.Xenstore; calls from one thread."""

    def __init__(self, path: Path, told: Told, ended: Callable[[str], None], patience_s: float) -> None:
        self._router = _Router(_Packets(path, patience_s), told, ended, patience_s)
        self._client = Client(router=self._router)
        try:
            self._client.connect()
        except PyXSError as error:
            raise self._give_up(_reason(error)) from error

    def read(self, path: str) -> str | None:
        value = self._ask(f"reading {path}", lambda: self._client.read(path.encode()))
        return None if value is None else _text(value)

    def write(self, path: str, text: str) -> None:
        # pyxs takes no empty value.
        value = one_line(text).encode("ascii", "backslashreplace") or b" "
        self._tell(f"writing {path}", lambda: self._client.write(path.encode(), value[: MOST_BYTES - len(path) - 1]))

    def remove(self, path: str) -> None:
        self._ask(f"removing {path}", lambda: self._client.delete(path.encode()))

    def names(self, path: str) -> list[str] | None:
        found = self._ask(f"listing {path}", lambda: self._client.list(path.encode()))
        return None if found is None else [_text(name) for name in found]

    def make_private(self, path: str) -> None:
        self._tell(f"making {path}", lambda: self._client.mkdir(path.encode()))
        self._tell(f"taking {path} for dom0 alone", lambda: self._client.set_perms(path.encode(), PRIVATE))

    def changers(self, path: str) -> list[int]:
        permissions = self._ask(f"reading the permissions of {path}", lambda: self._client.get_perms(path.encode()))
        try:
            return changers(permissions or [])
        except ValueError as error:
            raise self._give_up("permissions that are none") from error

    def watch(self, path: str, token: str) -> None:
        # Not by pyxs's Monitor, which knows no end, and refuses devices that can be watched since Xen 4.14.
        self._tell(f"watching {path}", lambda: self._client.ack(Op.WATCH, path.encode() + NUL, token.encode() + NUL))

    def close(self) -> None:
        self._router.terminate()

    def _ask(self, doing: str, operation: Callable[[], Result]) -> Result | None:
        """None: there is no such node."""
        try:
            return self._tell(doing, operation)
        except XenstoreError as error:
            if error.error == ENOENT:
                return None
            raise

    def _tell(self, doing: str, operation: Callable[[], Result]) -> Result:
        try:
            return operation()
        except (PyxsConnectionError, OSError, UnicodeDecodeError) as error:
            raise self._give_up(_reason(error)) from error
        except PyXSError as error:
            number = error.args[0] if error.args and isinstance(error.args[0], int) else EINVAL
            raise XenstoreError(doing, number, os.strerror(number)) from error
        except ValueError as error:
            raise XenstoreError(doing, EINVAL, "not a path or a value that xenstore can have") from error

    def _give_up(self, why: str) -> XenstoreGoneError:
        self._router.terminate()
        return XenstoreGoneError(f"xenstore: {why}")


def changers(permissions: list[bytes]) -> list[int]:
    """The first entry names the owner, who may do everything, and what others may; the rest what single domains may.

    Raises ValueError. Others is -1.
    """
    found = []
    for number, entry in enumerate(permissions):
        right, domid = entry[:1].decode(), int(entry[1:])
        if number == 0 and domid != 0:
            found.append(domid)
        if right in "wb" and (number == 0 or domid != 0):
            found.append(-1 if number == 0 else domid)
    return found


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, UnexpectedPacket):
        return "a packet that does not belong here"
    if isinstance(error, PyxsConnectionError):
        return one_line(str(error.args[0])) if error.args else "the connection broke"
    return "packets that are none" if isinstance(error, PyXSError | ValueError) else one_line(str(error))
