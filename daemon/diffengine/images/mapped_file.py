# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole file mapped read-only."""

import contextlib
import errno
import mmap
import os
import stat
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from diffengine.errors import ImageError

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "run as a user who may read it, or change its permissions",
    errno.EPERM: "run as a user who may read it, or change its permissions",
    errno.EISDIR: "give the image files in it one by one",
    errno.ENOMEM: "raise the limit on address space (`ulimit -v`) or give fewer images at a time",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`) or give fewer images at a time",
}


class MappedFile:
    """A non-empty regular file's bytes at `address`, until `close` or until the object is gone.

    Nothing is read before it is touched, and a sparse file stays sparse. If another process shortens the file
    meanwhile, touching what is gone ends this process with SIGBUS: nothing may write to an image in use.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        """Maps the `size` bytes of an open file, which may be closed afterwards."""
        try:
            self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except OSError as error:
            refuse_for(path, error)
        self.size = size
        self.address = int(self.untrusted_bytes().ctypes.data)
        # Core dumps hold mappings of unlinked files, and must not leak a guest's secrets.
        self._advise(mmap.MADV_DONTDUMP)
        self.expect_sequential()

    def untrusted_bytes(self) -> NDArray[np.uint8]:
        """The mapped bytes; to be dropped before `close`."""
        return np.frombuffer(self._map, dtype=np.uint8)

    def expect_sequential(self) -> None:
        self._advise(mmap.MADV_SEQUENTIAL)

    def expect_random(self) -> None:
        self._advise(mmap.MADV_RANDOM)

    def close(self) -> None:
        self._map.close()

    def _advise(self, advice: int) -> None:
        # A kernel that does not know the advice still reads the image.
        with contextlib.suppress(OSError):
            self._map.madvise(advice)


def map_file(path: str) -> MappedFile:
    """Opens and maps the file; raises ImageError if that can't be done."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        refuse_for(path, error)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            refuse_for(path, IsADirectoryError(errno.EISDIR, "is a directory"))
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "is not a regular file", "copy what it holds to a file first")
        if status.st_size == 0:
            raise ImageError(path, "is empty", "dump the guest again, or fetch the file again")
        return MappedFile(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


def refuse_for(path: str, error: OSError | ValueError) -> NoReturn:
    """Turns what the system said about a file into an error of ours."""
    if not isinstance(error, OSError) or error.errno is None:
        raise ImageError(path, f"can't be opened ({error})", "check the path") from error
    reason = os.strerror(error.errno)
    remedy = _REMEDIES.get(error.errno, "check the file and the disk it is on")
    raise ImageError(path, f"can't be opened ({reason[0].lower()}{reason[1:]})", remedy) from error
