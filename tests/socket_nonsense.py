# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines that a status socket should never get, and what must hold after any number of them."""

import json
import random
from typing import Any

from daemon_host import Line, Parts

METHODS = (
    "status",
    "domains",
    "domain",
    "reasons",
    "set",
    "pause",
    "resume",
    "page-in",
    "free",
    "release",
    "drain",
    "x",
)
NAMES = ("domain", "key", "value", "mib", "timeout_s", "undo", "y")
VALUES: tuple[Any, ...] = (
    0, 1, -1, 1 << 70, 1e308, 0.5, True, None, "", "web", "db", "1", "cpu_share", "\0", "\ud800", "x" * 500, [],
    [[]], {}, {"a": []},
)  # fmt: skip


def likely_line(chance: random.Random) -> bytes:
    """Mostly a request, with something wrong here and there; sometimes with bytes changed, cut or repeated."""
    names = chance.sample(NAMES, chance.randrange(4))
    message: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": chance.choice(METHODS),
        "params": {name: chance.choice(VALUES) for name in names},
    }
    if chance.random() < 0.2:
        message[chance.choice(["jsonrpc", "id", "method", "params", "z"])] = chance.choice(VALUES)
    return damaged(json.dumps(message).encode(), chance) if chance.random() < 0.3 else json.dumps(message).encode()


def damaged(line: bytes, chance: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(3)
        if kind == 0:
            data[place:place] = chance.randbytes(chance.randrange(8))
        elif kind == 1:
            del data[place : place + chance.randrange(8)]
        else:
            data[place:place] = data[place : place + 40]
    return bytes(data).replace(b"\n", b"")


def answered(line: Line, sent: bytes) -> bool:
    """Sends it and a request behind it. Whether that was answered; False: the other end hung up, as for too long a
    line."""
    line.send(sent)
    line.send(b'{"jsonrpc": "2.0", "id": "behind", "method": "status"}')
    while answer := line.read():
        assert answer.get("error", {}).get("code") != -32603, (sent, answer)
        if answer.get("id") == "behind":
            return True
    return False


def state(parts: Parts) -> tuple[Any, ...]:
    """What nobody may change who may only look."""

    def read(operations: Any) -> tuple[Any, ...]:
        status = operations.snapshot.status
        standings = tuple(domain.standing for domain in operations.snapshot.domains)
        return operations.configuration, status.paused, status.freeing, standings

    return parts.worker.submit(read).result()
