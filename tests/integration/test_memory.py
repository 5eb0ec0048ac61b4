# SPDX-License-Identifier: GPL-2.0-or-later
"""What `diffengine analyze` itself takes in memory: images are read in place, so it hardly grows with them."""

import subprocess
import time
from pathlib import Path

from command import COMMAND
from page_fixtures import text_page

MIB = 1 << 20


def peak_bytes(image: Path) -> int:
    """Most of RssAnon + RssShmem that is seen; pages of mapped images are in neither."""
    process = subprocess.Popen([*COMMAND, "analyze", str(image), "--json"], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        values = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem"))]
        peak = max(peak, sum(values))
        time.sleep(0.005)
    assert process.wait(timeout=120) == 0
    return peak


def test_memory_grows_by_far_less_than_the_images(tmp_path: Path) -> None:
    peaks = {}
    for size in (8 * MIB, 520 * MIB):
        path = tmp_path / f"{size}.raw"
        with path.open("wb") as file:
            for number in range(512):
                file.write(text_page(number))
            file.truncate(size)
        peaks[size] = peak_bytes(path)
    small, large = peaks.values()
    assert small > 8 * MIB  # or nothing was measured
    assert large - small < 512 * MIB / 8
