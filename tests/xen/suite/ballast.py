# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain that never runs and has all of the host's free frames."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Self

from guests import INITRD, KERNELS, GuestError, xl

NAME = "ballast"
# shadow_memory: the p2m's own pages are put aside when the domain is made.
CONFIG = f"""\
name="{NAME}"
type="pvh"
kernel="{KERNELS["pvh"]}"
ramdisk="{INITRD}"
memory=96
maxmem=96
shadow_memory=24
vcpus=1
"""
MAX_KIB = 8 << 20
# Far above what the domain was made with; each order has its own range.
FIRST_GFN = {9: 1 << 20, 0: 1 << 22}
MOST = {9: 4096, 0: 65536}


class Ballast:
    """As a context: from beginning to end of the block no frame is free, however many others give up meanwhile is up
    to fill()."""

    def __init__(self) -> None:
        self._xc = ctypes.CDLL("libxenctrl.so.4.17", use_errno=True)
        self._xc.xc_interface_open.restype = ctypes.c_void_p
        self._domid = 0
        self._filled = dict.fromkeys(FIRST_GFN, 0)

    def __enter__(self) -> Self:
        Path("/tmp/ballast.cfg").write_text(CONFIG)
        xl("create", "-p", "/tmp/ballast.cfg")
        self._domid = int(xl("domid", NAME))
        self.fill()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(GuestError):
            xl("destroy", NAME)

    def fill(self) -> None:
        """Takes what is free now."""
        handle = ctypes.c_void_p(self._xc.xc_interface_open(None, None, 0))
        try:
            assert self._xc.xc_domain_setmaxmem(handle, ctypes.c_uint32(self._domid), ctypes.c_uint64(MAX_KIB)) == 0
            for order, first in FIRST_GFN.items():
                begin = first + (self._filled[order] << order)
                gfns = (ctypes.c_uint64 * MOST[order])(*(begin + (i << order) for i in range(MOST[order])))
                self._filled[order] += self._populate(handle, order, gfns)
        finally:
            self._xc.xc_interface_close(handle)

    def _populate(self, handle: ctypes.c_void_p, order: int, gfns: ctypes.Array[ctypes.c_uint64]) -> int:
        """How many of the extents there were frames for."""
        done = self._xc.xc_domain_populate_physmap(
            handle, ctypes.c_uint32(self._domid), ctypes.c_ulong(len(gfns)), order, 0, gfns
        )
        assert 0 <= done < len(gfns), "the host has more memory than the ballast may take"
        return int(done)
