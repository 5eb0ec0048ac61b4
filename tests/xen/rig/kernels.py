# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels as Xen boots them: the ELF file that is packed inside a bzImage; and their modules."""

import lzma
import struct
from pathlib import Path

import lz4.block

from xen.rig.errors import RigError

# Linux: Documentation/arch/x86/boot.rst
SETUP_SECTORS_OFFSET = 0x1F1
PAYLOAD_OFFSET = 0x248
SECTOR_BYTES = 512
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK_BYTES = 8 << 20
XZ_MAGIC = b"\xfd7zXZ\x00"


def unpack(image: bytes) -> bytes:
    """The kernel's ELF file."""
    sectors = image[SETUP_SECTORS_OFFSET] + 1
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    begin = sectors * SECTOR_BYTES + offset
    # The last four bytes are the size when unpacked.
    payload, size = image[begin : begin + length - 4], image[begin + length - 4 : begin + length]
    if payload.startswith(XZ_MAGIC):
        elf = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    elif payload.startswith(LZ4_LEGACY_MAGIC):
        elf = _unpack_lz4(payload[len(LZ4_LEGACY_MAGIC) :])
    else:
        raise RigError(f"a kernel is packed in a way that the rig does not know (it begins with {payload[:6].hex()})")
    if len(elf) != int.from_bytes(size, "little") or not elf.startswith(b"\x7fELF"):
        raise RigError("a kernel image did not unpack to what its header says")
    return elf


def load_order(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """These modules of the kernel with that folder in /lib/modules, and what they need, each after those."""
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[Path(path).stem.replace("-", "_")] = [*reversed(others.split()), path]
    order = dict.fromkeys(path for name in names for path in needs[name])
    return [folder / path for path in order]


def _unpack_lz4(blocks: bytes) -> bytes:
    elf = []
    while blocks:
        length = int.from_bytes(blocks[:4], "little")
        elf.append(lz4.block.decompress(blocks[4 : 4 + length], uncompressed_size=LZ4_LEGACY_BLOCK_BYTES))
        blocks = blocks[4 + length :]
    return b"".join(elf)
