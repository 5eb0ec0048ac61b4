# SPDX-License-Identifier: GPL-2.0-or-later
"""Images compressed with zstd."""

import os
import resource
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zstandard

from diffengine.errors import ImageError
from diffengine.images import open_images
from image_fixtures import PAGE, Block, XenGuest, numbered_pages, qemu_core, read_pages, xen_core

SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"hello"


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def compressed(content: bytes, level: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(content)


def random_pages(count: int) -> bytes:
    return np.random.default_rng(7).bytes(count * PAGE)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_images([path])
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("container", ["raw", "ELF core", "Xen core"])
def test_any_format_may_be_compressed(tmp_path: Path, container: str) -> None:
    pages = numbered_pages(5)
    content = {
        "raw": b"".join(pages),
        "ELF core": qemu_core([Block(0, b"".join(pages))]),
        "Xen core": xen_core(XenGuest(pages, range(5))),
    }[container]
    path = tmp_path / "image"
    path.write_bytes(compressed(content))
    with open_images([path]) as images:
        assert images.images[0].format == container
        assert images.images[0].path == str(path)
        assert read_pages(images) == pages


def test_several_frames_and_frames_to_skip_are_one_image(tmp_path: Path) -> None:
    content = random_pages(3)
    path = tmp_path / "image"
    frames = [compressed(content[start : start + 1000]) for start in range(0, len(content), 1000)]
    path.write_bytes(SKIPPABLE + SKIPPABLE.join(frames) + SKIPPABLE)
    with open_images([path]) as images:
        assert b"".join(read_pages(images)) == content


def test_the_largest_window_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False, hash_log=6, chain_log=6)
    # Without the size in the header, the header tells the window, of 2 GiB.
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "image"
    path.write_bytes(frame.compress(random_pages(2)) + frame.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << 31
    with open_images([path]) as images:
        assert b"".join(read_pages(images)) == random_pages(2)


def stored_bytes(directory: Path) -> int:
    """The disk space of the one deleted file of the directory that this process has mapped."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{directory}/" in line]
    assert len(lines) == 1 and lines[0].endswith("(deleted)")
    # The mapping keeps a descriptor of its own.
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    files = [path for path in links if str(path.readlink()).startswith(f"{directory}/")]
    assert len(files) == 1
    return files[0].stat().st_blocks * 512


def test_zeros_are_holes_in_an_unlinked_file_in_tmpdir(tmp_path: Path, temporary_directory: Path) -> None:
    content = bytes(1000 * PAGE) + random_pages(4) + bytes(3000 * PAGE) + random_pages(1)
    path = tmp_path / "image"
    path.write_bytes(compressed(content))
    with open_images([path]) as images:
        assert b"".join(read_pages(images)) == content
        assert list(temporary_directory.iterdir()) == []
        assert stored_bytes(temporary_directory) <= 16 * PAGE
    assert str(temporary_directory) not in Path("/proc/self/maps").read_text()


def test_an_image_that_ends_early(tmp_path: Path) -> None:
    whole = compressed(random_pages(400))
    for length in (5, 12, 1000, len(whole) // 2, len(whole) - 1):
        assert "ends early" in refusal(tmp_path / "image", whole[:length])


def test_garbage_inside_or_behind(tmp_path: Path) -> None:
    whole = compressed(b"".join(numbered_pages(400)))
    assert "has damaged zstd data" in refusal(tmp_path / "image", whole[:20] + b"\xff" * 50 + whole[70:])
    assert "has damaged zstd data" in refusal(tmp_path / "image", whole + b"garbage!")


def test_content_that_is_no_image(tmp_path: Path) -> None:
    assert "once decoded, it has 4097 bytes" in refusal(tmp_path / "image", compressed(bytes(PAGE + 1)))
    assert "once decoded, it is a qcow2" in refusal(tmp_path / "image", compressed(b"QFI\xfb" + bytes(PAGE)))
    assert "decodes to nothing" in refusal(tmp_path / "image", compressed(b""))
    assert "zstd data again" in refusal(tmp_path / "image", compressed(compressed(bytes(PAGE))))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_too_little_space(tmp_path: Path, temporary_directory: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(compressed(random_pages(50)))
    with largest_file(20 * PAGE), pytest.raises(ImageError) as caught:
        open_images([path])
    assert f"decoded to the temporary directory {temporary_directory}" in str(caught.value)
    assert "set TMPDIR to a directory with enough free space" in str(caught.value)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: memoryview, _position: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    message = refusal(tmp_path / "image", compressed(random_pages(5)))
    assert "no space left on device" in message and "set TMPDIR" in message


def test_a_tmpdir_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    message = refusal(tmp_path / "image", compressed(bytes(PAGE)))
    assert f"{tmp_path}/nowhere (no such file or directory); set TMPDIR" in message


def test_zeros_in_a_small_file_do_not_fill_memory(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(compressed(bytes(1 << 30)))
    tracemalloc.start()
    try:
        with open_images([path]) as images:
            _, peak = tracemalloc.get_traced_memory()
            assert images.pages == 1 << 18
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_progress_is_told(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(compressed(random_pages(600)))
    told: list[tuple[str, int, int]] = []
    with open_images([path], on_decode=lambda *step: told.append(step)):
        pass
    size = path.stat().st_size
    assert [(str(path), done, size) for done in range(0, size, 1 << 20)] == told
