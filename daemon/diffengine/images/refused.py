# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats of memory dumps and other files that are not read: what they are, and what to do instead."""

from dataclasses import dataclass

from diffengine.images.untrusted import UntrustedFile

_VIRSH = "dump the guest with `virsh dump --memory-only --format elf` instead"
_QEMU = "resume the guest and dump it with `virsh dump --memory-only`, or QEMU's dump-guest-memory"
_XL = "restore the guest and dump it with `xl dump-core` instead"
_DISK = "give a dump of the guest's memory, not its disk"
_PLAIN = "dump the guest as raw memory or as an ELF core instead"
_VMWARE = "give the .vmem file beside it, which is raw memory"


@dataclass(frozen=True)
class RefusedFormat:
    """A format told by the bytes at the start of a file."""

    magic: bytes
    name: str
    remedy: str


def _packed(magic: bytes, name: str, unpack: str) -> RefusedFormat:
    return RefusedFormat(magic, name, f"unpack it first with `{unpack}`, or compress it with zstd")


REFUSED_FORMATS = (
    RefusedFormat(b"KDUMP   ", "a kdump-compressed dump", _VIRSH),
    RefusedFormat(b"DISKDUMP", "a diskdump dump", _VIRSH),
    RefusedFormat(b"makedumpfile\0", "a flattened kdump-compressed dump", _VIRSH),
    RefusedFormat(b"EMiL", "a LiME dump", "dump again with LiME's format=padded, which is raw memory"),
    RefusedFormat(b"AVML", "an AVML dump", _PLAIN),
    RefusedFormat(b"PAGEDU64", "a Windows crash dump", _PLAIN),
    RefusedFormat(b"PAGEDUMP", "a Windows crash dump", _PLAIN),
    RefusedFormat(b"QEVM", "a QEMU migration stream", _QEMU),
    RefusedFormat(b"LibvirtQemudSave", "a libvirt save image", _QEMU),
    RefusedFormat(b"LibvirtQemudPart", "an incomplete libvirt save image", _QEMU),
    RefusedFormat(b"Xen saved domain, xl format", "an xl save image", _XL),
    RefusedFormat(b"LIBXLFMT", "a libxl migration stream", _XL),
    RefusedFormat(b"\xff" * 8 + b"XENF", "a libxc migration stream", _XL),
    RefusedFormat(b"LinuxGuestRecord", "an xm save image", _XL),
    RefusedFormat(b"\xd0\xbe\xd2\xbe", "a VMware snapshot state", _VMWARE),
    RefusedFormat(b"\xd1\xba\xd1\xba", "a VMware snapshot state", _VMWARE),
    RefusedFormat(b"\xd2\xbe\xd2\xbe", "a VMware snapshot state", _VMWARE),
    RefusedFormat(b"\xd3\xbe\xd3\xbe", "a VMware snapshot state", _VMWARE),
    RefusedFormat(b"QFI\xfb", "a qcow2 disk image", _DISK),
    RefusedFormat(b"KDMV", "a VMDK disk image", _DISK),
    RefusedFormat(b"# Disk DescriptorFile", "a VMDK disk image", _DISK),
    RefusedFormat(b"conectix", "a VHD disk image", _DISK),
    RefusedFormat(b"vhdxfile", "a VHDX disk image", _DISK),
    RefusedFormat(b"<<< ", "a VirtualBox disk image", _DISK),
    _packed(b"\x1f\x8b\x08", "a gzip file", "gunzip"),
    _packed(b"\xfd7zXZ\0", "an xz file", "unxz"),
    _packed(b"BZh", "a bzip2 file", "bunzip2"),
    _packed(b"\x04\x22\x4d\x18", "an lz4 file", "unlz4"),
    _packed(b"\x89LZO\0\r\n\x1a\n", "an lzop file", "lzop -d"),
    _packed(b"PK\x03\x04", "a zip archive", "unzip"),
    _packed(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
)
_LONGEST_MAGIC = max(len(refused.magic) for refused in REFUSED_FORMATS)


def refuse_known_formats(file: UntrustedFile) -> None:
    """Refuses a file that starts as one of `REFUSED_FORMATS`, telling what to do instead."""
    start = file.untrusted_bytes[:_LONGEST_MAGIC].tobytes()
    for refused in REFUSED_FORMATS:
        if start.startswith(refused.magic):
            file.refuse(f"is {refused.name}, which is not read", refused.remedy)
    if file.untrusted_bytes[257:262].tobytes() == b"ustar":
        file.refuse("is a tar archive", "unpack it first with `tar -x`")
