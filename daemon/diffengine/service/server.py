# SPDX-License-Identifier: GPL-2.0-or-later
"""The status socket: who may connect, how much and how fast. What is asked for is methods.py's.

A client costs a bounded amount of memory and time, whatever it does: lines, connections, requests per second and
answers that nobody reads are limited, and one connection has one request under way.
"""

import asyncio
import grp
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffengine.errors import DiffengineError
from diffengine.service.events import Events
from diffengine.service.methods import finish
from diffengine.service.rpc import (
    MOST_REQUEST_BYTES,
    Code,
    Request,
    RpcError,
    error_line,
    event_line,
    parse_request,
    result_line,
)
from diffengine.settings import CheckedTable

LOG = logging.getLogger("diffengine")
MODE = 0o660
CREDENTIALS = struct.Struct("3i")
Call = Callable[[str, dict[str, Any], bool], Awaitable[dict[str, Any]]]


class SocketError(DiffengineError):
    """The socket can't be made; why, and what to do."""


@dataclass(frozen=True)
class Limits:
    """connections, and of these for anybody but root; also per user. requests_per_s: of a connection, with a burst.

    accepts_per_s: of all. idle_s: a connection that asks nothing for so long is closed; write_s: or does not read.
    """

    connections: int = 32
    connections_of_others: int = 24
    connections_of_user: int = 8
    requests_per_s: float = 50.0
    burst: int = 100
    accepts_per_s: float = 200.0
    idle_s: float = 300.0
    write_s: float = 10.0


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Bucket:
    """Gives out so many tokens per second; `burst` of them wait at most."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._at_s = asyncio.get_running_loop().time()

    async def take(self) -> None:
        """Waits for a token."""
        now_s = asyncio.get_running_loop().time()
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s) - 1
        self._at_s = now_s
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._per_s)


def peer_of(connection: socket.socket) -> Peer:
    return Peer(*CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)))


def changers() -> frozenset[int]:
    """Users who may change something: root, and the one that the daemon runs as."""
    return frozenset({0, os.geteuid()})


class Server:
    """Serves from `start` to `close`."""

    def __init__(
        self,
        path: Path,
        group: str,
        call: Call,
        events: Events,
        may_change: frozenset[int] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """may_change: users; changers() if None."""
        self._path = path
        self._group = group
        self._call = call
        self._events = events
        self._may_change = changers() if may_change is None else may_change
        self._limits = limits or Limits()
        self._serving: dict[asyncio.Task[None], Peer] = {}
        self._accepting: asyncio.Task[None] | None = None

    def start(self, handed_over: socket.socket | None = None) -> None:
        """handed_over: the socket, if somebody made it already, who will also remove it. Raises SocketError."""
        self._made = handed_over is None
        self._listening = handed_over or listen(self._path, self._group)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        tasks = [*self._serving, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()
        if self._made:
            self._path.unlink(missing_ok=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        bucket = Bucket(self._limits.accepts_per_s, self._limits.connections)
        while True:
            await bucket.take()
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                # No descriptor is free, or the client has gone already.
                LOG.warning("status socket: a connection could not be taken: %s", error.strerror)
                await asyncio.sleep(1 / self._limits.accepts_per_s)
                continue
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        peer = peer_of(connection)
        if refusal := self._refusal(peer):
            with connection, suppress(OSError):
                connection.send(error_line(RpcError(Code.TOO_MANY, refusal)))
            return
        task = asyncio.create_task(self._serve(connection, peer))
        self._serving[task] = peer
        task.add_done_callback(self._serving.pop)

    def _refusal(self, peer: Peer) -> str:
        """Why there is no room for one more connection of this user, "" if there is. Root's are kept free for root."""
        if len(self._serving) >= self._limits.connections:
            return "too many connections; try again later"
        if peer.uid in self._may_change:
            return ""
        of_others = [each for each in self._serving.values() if each.uid not in self._may_change]
        if len(of_others) >= self._limits.connections_of_others:
            return "too many connections; try again later"
        if sum(each.uid == peer.uid for each in of_others) >= self._limits.connections_of_user:
            return f"user {peer.uid} has too many connections; close one"
        return ""

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        LOG.info("status socket: user %d (process %d, group %d) is connected", peer.uid, peer.pid, peer.gid)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MOST_REQUEST_BYTES)
        # What was written is waited for until it is gone: no answer piles up behind another.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await _Conversation(reader, writer, peer, self).run()
        except (OSError, TimeoutError, EOFError):
            pass  # it went, or did not read
        except Exception:
            LOG.exception("status socket: a defect; please report it")
        finally:
            writer.transport.abort()

    async def answer(self, line: bytes, peer: Peer) -> bytes:
        """The line to answer with, b"" for none."""
        try:
            request = parse_request(line)
            may_change = peer.uid in self._may_change
            try:
                result = await self._call(request.method, request.untrusted_parameters, may_change)
            except RpcError as error:
                error.id = request.id
                raise
            except Exception as error:
                LOG.exception("status socket: a defect in %s; please report it", request.method)
                message = "a defect of the daemon's, which its log tells of"
                raise RpcError(Code.INTERNAL, message, request.id) from error
            return result_line(request.id, result) if request.answered else b""
        except RpcError as error:
            return error_line(error)

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def events(self) -> Events:
        return self._events


class _Conversation:
    """One connection: request, answer, request, answer; or, once it has asked for it, events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer, server: Server) -> None:
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._server = server
        self._limits = server.limits

    async def run(self) -> None:
        """Until the client goes, asks for events, or breaks a limit. Raises OSError, TimeoutError or EOFError."""
        bucket = Bucket(self._limits.requests_per_s, self._limits.burst)
        while True:
            await bucket.take()
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    untrusted_line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                await self._write(error_line(RpcError(Code.TOO_LONG, f"longer than {MOST_REQUEST_BYTES} bytes")))
                return
            if request := _subscription(untrusted_line):
                try:
                    finish(CheckedTable("params", request.untrusted_parameters, []))
                except RpcError as error:
                    error.id = request.id
                    await self._write(error_line(error))
                    continue
                await self._write(result_line(request.id, {"following": True}))
                await self._stream()
                return
            await self._write(await self._server.answer(untrusted_line, self._peer))

    async def _stream(self) -> None:
        """Events, until the client goes. Whatever it sends from now on ends it."""
        wake = asyncio.Event()
        follower = self._server.events.follow(wake.set)
        ended = asyncio.create_task(self._reader.read(1))
        ended.add_done_callback(lambda _: wake.set())
        try:
            while not ended.done():
                await wake.wait()
                wake.clear()
                for event in follower.take():
                    await self._write(event_line(event))
        finally:
            self._server.events.leave(follower)
            ended.cancel()

    async def _write(self, line: bytes) -> None:
        self._writer.write(line)
        async with asyncio.timeout(self._limits.write_s):
            await self._writer.drain()


def _subscription(untrusted_line: bytes) -> Request | None:
    """A request for events; None if it is another one, or none at all."""
    try:
        request = parse_request(untrusted_line)
    except RpcError:
        return None
    return request if request.method == "events" else None


def listen(path: Path, group: str) -> socket.socket:
    """A socket for root and the group. One that a former daemon left behind is replaced. Raises SocketError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_served(path):
            raise SocketError(f"{path}: another daemon serves this socket; end it first, or set another [socket] path")
        if path.is_socket():
            path.unlink()
        # Nobody else may connect before group and mode are right.
        before = os.umask(0o777 & ~0o600)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        _give_to_group(path, group)
        path.chmod(MODE)
        listening.listen(16)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise SocketError(f"{path}: {reason}; set [socket] path to where a socket can be made") from error
    except BaseException:
        listening.close()
        raise
    return listening


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
        return True


def _give_to_group(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        LOG.warning("status socket: there is no group %s; only the daemon's own group may read", group)
    except PermissionError:
        LOG.warning("status socket: group %s is not ours to give; only the daemon's own group may read", group)
