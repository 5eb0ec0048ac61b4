# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick: what a whole-stream compressor makes of the images' distinct pages.

`zstd -3 --long=27` reads the different non-zero pages of all images, in order of first appearance, as one stream. It
may look back over 128 MiB, so it finds every copy and every similar page; but none of its pages can be read alone.

It shares no code with what it measures: pages are told apart by BLAKE2b here, not by our digest.
"""

import hashlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096
COMMAND = ("zstd", "-q", "-3", "--long=27", "-c")


@dataclass(frozen=True)
class Yardstick:
    """pages, zero, distinct: counts. distinct: different contents that are not all zero. bytes: of the stream."""

    pages: int
    zero: int
    distinct: int
    bytes: int


def _pages(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as image:
            while page := image.read(PAGE_BYTES):
                yield page


def measure(paths: Sequence[Path]) -> Yardstick:
    """Reads the images once. Raises OSError without the zstd program, CalledProcessError if it fails."""
    zero_page = bytes(PAGE_BYTES)
    seen: set[bytes] = set()
    pages = zero = 0
    chunks: list[int] = []
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None and zstd.stdout is not None
        out = zstd.stdout
        # Both ends of the pipe at once: zstd would stop reading while nobody takes what it writes.
        reader = threading.Thread(target=lambda: chunks.extend(map(len, iter(lambda: out.read(1 << 20), b""))))
        reader.start()
        for page in _pages(paths):
            pages += 1
            if page == zero_page:
                zero += 1
                continue
            digest = hashlib.blake2b(page, digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                zstd.stdin.write(page)
        zstd.stdin.close()
        reader.join()
    if zstd.returncode != 0:
        raise subprocess.CalledProcessError(zstd.returncode, COMMAND)
    return Yardstick(pages, zero, len(seen), sum(chunks))
