# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF cores with sections only, as `xl dump-core` writes them."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffengine.errors import ImageError
from diffengine.images import open_images
from image_fixtures import PAGE, XenGuest, numbered_pages, read_pages, xen_core

INVALID = (1 << 64) - 1
GUEST = XenGuest(numbered_pages(5), [0, 1, 2, 256, 257], vcpus=2)
SECTIONS = {
    name: 64 + 64 * index
    for index, name in enumerate(["", "names", "notes", "prstatus", "shared_info", "pages", "frames"])
}


def read_back(path: Path, content: bytes) -> tuple[list[bytes], list[int]]:
    path.write_bytes(content)
    with open_images([path]) as images:
        gfns = images.images[0].gfns()
        assert gfns is not None and images.images[0].format == "Xen core"
        return read_pages(images), gfns.tolist()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_images([path])
    return str(caught.value)


def test_a_guest_with_translated_memory(tmp_path: Path) -> None:
    assert read_back(tmp_path / "hvm", xen_core(GUEST)) == (GUEST.pages, GUEST.pfns)


def test_a_paravirtualised_guest_has_its_own_frame_numbers(tmp_path: Path) -> None:
    guest = replace(GUEST, gmfns=[9000, 17, 18, 4, 5])
    assert read_back(tmp_path / "pv", xen_core(guest)) == (GUEST.pages, GUEST.pfns)


def test_frames_may_come_in_any_order(tmp_path: Path) -> None:
    guest = replace(GUEST, pfns=[257, 2, 3, 0, 1])
    assert read_back(tmp_path / "core", xen_core(guest)) == (GUEST.pages, [257, 2, 3, 0, 1])


def test_padding_of_a_live_dump_is_no_memory(tmp_path: Path) -> None:
    guest = replace(GUEST, pages=[*GUEST.pages[:3], bytes(PAGE), bytes(PAGE)], pfns=[0, 1, 2, INVALID, INVALID])
    assert read_back(tmp_path / "core", xen_core(guest)) == (GUEST.pages[:3], [0, 1, 2])


def test_invalid_frames_between_neighbours_are_left_out(tmp_path: Path) -> None:
    guest = replace(GUEST, pfns=[3, 4, INVALID, 5, 6])
    assert read_back(tmp_path / "core", xen_core(guest)) == (
        numbered_pages(2) + numbered_pages(2, first=3),
        [3, 4, 5, 6],
    )


def patched(offset: int, kind: str, value: int) -> bytes:
    content = bytearray(xen_core(GUEST))
    struct.pack_into(kind, content, offset, value)
    return bytes(content)


def section(name: str, field: int, value: int) -> bytes:
    return patched(SECTIONS[name] + field, "<Q", value)


def renamed(old: bytes, new: bytes) -> bytes:
    content = xen_core(GUEST)
    assert content.count(old) == 1
    return content.replace(old, new)


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "names' index": (lambda: patched(62, "<H", 7), "sections without names"),
    "section size": (lambda: patched(58, "<H", 63), "section headers of 63 bytes"),
    "section table": (lambda: patched(40, "<Q", 2**63), "truncated or damaged: its section header table"),
    "section count": (lambda: patched(60, "<H", 0xFFFF), "truncated or damaged"),
    "section offset": (lambda: section("pages", 24, 2**64 - 1), "truncated or damaged: a section"),
    "names' size": (lambda: section("names", 32, 2**64 - 1), "truncated or damaged: a section"),
    "pages' size": (lambda: section("pages", 32, 4 * PAGE), "16384 bytes in .xen_pages for 5 pages"),
    "frames' size": (lambda: section("frames", 32, 39), "39 bytes in .xen_pfn for 5 pages"),
    "notes' size": (lambda: section("notes", 32, 20), "damaged .note.Xen"),
    "no pages": (lambda: renamed(b".xen_pages\0", b".xen_pagex\0"), "without guest memory"),
    "no frames": (lambda: renamed(b".xen_pfn\0", b".xen_pfx\0"), "neither a .xen_pfn nor a .xen_p2m"),
    "no notes": (lambda: renamed(b".note.Xen\0", b".note.Xex\0"), "no .note.Xen"),
    "magic": (lambda: renamed(b"\xee\xeb\x0f\xf0", b"\xee\xeb\x0f\xf1"), "magic number"),
    "format": (lambda: xen_core(replace(GUEST, format_version=1 << 32)), "dump-core format 1.0"),
    "page size": (lambda: xen_core(replace(GUEST, page_bytes=16384)), "pages of 16384 bytes"),
    "frame": (lambda: xen_core(replace(GUEST, pfns=[0, 1, 2, 3, 1 << 60])), "0x1000000000000000"),
    "frame twice": (lambda: xen_core(replace(GUEST, pfns=[0, 5, 2, 3, 5])), "guest frame 0x5 twice"),
    "only padding": (lambda: xen_core(replace(GUEST, pfns=[INVALID] * 5)), "holds no pages"),
    "no memory": (lambda: xen_core(replace(GUEST, pages=[], pfns=[])), "holds no pages"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_core_is_refused(tmp_path: Path, name: str) -> None:
    build, message = BROKEN[name]
    assert message in refusal(tmp_path / "core", build())


def test_a_dump_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = xen_core(GUEST)
    for length in (64, 511, 2000, 3 * PAGE, len(content) - 100, len(content) - 1):
        assert "is truncated or damaged" in refusal(tmp_path / "core", content[:length])
