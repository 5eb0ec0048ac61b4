# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory in an ELF core's PT_LOAD segments, as QEMU's dump/dump.c writes it."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffengine.images.elf import PN_XNUM, PROGRAM_HEADER, SECTION_HEADER, VM_DUMP, FileHeader
from diffengine.images.layout import PAGE_BYTES, Layout
from diffengine.images.untrusted import DUMP_AGAIN, UntrustedFile

PT_LOAD = 1
# QEMU inserts its mappings into a sorted list one by one, so a dump with more could not have been made in
# reasonable time; without a limit a made-up count could ask for tables of many gigabytes.
MAX_SEGMENTS = 1 << 22

Bytes64: TypeAlias = NDArray[np.uint64]


def qemu_core_layout(file: UntrustedFile, header: FileHeader) -> Layout:
    """The pages that the segments hold, by physical address, each once.

    A dump with paging=on lists a physical page once per virtual mapping, all with the same place in the file.
    Only bytes in the file count (p_filesz): what QEMU's p_memsz has beyond them is not stored. Of a page that
    the segments hold only a part of, as a dump of a chosen range may at its ends, nothing is used.
    """
    paddr, offset, filesz = _stored_segments(file, header)
    paddr, offset, filesz = _each_byte_once(paddr, offset, filesz)
    # Different memory is stored in different bytes; this bounds the pages by the file's size.
    if int(filesz.sum(dtype=np.uint64)) > file.size:
        file.refuse(f"describes more memory than its {file.size} bytes can hold", DUMP_AGAIN)
    paddr, offset, filesz = _joined(paddr, offset, filesz)
    first_gfns = paddr // PAGE_BYTES + (paddr % PAGE_BYTES != 0)
    skipped = first_gfns * PAGE_BYTES - paddr
    pages = np.where(filesz > skipped, filesz - np.minimum(skipped, filesz), 0) // PAGE_BYTES
    whole = pages > 0
    if not whole.any():
        file.refuse("is an ELF core that holds no whole page of memory", VM_DUMP)
    return Layout("ELF core", (offset + skipped)[whole], pages[whole], first_gfns[whole])


def _segment_count(file: UntrustedFile, header: FileHeader) -> int:
    if header.phnum != PN_XNUM:
        return header.phnum
    # The count does not fit: it is in the first section header instead (ELF gABI, "extended numbering").
    if header.shnum == 0:
        file.refuse("has an ELF header that counts its segments in a section it does not have", DUMP_AGAIN)
    section = file.read(header.untrusted_shoff, SECTION_HEADER.itemsize, "its first section header")
    count = int(np.frombuffer(section, dtype=SECTION_HEADER)[0]["info"])
    if not 0 < count <= MAX_SEGMENTS:
        file.refuse(f"has {count} segments (at most {MAX_SEGMENTS} are read)", "dump the guest with paging off")
    return count


def _stored_segments(file: UntrustedFile, header: FileHeader) -> tuple[Bytes64, Bytes64, Bytes64]:
    """Physical address, file offset and stored bytes of every segment that stores any, checked and sorted."""
    count = _segment_count(file, header)
    rows = file.table(header.untrusted_phoff, count, PROGRAM_HEADER, "its program header table")
    rows = rows[(rows["type"] == PT_LOAD) & (rows["filesz"] > 0)]
    rows = rows[np.argsort(rows["paddr"], kind="stable")]
    paddr, offset, filesz = (rows[field].astype(np.uint64) for field in ("paddr", "offset", "filesz"))
    _require_inside(file, offset, filesz)
    if (filesz > ~paddr).any():
        file.refuse("has a segment that goes beyond the end of the physical address space", DUMP_AGAIN)
    if len(paddr) > 1 and not paddr.any():
        # Linux leaves p_paddr zero in the core of a process.
        file.refuse("is the core dump of a process, not of a VM", VM_DUMP)
    return paddr, offset, filesz


def _require_inside(file: UntrustedFile, offset: Bytes64, filesz: Bytes64) -> None:
    size = np.uint64(file.size)
    outside = (filesz > size) | (offset > size - np.minimum(filesz, size))
    if outside.any():
        index = int(np.flatnonzero(outside)[0])
        file.require(int(offset[index]), int(filesz[index]), "a memory segment")


def _each_byte_once(paddr: Bytes64, offset: Bytes64, length: Bytes64) -> tuple[Bytes64, Bytes64, Bytes64]:
    """Cuts from each segment, in order of physical address, what an earlier one already has."""
    end = paddr + length
    covered = np.zeros_like(end)
    covered[1:] = np.maximum.accumulate(end)[:-1]
    start = np.maximum(paddr, covered)
    kept = start < end
    start, end, shift = start[kept], end[kept], (start - paddr)[kept]
    return start, offset[kept] + shift, end - start


def _joined(paddr: Bytes64, offset: Bytes64, length: Bytes64) -> tuple[Bytes64, Bytes64, Bytes64]:
    """Joins segments that continue each other in memory and file, so that a page on the seam is whole."""
    if len(paddr) == 0:
        return paddr, offset, length
    first = np.ones(len(paddr), dtype=np.bool_)
    first[1:] = (paddr[1:] != paddr[:-1] + length[:-1]) | (offset[1:] != offset[:-1] + length[:-1])
    starts = np.flatnonzero(first)
    return paddr[starts], offset[starts], np.add.reduceat(length, starts)
