# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory dumps byte for byte as their programs lay them out, from nothing but the programs' sources.

They share no table with the readers, so that a mistake in one does not hide in the other.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from diffengine.images import ImageSet

PAGE = 4096
PN_XNUM = 0xFFFF
UNSTORED = (1 << 64) - 1


def read_pages(images: ImageSet) -> list[bytes]:
    """Every page of the set, read where `addresses` says it is."""
    addresses = images.addresses(np.arange(images.pages, dtype=np.uint32))
    return [ctypes.string_at(address, PAGE) for address in addresses.tolist()]


def numbered_pages(count: int, first: int = 0) -> list[bytes]:
    """Pages that each tell their number, so that a mixed-up order shows."""
    return [struct.pack("<Q", first + n) * (PAGE // 8) for n in range(count)]


def note(name: bytes, note_type: int, content: bytes) -> bytes:
    """An ELF note, name and content each padded to four bytes."""
    padded = [part + bytes(-len(part) % 4) for part in (name, content)]
    return struct.pack("<3I", len(name), len(content), note_type) + b"".join(padded)


@dataclass(frozen=True)
class Block:
    """A range of guest RAM, as QEMU's GuestPhysBlock."""

    paddr: int
    content: bytes

    @property
    def end(self) -> int:
        return self.paddr + len(self.content)


@dataclass(frozen=True)
class MemoryMapping:
    """A range that a PT_LOAD describes, as QEMU's MemoryMapping. With paging off there is one per block."""

    paddr: int
    length: int
    vaddr: int = 0


def qemu_notes(cpus: int, vmcoreinfo: bytes = b"") -> bytes:
    """target/i386/arch_dump.c: each CPU's registers (x86_64_elf_prstatus), then each one's QEMUCPUState."""
    registers = [note(b"CORE\0", 1, struct.pack("<32xI", cpu + 1).ljust(336, b"\0")) for cpu in range(cpus)]
    states = [note(b"QEMU\0", 0, struct.pack("<II", 1, 440).ljust(440, b"\0"))] * cpus
    guest = [note(b"VMCOREINFO\0", 0, vmcoreinfo)] if vmcoreinfo else []
    return b"".join(registers + states + guest)


def qemu_core(
    blocks: Sequence[Block],
    mappings: Sequence[MemoryMapping] | None = None,
    cpus: int = 1,
    vmcoreinfo: bytes = b"",
    extended: bool = False,
    named_sections: bool = False,
) -> bytes:
    """dump/dump.c. QEMU is `extended` when there are 65535 program headers or more.

    Up to 7.1: header, PT_NOTE, the PT_LOADs, if extended one section header, notes, memory. From 7.2 on there
    are always two `named_sections`; their headers come before the program headers, their names after the
    memory, and e_ehsize is 8 by mistake.
    """
    if mappings is None:
        mappings = [MemoryMapping(block.paddr, len(block.content)) for block in blocks]
    phnum, notes = 1 + len(mappings), qemu_notes(cpus, vmcoreinfo)
    shnum = 2 if named_sections else int(extended)
    phoff = 64 + 64 * shnum if named_sections else 64
    shoff = 64 if named_sections else 64 + 56 * phnum
    notes_at = 64 + 64 * shnum + 56 * phnum
    memory_at = notes_at + len(notes)
    names = b"\0.shstrtab\0" if named_sections else b""
    names_at = memory_at + sum(len(block.content) for block in blocks)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQI", 4, 62, 1, 0, phoff, shoff if shnum else 0, 0)
    header += struct.pack("<HHH", 8 if named_sections else 64, 56, PN_XNUM if extended else phnum)
    header += struct.pack("<HHH", 64 if shnum else 0, shnum, 1 if named_sections else 0)
    segments = [struct.pack("<IIQQQQQQ", 4, 0, notes_at, 0, 0, len(notes), len(notes), 0)]
    segments += [_qemu_load(mapping, blocks, memory_at) for mapping in mappings]
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, phnum if extended else 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, names_at, len(names), 0, 0, 0, 0),
    ][:shnum]
    tables = [*sections, *segments] if named_sections else [*segments, *sections]
    return b"".join([header, *tables, notes, *(block.content for block in blocks), names])


def _qemu_load(mapping: MemoryMapping, blocks: Sequence[Block], memory_at: int) -> bytes:
    """get_offset_range() and write_elf64_load(): a mapping is cut at its block's end, or not stored."""
    offset, filesz = UNSTORED, 0
    starts = accumulate((len(block.content) for block in blocks), initial=memory_at)
    for block, start in zip(blocks, starts, strict=False):
        if block.paddr <= mapping.paddr < block.end:
            offset = start + mapping.paddr - block.paddr
            filesz = min(mapping.length, block.end - mapping.paddr)
    vaddr = mapping.vaddr or mapping.paddr
    return struct.pack("<IIQQQQQQ", 1, 0, offset, vaddr, mapping.paddr, filesz, mapping.length, 0)


@dataclass(frozen=True)
class XenGuest:
    """What `xl dump-core` sees: pages in the order it visits them. `gmfns` makes it a PV guest (.xen_p2m)."""

    pages: Sequence[bytes]
    pfns: Sequence[int]
    gmfns: Sequence[int] | None = None
    vcpus: int = 1
    format_version: int = 1
    page_bytes: int = PAGE


def xen_notes(guest: XenGuest) -> bytes:
    """The four notes of xc_core.c, each with the name "Xen"."""
    magic = 0xF00FEBED if guest.gmfns is not None else 0xF00FEBEE
    header = struct.pack("<4Q", magic, guest.vcpus, len(guest.pages), guest.page_bytes)
    compile_info = struct.pack("<64s16s32s32s", b"gcc", b"root", b"example.org", b"today")
    version = struct.pack("<QQ16s144s1024s64sQQ", 4, 17, b".3", compile_info, b"xen-3.0-x86_64", b"", 0, PAGE)
    contents = [b"", header, version, struct.pack("<Q", guest.format_version)]
    return b"".join(note(b"Xen\0", 0x2000000 + n, content) for n, content in enumerate(contents))


def xen_core(guest: XenGuest) -> bytes:
    """xc_core.c: header, section headers, notes, CPU contexts, shared info, padding, pages, frames, names."""
    if guest.gmfns is None:
        frames_name, entry = b".xen_pfn", 8
        frames = struct.pack(f"<{len(guest.pfns)}Q", *guest.pfns)
    else:
        frames_name, entry = b".xen_p2m", 16
        both = (number for pair in zip(guest.pfns, guest.gmfns, strict=True) for number in pair)
        frames = struct.pack(f"<{2 * len(guest.pfns)}Q", *both)
    notes, contexts, shared_info = xen_notes(guest), bytes(5168 * guest.vcpus), b"s" * PAGE
    # Names are added as the sections are: .shstrtab first, the frames last.
    order = [b".shstrtab", b".note.Xen", b".xen_prstatus", b".xen_shared_info", b".xen_pages", frames_name]
    names = b"\0" + b"".join(name + b"\0" for name in order)
    notes_at = 64 + 64 * (1 + len(order))
    contexts_at = notes_at + len(notes)
    shared_info_at = contexts_at + len(contexts)
    pages_at = -(-(shared_info_at + PAGE) // PAGE) * PAGE
    frames_at = pages_at + PAGE * len(guest.pages)
    names_at = frames_at + len(frames)
    places = [
        (3, names_at, len(names), 0, 0),
        (7, notes_at, len(notes), 0, 0),
        (1, contexts_at, len(contexts), 8, 5168),
        (1, shared_info_at, PAGE, 8, PAGE),
        (1, pages_at, PAGE * len(guest.pages), PAGE, PAGE),
        (1, frames_at, len(frames), 8, entry),
    ]
    sections = [bytes(64)]
    for name, (kind, offset, size, align, entsize) in zip(order, places, strict=True):
        name_at = names.index(name + b"\0")
        sections.append(struct.pack("<IIQQQQIIQQ", name_at, kind, 0, 0, offset, size, 0, 0, align, entsize))
    header = b"\x7fELF\x02\x01\x01\x00\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, len(sections), 1)
    front = b"".join([header, *sections, notes, contexts, shared_info])
    return b"".join([front.ljust(pages_at, b"\0"), *guest.pages, frames, names])
