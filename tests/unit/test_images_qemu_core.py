# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF cores with PT_LOAD segments, as QEMU's dump-guest-memory writes them."""

import struct
from pathlib import Path

import pytest

from diffengine.errors import ImageError
from diffengine.images import open_images
from image_fixtures import PAGE, Block, MemoryMapping, numbered_pages, qemu_core, read_pages


def read_back(path: Path, content: bytes) -> tuple[list[bytes], list[int]]:
    """The pages and their frame numbers."""
    path.write_bytes(content)
    with open_images([path]) as images:
        gfns = images.images[0].gfns()
        assert gfns is not None and images.images[0].format == "ELF core"
        return read_pages(images), gfns.tolist()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_images([path])
    return str(caught.value)


@pytest.mark.parametrize("named_sections", [False, True], ids=["QEMU 7.1", "QEMU 7.2"])
def test_memory_below_and_above_the_pci_hole(tmp_path: Path, named_sections: bool) -> None:
    pages = numbered_pages(7)
    blocks = [
        Block(0, b"".join(pages[:3])),
        Block(0xC0000, pages[3]),
        Block(1 << 32, b"".join(pages[4:])),
    ]
    vmcoreinfo = b"OSRELEASE=6.1.0-31-amd64\nPAGESIZE=4096\n"
    content = qemu_core(blocks, cpus=3, vmcoreinfo=vmcoreinfo, named_sections=named_sections)
    # The notes end anywhere, so the pages lie across the file's pages.
    assert content.index(pages[1]) % PAGE != 0
    assert read_back(tmp_path / "core", content) == (
        pages,
        [0, 1, 2, 0xC0, 1 << 20, (1 << 20) + 1, (1 << 20) + 2],
    )


def test_pages_come_in_physical_order(tmp_path: Path) -> None:
    pages = numbered_pages(4)
    blocks = [Block(8 * PAGE, b"".join(pages[2:])), Block(0, b"".join(pages[:2]))]
    assert read_back(tmp_path / "core", qemu_core(blocks)) == (pages, [0, 1, 8, 9])


def test_physical_memory_mapped_several_times_counts_once(tmp_path: Path) -> None:
    pages = numbered_pages(8)
    blocks = [Block(0, b"".join(pages[:5])), Block(64 * PAGE, b"".join(pages[5:]))]
    mappings = [
        MemoryMapping(PAGE, 2 * PAGE, vaddr=0xFFFF888000001000),
        MemoryMapping(2 * PAGE, 3 * PAGE, vaddr=0x7F0000000000),
        MemoryMapping(PAGE, PAGE, vaddr=0x7F0000100000),
        MemoryMapping(65 * PAGE, PAGE, vaddr=0xFFFFFFFF81000000),
        MemoryMapping(0, PAGE),
        MemoryMapping(64 * PAGE, 3 * PAGE),
    ]
    assert read_back(tmp_path / "core", qemu_core(blocks, mappings)) == (pages, [0, 1, 2, 3, 4, 64, 65, 66])


def test_mappings_beyond_ram_are_no_pages(tmp_path: Path) -> None:
    pages = numbered_pages(2)
    mappings = [
        MemoryMapping(0, 6 * PAGE),
        MemoryMapping(0xFEE00000, PAGE, vaddr=0xFFFFFFFFFF5FC000),
    ]
    assert read_back(tmp_path / "core", qemu_core([Block(0, b"".join(pages))], mappings)) == (pages, [0, 1])


def test_pages_stored_in_part_are_left_out_unless_their_parts_meet(tmp_path: Path) -> None:
    pages = numbered_pages(4)
    memory = b"".join(pages)
    # A dump of a chosen range, mapped in two pieces that meet inside page 2.
    blocks = [Block(100, memory[100:-300])]
    middle = 2 * PAGE + 1000
    mappings = [MemoryMapping(100, middle - 100), MemoryMapping(middle, 4 * PAGE - 300 - middle)]
    assert read_back(tmp_path / "core", qemu_core(blocks, mappings)) == (pages[1:3], [1, 2])


@pytest.mark.parametrize("named_sections", [False, True], ids=["QEMU 7.1", "QEMU 7.2"])
def test_more_segments_than_the_header_can_count(tmp_path: Path, named_sections: bool) -> None:
    pages = numbered_pages(32)
    mappings = [MemoryMapping(n % 32 * PAGE, PAGE, vaddr=0x7F0000000000 + n * PAGE) for n in range(65_600)]
    content = qemu_core([Block(0, b"".join(pages))], mappings, extended=True, named_sections=named_sections)
    assert read_back(tmp_path / "core", content) == (pages, list(range(32)))


def test_a_count_of_segments_nobody_can_have_is_refused(tmp_path: Path) -> None:
    content = bytearray(qemu_core([Block(0, bytes(PAGE))], extended=True))
    section = struct.unpack_from("<Q", content, 40)[0]
    struct.pack_into("<I", content, section + 44, 0xFFFFFFFF)
    assert "has 4294967295 segments" in refusal(tmp_path / "core", bytes(content))
    struct.pack_into("<I", content, section + 44, 1 << 22)
    assert "truncated or damaged: its program header table" in refusal(tmp_path / "core", bytes(content))
    struct.pack_into("<H", content, 60, 0)
    assert "counts its segments in a section" in refusal(tmp_path / "core", bytes(content))


LOAD = 64 + 56
PATCHES = {
    "32-bit": (4, "<B", 1, "is a 32-bit ELF file"),
    "big-endian": (5, "<B", 2, "is a big-endian ELF file"),
    "class": (4, "<B", 9, "damaged ELF header"),
    "data": (5, "<B", 0, "damaged ELF header"),
    "version": (20, "<I", 2, "version other than 1"),
    "executable": (16, "<H", 2, "is an ELF executable, not a core dump"),
    "library": (16, "<H", 3, "is an ELF executable or shared library, not a core dump"),
    "object": (16, "<H", 1, "is an ELF object file, not a core dump"),
    "type": (16, "<H", 0xFE00, "is an ELF file of type 65024"),
    "phentsize": (54, "<H", 32, "program headers of 32 bytes"),
    "phoff": (32, "<Q", 2**64 - 1, "truncated or damaged: its program header table"),
    "phnum": (56, "<H", 0xFFFE, "truncated or damaged: its program header table"),
    "no tables": (56, "<H", 0, "neither segments nor sections"),
    "p_offset": (LOAD + 8, "<Q", 2**64 - 1, "truncated or damaged: a memory segment"),
    "p_paddr": (LOAD + 24, "<Q", 2**64 - 1, "beyond the end of the physical address space"),
    "p_filesz": (LOAD + 32, "<Q", 2**64 - 1, "truncated or damaged: a memory segment"),
    "less than a page": (LOAD + 32, "<Q", PAGE - 1, "holds no whole page"),
    "nothing stored": (LOAD + 32, "<Q", 0, "holds no whole page"),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_header_field_out_of_bounds_is_refused(tmp_path: Path, name: str) -> None:
    offset, kind, value, message = PATCHES[name]
    content = bytearray(qemu_core([Block(0x1000, bytes(2 * PAGE))]))
    struct.pack_into(kind, content, offset, value)
    assert message in refusal(tmp_path / "core", bytes(content))


def test_a_dump_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = qemu_core([Block(0, b"".join(numbered_pages(2)))])
    for length in (4, 19, 63, 64, 100, 176, len(content) - PAGE, len(content) - 1):
        assert "is truncated or damaged" in refusal(tmp_path / "core", content[:length])


def test_segments_that_share_bytes_can_not_multiply_memory(tmp_path: Path) -> None:
    content = bytearray(qemu_core([Block(n << 30, bytes(PAGE)) for n in range(100)]))
    offset = struct.unpack_from("<Q", content, LOAD + 8)[0]
    for n in range(100):
        struct.pack_into("<Q", content, LOAD + 56 * n + 8, offset)
        struct.pack_into("<Q", content, LOAD + 56 * n + 32, 100 * PAGE)
    assert "describes more memory" in refusal(tmp_path / "core", bytes(content))


def test_the_core_of_a_process_is_refused(tmp_path: Path) -> None:
    content = bytearray(qemu_core([Block(PAGE, bytes(PAGE)), Block(2 * PAGE, bytes(PAGE))]))
    for n in range(2):
        struct.pack_into("<Q", content, LOAD + 56 * n + 24, 0)
    assert "core dump of a process" in refusal(tmp_path / "core", bytes(content))
