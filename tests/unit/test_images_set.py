# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of images: numbering, addresses, closing."""

import os
from pathlib import Path

import numpy as np
import pytest

from diffengine.errors import ImageError
from diffengine.images import ImageSet, image_set, open_images
from image_fixtures import PAGE, Block, XenGuest, numbered_pages, qemu_core, read_pages, xen_core


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> ImageSet:
    pages = numbered_pages(9)
    core = qemu_core([Block(0, b"".join(pages[2:4])), Block(1 << 20, pages[4])])
    return open_images(
        [
            write(tmp_path / "a.raw", b"".join(pages[:2])),
            write(tmp_path / "b.core", core),
            str(write(tmp_path / "c.xen", xen_core(XenGuest(pages[5:], [7, 8, 1, 2])))),
        ]
    )


def test_pages_are_numbered_through_all_images_in_order(mixed: ImageSet) -> None:
    with mixed:
        assert read_pages(mixed) == numbered_pages(9)
        assert [(i.name, i.format, i.first_page, i.pages) for i in mixed.images] == [
            ("a.raw", "raw", 0, 2),
            ("b.core", "ELF core", 2, 3),
            ("c.xen", "Xen core", 5, 4),
        ]
        assert mixed.image_indices(np.arange(9, dtype=np.uint32)).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_frame_numbers_are_known_where_the_format_tells_them(mixed: ImageSet) -> None:
    with mixed:
        raw, core, xen = (image.gfns() for image in mixed.images)
        assert raw is None
        assert core is not None and core.tolist() == [0, 1, 256]
        assert xen is not None and xen.tolist() == [7, 8, 1, 2]


def test_addresses_keep_any_order_and_repetition(mixed: ImageSet) -> None:
    with mixed:
        every = mixed.addresses(np.arange(9, dtype=np.uint32))
        wanted = np.array([8, 0, 5, 5, 2], dtype=np.uint32)
        assert mixed.addresses(wanted).tolist() == every[wanted].tolist()
        assert mixed.addresses(np.zeros(0, dtype=np.uint32)).size == 0
        mixed.expect_random()
        assert mixed.addresses(wanted).tolist() == every[wanted].tolist()


def test_pages_beyond_the_last_have_no_address(mixed: ImageSet) -> None:
    with mixed:
        with pytest.raises(IndexError):
            mixed.addresses(np.array([9], dtype=np.uint32))
        with pytest.raises(IndexError):
            mixed.image_indices(np.array([2**32 - 1], dtype=np.uint32))
        with pytest.raises(TypeError):
            mixed.addresses(np.array([0], dtype=np.int64))


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def open_descriptors(folder: Path) -> int:
    """Of files in this folder: what earlier tests left to the garbage collector may go at any time."""
    return sum(os.path.realpath(path).startswith(f"{folder}/") for path in Path("/proc/self/fd").iterdir())


def test_closing_unmaps_and_leaves_no_addresses(tmp_path: Path) -> None:
    path = write(tmp_path / "a.raw", bytes(PAGE))
    with open_images([path]) as images:
        assert mapped(path) == 1
    assert mapped(path) == 0
    images.close()
    with pytest.raises(ValueError, match="closed"):
        images.addresses(np.zeros(1, dtype=np.uint32))


def test_a_bad_image_among_good_ones_leaves_nothing_open(tmp_path: Path) -> None:
    good = write(tmp_path / "good.raw", bytes(PAGE))
    bad = write(tmp_path / "bad.raw", bytes(PAGE + 1))
    with pytest.raises(ImageError, match=r"bad\.raw"):
        open_images([good, bad])
    assert mapped(good) == mapped(bad) == 0
    assert open_descriptors(tmp_path) == 0


def test_the_same_file_twice_is_two_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.raw", b"".join(numbered_pages(2)))
    with open_images([path, path]) as images:
        assert read_pages(images) == numbered_pages(2) * 2
        assert [image.first_page for image in images.images] == [0, 2]


def test_a_sparse_image_stays_sparse(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with open_images([path]) as images:
        assert images.pages == 1 << 28
        last = np.array([images.pages - 1], dtype=np.uint32)
        first = np.zeros(1, dtype=np.uint32)
        assert int(images.addresses(last)[0] - images.addresses(first)[0]) == (1 << 40) - PAGE
    assert path.stat().st_blocks == 0


def test_more_pages_than_can_be_numbered_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "MAX_PAGES", 5)
    path = write(tmp_path / "a.raw", bytes(3 * PAGE))
    with pytest.raises(ImageError, match="6 pages, more than 5"):
        open_images([path, path])


def test_a_set_needs_an_image() -> None:
    with pytest.raises(ValueError, match="no images"):
        open_images([])
