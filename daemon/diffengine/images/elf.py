# SPDX-License-Identifier: GPL-2.0-or-later
"""The header and the tables of ELF64 little-endian core files that both kinds of memory dump share."""

from dataclasses import dataclass

import numpy as np

from diffengine.images.untrusted import DUMP_AGAIN, UntrustedFile

ELF_MAGIC = b"\x7fELF"
RAW_DUMP = "dump the guest as raw memory instead, for instance with QEMU's pmemsave"
VM_DUMP = "give a dump of a VM's memory, as `virsh dump --memory-only` or `xl dump-core` writes it"

ELF_CLASS_64 = 2
ELF_DATA_LITTLE_ENDIAN = 1
ELF_VERSION = 1
ET_CORE = 4
PN_XNUM = 0xFFFF

_KINDS = {1: "an ELF object file", 2: "an ELF executable", 3: "an ELF executable or shared library"}

FILE_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("file_class", "u1"),
        ("data", "u1"),
        ("ident_version", "u1"),
        ("os_abi", "u1"),
        ("abi_version", "u1"),
        ("padding", "V7"),
        ("type", "<u2"),
        ("machine", "<u2"),
        ("version", "<u4"),
        ("entry", "<u8"),
        ("phoff", "<u8"),
        ("shoff", "<u8"),
        ("flags", "<u4"),
        ("ehsize", "<u2"),
        ("phentsize", "<u2"),
        ("phnum", "<u2"),
        ("shentsize", "<u2"),
        ("shnum", "<u2"),
        ("shstrndx", "<u2"),
    ]
)
PROGRAM_HEADER = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
SECTION_HEADER = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("addr", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("addralign", "<u8"),
        ("entsize", "<u8"),
    ]
)


@dataclass(frozen=True)
class FileHeader:
    """The fields that lead to a core's memory. Only the sizes of its tables' entries have been checked."""

    untrusted_phoff: int
    untrusted_shoff: int
    phnum: int
    shnum: int
    shstrndx: int


def is_elf(file: UntrustedFile) -> bool:
    return file.untrusted_bytes[: len(ELF_MAGIC)].tobytes() == ELF_MAGIC


def read_file_header(file: UntrustedFile) -> FileHeader:
    """The header of a 64-bit little-endian core file; anything else is refused by what it is."""
    # The fields before these are laid out alike in every class, so judge the class first.
    ident = file.read(0, 20, "the ELF header")
    if ident[4] != ELF_CLASS_64:
        file.refuse("is a 32-bit ELF file" if ident[4] == 1 else "has a damaged ELF header (class)", RAW_DUMP)
    if ident[5] != ELF_DATA_LITTLE_ENDIAN:
        file.refuse("is a big-endian ELF file" if ident[5] == 2 else "has a damaged ELF header (data)", RAW_DUMP)
    row = np.frombuffer(file.read(0, FILE_HEADER.itemsize, "the ELF header"), dtype=FILE_HEADER)[0]
    if int(row["ident_version"]) != ELF_VERSION or int(row["version"]) != ELF_VERSION:
        file.refuse("has an ELF version other than 1", DUMP_AGAIN)
    elf_type = int(row["type"])
    if elf_type != ET_CORE:
        file.refuse(f"is {_KINDS.get(elf_type, f'an ELF file of type {elf_type}')}, not a core dump", VM_DUMP)
    phnum, shnum = int(row["phnum"]), int(row["shnum"])
    if phnum and int(row["phentsize"]) != PROGRAM_HEADER.itemsize:
        file.refuse(f"has ELF program headers of {int(row['phentsize'])} bytes instead of 56", DUMP_AGAIN)
    if shnum and int(row["shentsize"]) != SECTION_HEADER.itemsize:
        file.refuse(f"has ELF section headers of {int(row['shentsize'])} bytes instead of 64", DUMP_AGAIN)
    return FileHeader(int(row["phoff"]), int(row["shoff"]), phnum, shnum, int(row["shstrndx"]))
