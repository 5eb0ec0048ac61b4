# SPDX-License-Identifier: GPL-2.0-or-later
"""Initramfs archives: cpio's "newc" format, which has room for devices without the right to make them."""

from dataclasses import dataclass, field

DIRECTORY = 0o40755
PROGRAM = 0o100755
FILE = 0o100644
CHARACTER_DEVICE = 0o20600


@dataclass
class Archive:
    """Add entries, folders before what is in them, then take bytes()."""

    _entries: list[bytes] = field(default_factory=list)

    def folder(self, name: str) -> None:
        self._add(name, DIRECTORY)

    def program(self, name: str, content: bytes) -> None:
        self._add(name, PROGRAM, content)

    def file(self, name: str, content: bytes) -> None:
        self._add(name, FILE, content)

    def device(self, name: str, major: int, minor: int) -> None:
        self._add(name, CHARACTER_DEVICE, device=(major, minor))

    def content(self) -> bytes:
        end = Archive()
        end._add("TRAILER!!!", 0)
        return b"".join(self._entries + end._entries)

    def _add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        path = name.encode() + b"\0"
        inode = len(self._entries) + 1
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
        self._entries += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]
