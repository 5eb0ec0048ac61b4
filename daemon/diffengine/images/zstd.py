# SPDX-License-Identifier: GPL-2.0-or-later
"""Images compressed with zstd: decoded to an unlinked temporary file, with holes where the memory is zero."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TypeAlias

import numpy as np
import zstandard

from diffengine.errors import ImageError
from diffengine.images.layout import PAGE_BYTES
from diffengine.images.mapped_file import MappedFile
from diffengine.images.untrusted import UntrustedFile

OnDecode: TypeAlias = Callable[[str, int, int], None]
"""Called now and then with the path, the compressed bytes decoded so far, and all compressed bytes."""

FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
# 16 kinds of frames to be skipped; pzstd starts its files with one.
_SKIPPABLE_MAGIC_TAIL = b"\x2a\x4d\x18"
MAX_WINDOW_BYTES = 1 << 31
# Four bytes of zstd can stand for 128 KiB. Feeding this little at a time bounds what a hostile file can make
# us hold in memory at once, and was measured to be no slower.
_STEP_BYTES = 512
_REPORT_BYTES = 1 << 20
# No set of images may have more pages. Zeros take no disk, so a small file could keep us busy for ever.
_MAX_DECODED_BYTES = 1 << 44

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_zstd(file: UntrustedFile) -> bool:
    start = file.untrusted_bytes[:4].tobytes()
    return start == FRAME_MAGIC or (start[1:] == _SKIPPABLE_MAGIC_TAIL and start[0] & 0xF0 == 0x50)


def decode(file: UntrustedFile, on_decode: OnDecode | None) -> MappedFile:
    """The decoded content; raises ImageError if it is damaged, ends early or does not fit in TMPDIR."""
    directory = os.environ.get("TMPDIR") or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=directory, prefix="diffengine-", buffering=0) as output:
            size = _write_sparse(file, output, on_decode)
            return MappedFile(file.path, output.fileno(), size)
    except zstandard.ZstdError as error:
        raise ImageError(
            file.path,
            f"has damaged zstd data ({_reason(error)})",
            "check it with `zstd -t` and fetch it again",
        ) from error
    except MemoryError as error:
        raise ImageError(
            file.path,
            "needs more memory to decode than there is",
            "compress it again with a smaller `zstd --long`",
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        what = f"can't be decoded to the temporary directory {directory} ({reason[0].lower()}{reason[1:]})"
        remedy = (
            "set TMPDIR to a directory with enough free space"
            if error.errno in _FULL_DISK
            else "set TMPDIR to a directory that can be written to"
        )
        raise ImageError(file.path, what, remedy) from error


def _reason(error: zstandard.ZstdError) -> str:
    return str(error).removeprefix("zstd decompressor error: ").removeprefix("zstd decompress error: ").lower()


def _write_sparse(file: UntrustedFile, output: IO[bytes], on_decode: OnDecode | None) -> int:
    """Writes all decoded pages that are not zero, and returns the size that the file then has."""
    written, tail = 0, b""
    for piece in _decoded_pieces(file, on_decode):
        data = tail + piece if tail else piece
        whole = len(data) // PAGE_BYTES * PAGE_BYTES
        _write_nonzero_pages(output.fileno(), written, data, whole)
        written, tail = written + whole, data[whole:]
        if written > _MAX_DECODED_BYTES:
            file.refuse("decodes to more than 16 TiB", "give an image of fewer pages")
    size = written + len(tail)
    if size == 0:
        file.refuse("decodes to nothing", "dump the guest again, or fetch the file again")
    os.ftruncate(output.fileno(), size)
    _write_all(output.fileno(), memoryview(tail), written)
    return size


def _decoded_pieces(file: UntrustedFile, on_decode: OnDecode | None) -> Iterator[bytes]:
    """What the frames of the file decode to, one after the other, in pieces of bounded size."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    untrusted = file.untrusted_bytes.data
    at_frame_start = True
    for start in range(0, len(untrusted), _STEP_BYTES):
        step: bytes | memoryview = untrusted[start : start + _STEP_BYTES]
        while len(step):
            yield frame.decompress(step)
            at_frame_start = frame.eof
            step = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = decompressor.decompressobj()
        if on_decode is not None and start % _REPORT_BYTES == 0:
            on_decode(file.path, start, len(untrusted))
    if not at_frame_start:
        file.refuse("ends early: its last zstd frame is incomplete", "fetch or compress it again")


def _write_nonzero_pages(descriptor: int, position: int, data: bytes, length: int) -> None:
    if length == 0:
        return
    words = np.frombuffer(data, dtype=np.uint64, count=length // 8).reshape(-1, PAGE_BYTES // 8)
    nonzero = np.zeros(len(words) + 2, dtype=np.int8)
    nonzero[1:-1] = words.any(axis=1)
    edges = np.flatnonzero(np.diff(nonzero)).reshape(-1, 2) * PAGE_BYTES
    view = memoryview(data)
    for start, end in edges.tolist():
        _write_all(descriptor, view[start:end], position + start)


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count
