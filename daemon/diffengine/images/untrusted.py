# SPDX-License-Identifier: GPL-2.0-or-later
"""A file's bytes before anything in them has been believed."""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from diffengine.errors import ImageError

DUMP_AGAIN = "dump the guest again, or fetch the file again"


@dataclass(frozen=True)
class UntrustedFile:
    """The mapped bytes of an image, which only `read` and `table` hand out, and only what lies inside.

    `path` is the file that the user named; `decoded` tells that `untrusted_bytes` are what its compressed
    content decoded to.
    """

    path: str
    untrusted_bytes: NDArray[np.uint8]
    decoded: bool = False

    @property
    def size(self) -> int:
        return len(self.untrusted_bytes)

    def read(self, offset: int, length: int, name: str) -> bytes:
        """A copy of `length` bytes at `offset`; `name` says in the error what they would have been."""
        self.require(offset, length, name)
        return self.untrusted_bytes[offset : offset + length].tobytes()

    def table(self, offset: int, count: int, row: np.dtype[np.void], name: str) -> NDArray[np.void]:
        """`count` rows at `offset`, not copied: keep none of it, or the file can't be unmapped."""
        self.require(offset, count * row.itemsize, name)
        return np.frombuffer(self.untrusted_bytes.data, dtype=row, count=count, offset=offset)

    def require(self, offset: int, length: int, name: str) -> None:
        """Refuses the file unless it holds `length` bytes at `offset`."""
        if offset + length > self.size:
            self.refuse(
                f"is truncated or damaged: {name} would end at byte {offset + length} of {self.size}",
                DUMP_AGAIN,
            )

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise ImageError(self.path, f"once decoded, it {what}" if self.decoded else what, remedy)
