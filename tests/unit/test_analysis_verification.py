# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that does not come back as it was ends the analysis, whoever is to blame."""

from pathlib import Path

import numpy as np
import pytest

from diffengine.analysis.verification import verify_pages
from diffengine.analysis.workers import Pool, Silent, Workers
from diffengine.errors import DiffengineError
from diffengine.images import open_images
from diffengine.native import NONE, EncodeOptions, Encoding, PageEncoder, Rebuilder, Store, checksums
from page_fixtures import PAGE, text_page, write_image


def verified(directory: Path, change: int | None = None, wrong_ids: dict[int, int] | None = None) -> int:
    """Stores the pages of two images, changes a page's last byte in its file or a page's object; verifies."""
    pages = [bytes(PAGE), text_page(1), text_page(2), bytes(PAGE), text_page(3)]
    paths = [write_image(directory / "a.raw", pages[:2]), write_image(directory / "b.raw", pages[2:])]
    with Workers(2) as workers, open_images(paths) as images, Store(1 << 20) as store:
        numbers = np.array([1, 2, 4], dtype=np.uint32)
        addresses = images.addresses(numbers)
        alone = np.zeros(3, np.uint64)
        batch = PageEncoder().encode(EncodeOptions(Encoding.LZ4), addresses, alone)
        none, ids = np.full(3, NONE, np.uint32), np.full(5, NONE, np.uint32)
        sums = checksums(addresses)
        store.put(batch.addresses(), batch.sizes, batch.encodings, sums, numbers, none, ids)
        for page, other in (wrong_ids or {}).items():
            ids[page] = NONE if other == NONE else ids[other]
        if change is not None:
            with paths[change >= 2].open("r+b") as file:
                file.seek((change - 2 * (change >= 2) + 1) * PAGE - 1)
                file.write(b"\xfe")
        rebuilders = Pool([Rebuilder(store) for _ in range(2)])
        return verify_pages(images, ids, rebuilders, workers, Silent(), "best")


def test_all_pages_are_verified(tmp_path: Path) -> None:
    assert verified(tmp_path) == 5


@pytest.mark.parametrize(("page", "name"), [(0, "a.raw: page 0"), (2, "b.raw: page 0"), (4, "b.raw: page 2")])
def test_a_page_that_changed_meanwhile_is_named(tmp_path: Path, page: int, name: str) -> None:
    with pytest.raises(DiffengineError, match=f"{name} did not come back as it was in pipeline best; if the file is"):
        verified(tmp_path, change=page)


@pytest.mark.parametrize("wrong", [{1: 2}, {2: 4}, {4: NONE}, {0: 1}], ids=str)
def test_an_object_of_another_page_or_none_is_noticed(tmp_path: Path, wrong: dict[int, int]) -> None:
    with pytest.raises(DiffengineError, match="did not come back as it was"):
        verified(tmp_path, wrong_ids=wrong)
