# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's log of the pages that a domain's vCPUs wrote (XEN_DOMCTL_shadow_op in log-dirty mode, under nested paging)."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOMEM
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.xen.connection import Connection, XenError
from diffengine.native import PAGE_BYTES

# XEN_DOMCTL_SHADOW_OP_* of domctl.h.
OFF = 0
ENABLE_LOGDIRTY = 2
CLEAN = 11


def switch_on(connection: Connection, domid: int) -> bool:
    """False: Xen refused. It does where a log is kept already, by a migration or for QEMU's screen."""
    return connection.attempt("xc_shadow_control", domid, ENABLE_LOGDIRTY, connection.libraries.ffi.NULL, 0) >= 0


def switch_off(connection: Connection, domid: int) -> bool:
    """Only what was switched on here: Xen does not ask whose it is. False: the domain is gone."""
    return connection.attempt("xc_shadow_control", domid, OFF, connection.libraries.ffi.NULL, 0) >= 0


def take(connection: Connection, domid: int, gfns: int) -> NDArray[np.bool_] | None:
    """Which of the first `gfns` pages were written since the last call; None: Xen could not tell."""
    ffi = connection.libraries.ffi
    with _pages_for(connection, -(-gfns // 8)) as buffer:
        statistics = ffi.new("struct xc_shadow_op_stats *")
        told = connection.attempt("xc_logdirty_control", domid, CLEAN, buffer, gfns, 0, statistics)
        if told < gfns:
            return None
        bits = np.frombuffer(ffi.buffer(buffer.hbuf, -(-gfns // 8)), dtype=np.uint8)
        return np.unpackbits(bits, count=gfns, bitorder="little").view(np.bool_)


@contextmanager
def _pages_for(connection: Connection, size: int) -> Iterator[Any]:
    """Memory that Xen can write to whatever dom0's kernel does with its pages meanwhile."""
    ffi, xenctrl = connection.libraries.ffi, connection.libraries.xenctrl
    buffer = ffi.new("struct xc_hypercall_buffer *", {"ubuf": ffi.cast("void *", -1)})
    pages = -(-size // PAGE_BYTES)
    if not xenctrl.xc__hypercall_buffer_alloc_pages(connection.xc, buffer, pages):
        raise XenError(f"getting {pages} pages to read a log of writes into", ffi.errno or ENOMEM)
    try:
        yield buffer
    finally:
        xenctrl.xc__hypercall_buffer_free_pages(connection.xc, buffer, pages)
