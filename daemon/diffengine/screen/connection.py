# SPDX-License-Identifier: GPL-2.0-or-later
"""The status socket as a screen needs it: it waits for nobody, and comes back when the daemon does."""

import asyncio
from pathlib import Path
from typing import Any

from diffengine.screen.figures import Reading
from diffengine.service.client import DaemonError, request_line, result_of, unreachable

# A daemon that is busy answers within milliseconds.
ANSWER_S = 5.0
# 1,024 domains take less.
MOST_ANSWER_BYTES = 16 << 20


class Connection:
    """Connects when it is asked, and again when that failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._alone = asyncio.Lock()

    async def read(self) -> Reading:
        """Raises DaemonError."""
        status = await self.call("status")
        return Reading(status, tuple((await self.call("domains"))["domains"]))

    async def call(self, method: str, **parameters: Any) -> Any:
        """The result. Raises DaemonError with what the daemon says."""
        async with self._alone:
            try:
                async with asyncio.timeout(ANSWER_S):
                    line = await self._ask(request_line(method, parameters))
            except TimeoutError as error:
                self.close()
                raise DaemonError("the daemon does not answer; see its log") from error
            except OSError as error:
                self.close()
                raise unreachable(self._path, error) from error
            except ValueError as error:
                self.close()
                raise DaemonError("the daemon's answer is too long") from error
            if not line:
                self.close()
            return result_of(line)

    async def _ask(self, request: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path, limit=MOST_ANSWER_BYTES)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        return await reader.readline()

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None
