# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's log of the pages that a domain's vCPUs wrote (XEN_DOMCTL_shadow_op in log-dirty mode, under nested paging)."""

import numpy as np
from numpy.typing import NDArray

from diffengine.hypervisor.xen.connection import Connection
from diffengine.native import PAGE_BYTES

# XEN_DOMCTL_SHADOW_OP_* of domctl.h.
OFF = 0
ENABLE_LOGDIRTY = 2
CLEAN = 11


def enable(connection: Connection, domid: int) -> bool:
    """False: Xen refused. It does where a log is kept already, by a migration or for QEMU's screen."""
    return connection.attempt("xc_shadow_control", domid, ENABLE_LOGDIRTY, connection.libraries.ffi.NULL, 0) >= 0


def disable(connection: Connection, domid: int) -> bool:
    """Only what was enabled here: Xen does not ask whose it is. False: the domain is gone."""
    return connection.attempt("xc_shadow_control", domid, OFF, connection.libraries.ffi.NULL, 0) >= 0


def take(connection: Connection, domid: int, gfns: int) -> NDArray[np.bool_] | None:
    """Which of the first `gfns` pages were written since the last call; None: Xen could not tell, or dom0 has no memory
    for the answer."""
    ffi, xenctrl = connection.libraries.ffi, connection.libraries.xenctrl
    size = -(-gfns // 8)
    # Memory that Xen can write to whatever dom0's kernel does with its pages meanwhile.
    pages, buffer = -(-size // PAGE_BYTES), ffi.new("struct xc_hypercall_buffer *", {"ubuf": ffi.cast("void *", -1)})
    if not xenctrl.xc__hypercall_buffer_alloc_pages(connection.xc, buffer, pages):
        return None
    try:
        statistics = ffi.new("struct xc_shadow_op_stats *")
        if connection.attempt("xc_logdirty_control", domid, CLEAN, buffer, gfns, 0, statistics) < gfns:
            return None
        bits = np.frombuffer(ffi.buffer(buffer.hbuf, size), dtype=np.uint8)
        return np.unpackbits(bits, count=gfns, bitorder="little").view(np.bool_)
    finally:
        xenctrl.xc__hypercall_buffer_free_pages(connection.xc, buffer, pages)
