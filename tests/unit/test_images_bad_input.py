# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are no images: one line that names the file, says what is wrong and what to do."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffengine.errors import DiffengineError, ImageError
from diffengine.images import open_images
from diffengine.images.refused import REFUSED_FORMATS
from image_fixtures import PAGE, Block, qemu_core, read_pages


def refusal(path: Path | str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_images([path])
    error = caught.value
    assert isinstance(error, DiffengineError) and error.exit_code == 2
    assert len(str(error).splitlines()) == 1
    assert error.what and error.remedy and error.what in str(error) and error.remedy in str(error)
    return error


def refused_content(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(refusal(path))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read anything, so the kernel says no only to somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_missing_file(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "no.raw")) == (
        f"{tmp_path}/no.raw: can't be opened (no such file or directory); check the path"
    )


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.raw"
    path.write_bytes(bytes(PAGE))
    path.chmod(0)
    with unprivileged():
        message = str(refusal(path))
    assert "permission denied" in message and "run as a user who may read it" in message


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in str(refusal(tmp_path))


def test_an_empty_file(tmp_path: Path) -> None:
    assert "is empty" in refused_content(tmp_path / "empty.raw", b"")


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in str(refusal(tmp_path / "pipe"))


def test_a_device() -> None:
    assert "is not a regular file" in str(refusal("/dev/null"))


@pytest.mark.parametrize("path", ["nul\0byte", "x" * 5000, ""])
def test_a_path_that_can_not_be(path: str) -> None:
    assert "can't be opened" in str(refusal(path))


def test_a_name_that_would_break_the_line(tmp_path: Path) -> None:
    message = refused_content(tmp_path / "two\nlines\x1b[31m\udcff.raw", b"")
    assert r"two\nlines\x1b[31m\udcff.raw: is empty" in message


def test_a_size_that_is_no_multiple_of_a_page(tmp_path: Path) -> None:
    message = refused_content(tmp_path / "cut.raw", bytes(3 * PAGE + 5))
    assert "has 12293 bytes, which is 5 more than a multiple of 4096" in message
    assert "cut short" in message and "truncate -s 12288" in message
    assert "truncate" not in refused_content(tmp_path / "tiny.raw", b"\1")


@pytest.mark.parametrize("size", [150, 3 * PAGE])
def test_a_text_file(tmp_path: Path, size: int) -> None:
    text = "Möge dieser Text kein Speicher sein.\n" * 400
    assert "is a text file" in refused_content(tmp_path / "notes.txt", text.encode()[:size])


@pytest.mark.parametrize("start", [b"one page of text\nin memory\n" * 200, b"\n" * PAGE], ids=["text", "lines"])
def test_memory_that_starts_like_text_is_an_image(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(start[:PAGE] + bytes(PAGE) if len(set(start)) > 1 else start)
    with open_images([path]) as images:
        assert read_pages(images)[0] == start[:PAGE]


def test_an_executable() -> None:
    assert "not a core dump" in str(refusal(Path(sys.executable).resolve()))


@pytest.mark.parametrize("refused", REFUSED_FORMATS, ids=lambda refused: refused.magic)
def test_known_formats_are_told_by_their_magic(tmp_path: Path, refused: object) -> None:
    magic, name, remedy = refused.magic, refused.name, refused.remedy  # type: ignore[attr-defined]
    message = refused_content(tmp_path / "a.raw", magic.ljust(2 * PAGE, b"\0"))
    assert f"is {name}, which is not read; {remedy}" in message


def test_a_tar_archive(tmp_path: Path) -> None:
    header = b"a.raw".ljust(257, b"\0") + b"ustar\0"
    assert "is a tar archive" in refused_content(tmp_path / "a.tar", header.ljust(2 * PAGE, b"\0"))


def test_names_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "image.zst"
    path.write_bytes(qemu_core([Block(0, bytes(PAGE))]))
    with open_images([path]) as images:
        assert images.images[0].format == "ELF core"
