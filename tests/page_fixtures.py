# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages as guests have them, for property tests: runs of zeroes and words, noise, copies that were edited or moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

PAGE = 4096
TEXT = b"/usr/lib/x86_64-linux-gnu/libc.so.6\0The quick brown fox jumps over the lazy dog.\n"


class Pages:
    """Pages in memory, as native calls take them: by address."""

    def __init__(self, pages: Sequence[bytes]) -> None:
        self.contents = tuple(pages)
        self._buffer = np.frombuffer(b"".join(pages), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def addresses(self) -> NDArray[np.uint64]:
        return np.uint64(self._buffer.ctypes.data) + np.arange(len(self), dtype=np.uint64) * np.uint64(PAGE)

    def addresses_or_none(self, numbers: Sequence[int | None]) -> NDArray[np.uint64]:
        """The addresses of pages by number; 0 for None, as for a page without a reference."""
        return np.array([0 if n is None else self.addresses[n] for n in numbers], dtype=np.uint64)


def random_page(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(PAGE)


def word_page(word: bytes) -> bytes:
    return word * (PAGE // len(word))


def text_page(seed: int) -> bytes:
    """Compressible, and different for every seed."""
    rng = np.random.default_rng(seed)
    return b"".join(TEXT[a : a + b] for a, b in rng.integers(1, len(TEXT), (400, 2)).tolist())[:PAGE].ljust(PAGE, b".")


@dataclass(frozen=True)
class Piece:
    """A run of bytes of one kind."""

    kind: str
    length: int
    seed: int

    def content(self) -> bytes:
        if self.kind == "zero":
            return bytes(self.length)
        if self.kind == "word":
            return (self.seed.to_bytes(8, "little") * (self.length // 8 + 1))[: self.length]
        if self.kind == "text":
            return (text_page(self.seed) * (self.length // PAGE + 1))[: self.length]
        return np.random.default_rng(self.seed).bytes(self.length)


seeds = st.integers(0, 2**32 - 1)
pieces = st.builds(Piece, st.sampled_from(["zero", "word", "text", "random"]), st.integers(1, PAGE), seeds)


def _joined(parts: Sequence[Piece]) -> bytes:
    return b"".join(part.content() for part in parts)[:PAGE].ljust(PAGE, b"\0")


fresh_pages = st.one_of(
    st.lists(pieces, min_size=1, max_size=6).map(_joined),
    st.just(bytes(PAGE)),
    st.binary(min_size=1, max_size=8).map(lambda b: word_page(b.ljust(8, b"\0"))),
    seeds.map(random_page),
)


def edited(page: bytes, offset: int, piece: Piece, moved: bool) -> bytes:
    """The page with a piece written over it, or pushed into it so that what follows moves on."""
    rest = offset if moved else offset + piece.length
    return (page[:offset] + piece.content() + page[rest:])[:PAGE]


@st.composite
def page_lists(draw: st.DrawFn, max_size: int = 16) -> list[bytes]:
    """Pages, many of them copies of earlier ones, whole, edited or moved."""
    pages = [draw(fresh_pages)]
    short = st.builds(Piece, st.sampled_from(["zero", "text", "random"]), st.integers(1, 200), seeds)
    for _ in range(draw(st.integers(0, max_size - 1))):
        if draw(st.booleans()):
            pages.append(draw(fresh_pages))
            continue
        page = draw(st.sampled_from(pages))
        for _ in range(draw(st.integers(0, 3))):
            page = edited(page, draw(st.integers(0, PAGE - 1)), draw(short), draw(st.booleans()))
        pages.append(page)
    return pages


def write_image(path: Path, pages: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(pages))
    return path
