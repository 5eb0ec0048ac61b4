# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of the status socket, for the command line."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from diffengine.errors import DiffengineError

# `free` and `release` may take minutes; their own limits end them.
ANSWER_S = 900.0


class DaemonError(DiffengineError):
    """The daemon is not there, or refuses; what it said."""


class NoDaemonError(DaemonError):
    """Nobody serves the socket."""


def unreachable(path: Path, error: OSError) -> DaemonError:
    if isinstance(error, PermissionError):
        return DaemonError(f"{path}: not for this user; become a member of its group, or root")
    return NoDaemonError(
        f"{path}: no daemon answers there ({error.strerror}); start `diffengine daemon`, or name its socket with "
        "--socket"
    )


def request_line(method: str, parameters: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode() + b"\n"


def result_of(line: bytes) -> Any:
    """Raises DaemonError with what the daemon says."""
    if not line:
        raise DaemonError("the daemon has ended; see its log")
    try:
        untrusted_answer = json.loads(line)
        if "error" in untrusted_answer:
            message = str(untrusted_answer["error"]["message"])
        else:
            return untrusted_answer["result"]
    except (ValueError, LookupError, TypeError) as error:
        raise DaemonError("what answers there is no diffengine daemon; name its socket with --socket") from error
    raise DaemonError(message)


class Client:
    """One connection; close it."""

    def __init__(self, path: Path) -> None:
        """Raises DaemonError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise unreachable(path, error) from error
        self._lines = self._socket.makefile("rb")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result. Raises DaemonError with what the daemon says."""
        self.begin(method, **parameters)
        return self.end()

    def begin(self, method: str, **parameters: Any) -> None:
        """Asks; `end` has the result."""
        with suppress(BrokenPipeError):  # it may have said why
            self._socket.sendall(request_line(method, parameters))

    def answered(self, timeout_s: float) -> bool:
        """Whether `end` would not wait, within so long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def end(self) -> Any:
        """The result of what was begun. Raises DaemonError with what the daemon says."""
        return result_of(self._read())

    def events(self) -> Iterator[dict[str, Any]]:
        """Until the daemon ends."""
        self.call("events")
        self._socket.settimeout(None)
        while line := self._lines.readline():
            yield json.loads(line)["params"]

    def _read(self) -> bytes:
        try:
            return self._lines.readline()
        except OSError as error:
            raise DaemonError(f"the daemon does not answer ({error}); see its log") from error

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
