# SPDX-License-Identifier: GPL-2.0-or-later
"""Which format a file has, told by its content alone."""

from diffengine.images.elf import VM_DUMP, is_elf, read_file_header
from diffengine.images.layout import Layout
from diffengine.images.qemu_core import qemu_core_layout
from diffengine.images.raw import raw_layout
from diffengine.images.refused import refuse_known_formats
from diffengine.images.untrusted import UntrustedFile
from diffengine.images.xen_core import xen_core_layout


def layout_of(file: UntrustedFile) -> Layout:
    """Where the file keeps the guest's pages; raises ImageError if it is no image that can be read."""
    if is_elf(file):
        return _elf_layout(file)
    refuse_known_formats(file)
    return raw_layout(file)


def _elf_layout(file: UntrustedFile) -> Layout:
    """QEMU describes memory by program headers, `xl dump-core` by sections only.

    "The xen dump-core file includes no program headers and some sections" says Xen's
    docs/misc/dump-core-format.txt, so the number of program headers decides.
    """
    header = read_file_header(file)
    if header.phnum:
        return qemu_core_layout(file, header)
    if not header.shnum:
        file.refuse("is an ELF core with neither segments nor sections", VM_DUMP)
    return xen_core_layout(file, header)
