# SPDX-License-Identifier: GPL-2.0-or-later
"""100,000 lines of nonsense for the status socket, from one who may only look; how long status takes meanwhile.

Fails if a line ends the daemon, shows a defect, changes anything, or makes the process grow.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from daemon_host import Line, daemon_parts, loop
from socket_nonsense import answered, likely_line, state

MOST_GROWTH_BYTES = 8 << 20
WARM_UP = 5_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    chance = random.Random(given.seed)
    took_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, loop() as on:
        path = Path(folder) / "status.sock"
        with daemon_parts(path, on, may_change=frozenset()) as parts, closing(Line(path)) as asking:
            before, start_bytes = state(parts), 0
            line = Line(path)
            for number in range(given.lines):
                if number == WARM_UP:
                    start_bytes = resident_bytes()
                if not answered(line, likely_line(chance)):
                    line.close()
                    line = Line(path)
                if number % 100 == 0:
                    start_s = time.perf_counter()
                    asking.ask("status")
                    took_s.append(time.perf_counter() - start_s)
            line.close()
            assert state(parts) == before, "something was changed"
            grown = resident_bytes() - start_bytes if given.lines > WARM_UP else 0
    p99_ms = statistics.quantiles(took_s, n=100)[98] * 1000 if len(took_s) > 1 else 0.0
    print(f"{given.lines:,} lines; grew by {grown / 1024:,.0f} KiB after {WARM_UP:,}; status p99 {p99_ms:.1f} ms")
    return int(grown > MOST_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
