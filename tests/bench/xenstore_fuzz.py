# SPDX-License-Identifier: GPL-2.0-or-later
"""100,000 values for the daemon's tree in xenstore: right ones, nonsense, some in nodes that a guest may write; and
nonsense from xenstored itself.

Fails if a value ends the daemon, if one that a guest may write is used, if a setting is out of bounds, or if the
process grows.
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.socket_fuzz import MOST_GROWTH_BYTES, resident_bytes
from daemon_host import Loop, Parts, daemon_parts, loop
from diffengine.service.xenstore_link import ROOT, XenstoreLink
from xenstore_peer import WATCH_EVENT, XenstorePeer, packet, xenstore_peer

DEADLINE_S = 600.0
ENGINE_KEYS = (
    "cpu_share",
    "visit_interval_s",
    "c4_visits",
    "fault_limit",
    "low_watermark",
    "dense",
    "nothing",
    "policy",
)
DOMAIN_KEYS = ("enabled", "trust_group", "min_resident_mib", "log_dirty", "grace_s", "x")
VALUES = (
    "0.5", "1", "true", "false", "0", "-1", "1e308", "NaN", "Infinity", "web", '"8"', "[]", "{}", "null", "", " ", "\0",
    "[" * 2000, "9" * 400, "\x7f", "\xff\xfe", "0x10", "1 2", "512 30", "compress-first", "\N{EURO SIGN}",
)  # fmt: skip
GUESTS = ["n0", "w3"]


def likely_value(chance: random.Random) -> bytes:
    value = chance.choice(VALUES).encode("utf-8", "surrogateescape")
    if chance.random() < 0.3:
        place = chance.randrange(len(value) + 1)
        value = value[:place] + chance.randbytes(chance.randrange(6)) + value[place:]
    return value[:3000]


def likely_path(chance: random.Random, uuids: list[str]) -> str:
    kind = chance.randrange(10)
    if kind < 4:
        return f"{ROOT}/engine/{chance.choice(ENGINE_KEYS)}"
    if kind < 7:
        return f"{ROOT}/domain/{chance.choice([*uuids, 'web', '0'])}/{chance.choice(DOMAIN_KEYS)}"
    if kind < 8:
        return f"{ROOT}/domains/{chance.choice(DOMAIN_KEYS)}"
    if kind < 9:
        return f"{ROOT}/free/{chance.choice(['a', 'b', 'c'])}"
    return chance.choice(
        [ROOT, f"{ROOT}/engine", f"{ROOT}/domain", f"{ROOT}/free/a/b", f"{ROOT}/engine/cpu_share/error"]
    )


def disturb(peer: XenstorePeer, chance: random.Random) -> None:
    """xenstored says what nobody has asked for."""
    kind = chance.randrange(4)
    if kind == 0:
        peer.send_all(chance.randbytes(chance.randrange(1, 64)))
    elif kind == 1:
        peer.send_all(packet(WATCH_EVENT, 0, chance.randbytes(chance.randrange(40))))
    elif kind == 2:
        peer.send_all(packet(chance.randrange(20), chance.randrange(1000), b"OK\0"))
    else:
        peer.hang_up()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


def sane(parts: Parts) -> bool:
    """Whatever was said: each setting that holds is one that a file might have."""
    current = parts.worker.submit(lambda operations: operations.configuration).result()
    engine = current.engine
    return 0.001 <= engine.cpu_share <= 1 and engine.low_watermark <= engine.high_watermark and engine.c4_visits >= 1


def run(values: int, chance: random.Random, folder: Path, on: Loop) -> int:
    """Bytes that the process has grown by, after the first tenth."""
    start_bytes = 0
    with daemon_parts(folder / "status.sock", on) as parts, xenstore_peer(folder / "xenstore") as peer:
        link = XenstoreLink(
            peer.path,
            parts.worker,
            lambda request: asyncio.run_coroutine_threadsafe(parts.methods.free(request), on.loop),
            lambda *event: on.loop.call_soon_threadsafe(parts.events.tell, *event),
            5.0,
        )
        link.start()
        uuids = [each.uuid for each in parts.worker.snapshot.domains]
        for number in range(values):
            if number == values // 10:
                start_bytes = resident_bytes()
            path, guests = likely_path(chance, uuids), chance.random() < 0.1
            if chance.random() < 0.1:
                peer.remove(path)
            else:
                peer.write(path, likely_value(chance), GUESTS if guests else None)
            if number % 1000 == 0:
                disturb(peer, chance)
            if number % 100 == 0:
                peer.remove(path)
                assert sane(parts), (path, peer.read(path))
        # It has looked at all of it, and works.
        peer.remove(ROOT)
        peer.write(f"{ROOT}/engine/c4_visits", "77", GUESTS)
        wait_until(lambda: bool(peer.read(f"{ROOT}/engine/c4_visits/error")), "a guest's value is not refused")
        assert parts.worker.submit(lambda operations: operations.configuration.engine.c4_visits).result() != 77
        peer.remove(f"{ROOT}/engine/c4_visits")
        peer.write(f"{ROOT}/engine/c4_visits", "77", ["n0"])
        wait_until(
            lambda: parts.worker.submit(lambda operations: operations.configuration.engine.c4_visits).result() == 77,
            "a right value is not used any more",
        )
        grown = resident_bytes() - start_bytes
        link.stop()
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    logging.getLogger("diffengine").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, loop() as on:
        start_s = time.monotonic()
        grown = run(given.values, random.Random(given.seed), Path(folder), on)
    took_s = time.monotonic() - start_s
    print(f"{given.values:,} values in {took_s:.0f} s; grew by {grown / 1024:,.0f} KiB after the first tenth")
    return int(grown > MOST_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
