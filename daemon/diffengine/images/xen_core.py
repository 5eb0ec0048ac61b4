# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory in the sections of a Xen core, as `xl dump-core` writes it.

Xen's docs/misc/dump-core-format.txt is the contract; tools/libs/ctrl/xc_core.c is the writer. It asks readers
to go by the sections' names, not by their order. The frames in .xen_p2m and .xen_pfn are in no certain order.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffengine.images.elf import SECTION_HEADER, VM_DUMP, FileHeader
from diffengine.images.layout import PAGE_BYTES, Layout, extents_of_pages
from diffengine.images.untrusted import DUMP_AGAIN, UntrustedFile

NOTE_NAME = b"Xen\0"
NOTE_HEADER = 0x2000001
NOTE_FORMAT_VERSION = 0x2000003
XC_CORE_MAGIC = 0xF00FEBED
XC_CORE_MAGIC_HVM = 0xF00FEBEE
INVALID_PFN = (1 << 64) - 1
# Physical addresses have at most 52 bits on x86, 48 on Arm: a frame number beyond this is damage.
PFN_LIMIT = 1 << 40

# xc_core.c's string table grows to 64 KiB at most; its notes take 1.5 KB.
MAX_NAMES_BYTES = 1 << 16
MAX_NOTES_BYTES = 1 << 16

_SHT_NOBITS = 8
_P2M_ROW = np.dtype([("pfn", "<u8"), ("gmfn", "<u8")])
_PFN_ROW = np.dtype([("pfn", "<u8")])


@dataclass(frozen=True)
class Section:
    """A section's place, checked to lie inside the file."""

    offset: int
    size: int


def xen_core_layout(file: UntrustedFile, header: FileHeader) -> Layout:
    """The pages of `.xen_pages` with their frames from `.xen_pfn` or `.xen_p2m`, each frame once.

    A live dump of a shrinking guest is padded with zero pages of an invalid frame number; they are no memory.
    """
    sections = _sections(file, header)
    if ".xen_pages" not in sections:
        file.refuse("is an ELF core without guest memory (no segments, no .xen_pages section)", VM_DUMP)
    pages = sections[".xen_pages"]
    count = _page_count(file, sections)
    if pages.size != count * PAGE_BYTES:
        file.refuse(f"has {pages.size} bytes in .xen_pages for {count} pages", DUMP_AGAIN)
    pfns = _pfns(file, sections, count)
    valid = pfns != INVALID_PFN
    offsets = (pages.offset + np.flatnonzero(valid) * PAGE_BYTES).astype(np.uint64)
    pfns = pfns[valid]
    if len(pfns) == 0:
        file.refuse("is a Xen core that holds no pages", VM_DUMP)
    _require_plausible(file, pfns)
    return extents_of_pages("Xen core", offsets, pfns)


def _sections(file: UntrustedFile, header: FileHeader) -> Mapping[str, Section]:
    """Every section by name. At most 65535 of them: the header's count has 16 bits."""
    rows = file.table(header.untrusted_shoff, header.shnum, SECTION_HEADER, "its section header table")
    table = list(zip(*(rows[field].tolist() for field in ("name", "type", "offset", "size")), strict=True))
    for _name, section_type, offset, size in table:
        if section_type != _SHT_NOBITS:
            file.require(offset, size, "a section")
    if header.shstrndx >= len(table):
        file.refuse("has ELF sections without names", DUMP_AGAIN)
    _, _, names_offset, names_size = table[header.shstrndx]
    if names_size > MAX_NAMES_BYTES:
        file.refuse(f"has {names_size} bytes of section names", DUMP_AGAIN)
    names = file.read(names_offset, names_size, "its section names")
    return {
        _name_at(names, name): Section(offset, size)
        for name, section_type, offset, size in table
        if section_type != _SHT_NOBITS
    }


def _name_at(names: bytes, start: int) -> str:
    # No name that we look for is longer.
    return names[start : start + 32].split(b"\0", 1)[0].decode("ascii", errors="replace")


def _page_count(file: UntrustedFile, sections: Mapping[str, Section]) -> int:
    """The number of pages that the header note tells, once the notes say that we can read the rest."""
    if ".note.Xen" not in sections:
        file.refuse("has no .note.Xen section", DUMP_AGAIN)
    section = sections[".note.Xen"]
    if section.size > MAX_NOTES_BYTES:
        file.refuse(f"has {section.size} bytes of notes in .note.Xen", DUMP_AGAIN)
    notes = dict(_notes(file.read(section.offset, section.size, ".note.Xen")))
    version, core = notes.get(NOTE_FORMAT_VERSION, b""), notes.get(NOTE_HEADER, b"")
    if len(version) != 8 or len(core) != 32:
        file.refuse("has a damaged .note.Xen section", DUMP_AGAIN)
    major, minor = struct.unpack("<Q", version)[0] >> 32, struct.unpack("<Q", version)[0] & 0xFFFFFFFF
    if major != 0:
        file.refuse(f"has Xen's dump-core format {major}.{minor}", "only format 0.x is known: dump raw memory instead")
    magic, _vcpus, pages, page_bytes = struct.unpack("<4Q", core)
    if magic not in (XC_CORE_MAGIC, XC_CORE_MAGIC_HVM):
        file.refuse("has a damaged .note.Xen section (magic number)", DUMP_AGAIN)
    if page_bytes != PAGE_BYTES:
        file.refuse(f"has pages of {page_bytes} bytes", "only guests with pages of 4096 bytes can be read")
    return int(pages)


def _notes(untrusted_notes: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each of Xen's notes; stops where they stop making sense."""
    position = 0
    while position + 12 <= len(untrusted_notes):
        name_bytes, content_bytes, note_type = struct.unpack_from("<3I", untrusted_notes, position)
        name_at = position + 12
        content_at = name_at + (name_bytes + 3) // 4 * 4
        position = content_at + (content_bytes + 3) // 4 * 4
        if position <= len(untrusted_notes) and untrusted_notes[name_at : name_at + name_bytes] == NOTE_NAME:
            yield note_type, untrusted_notes[content_at : content_at + content_bytes]


def _pfns(file: UntrustedFile, sections: Mapping[str, Section], count: int) -> NDArray[np.uint64]:
    """A copy of each page's frame number in the guest: its pseudo-physical one for a PV guest."""
    name, row = (".xen_pfn", _PFN_ROW) if ".xen_pfn" in sections else (".xen_p2m", _P2M_ROW)
    if name not in sections:
        file.refuse("has neither a .xen_pfn nor a .xen_p2m section", DUMP_AGAIN)
    section = sections[name]
    if section.size != count * row.itemsize:
        file.refuse(f"has {section.size} bytes in {name} for {count} pages", DUMP_AGAIN)
    return file.table(section.offset, count, row, name)["pfn"].astype(np.uint64)


def _require_plausible(file: UntrustedFile, pfns: NDArray[np.uint64]) -> None:
    if int(pfns.max()) >= PFN_LIMIT:
        file.refuse(f"names a guest frame 0x{int(pfns.max()):x} that can't exist", DUMP_AGAIN)
    # The writer goes up through the guest's memory, so sorting is hardly ever needed.
    if (pfns[1:] <= pfns[:-1]).any():
        ordered = np.sort(pfns)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            file.refuse(f"holds guest frame 0x{int(twice[0]):x} twice", DUMP_AGAIN)
