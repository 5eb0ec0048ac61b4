/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a process of ours asks Xen for, seen from its ioctl()s. */
#ifndef SUITE_HYPERCALL_KINDS_H
#define SUITE_HYPERCALL_KINDS_H

#define __XEN_TOOLS__ 1
#include <stddef.h>
#include <stdint.h>
#include <xen/xen.h>

#include <xen/memory.h>
#include <xen/sys/privcmd.h>

enum kind { NOMINATE, EVICT, LOAD, SHARE_NOMINATE, SHARE, MAP, NOTIFY, OTHER, KINDS };

static inline enum kind kind_of_memory_op(uint64_t command, uint64_t argument)
{
    if (!argument)
        return OTHER;
    /* Both structures begin with what is to be done. */
    uint8_t what = *(const uint8_t *)(uintptr_t)argument;
    if (command == XENMEM_paging_op)
        return what == XENMEM_paging_op_nominate ? NOMINATE : what == XENMEM_paging_op_evict ? EVICT : LOAD;
    if (command == XENMEM_sharing_op && what == XENMEM_sharing_op_nominate_gfn)
        return SHARE_NOMINATE;
    if (command == XENMEM_sharing_op && what == XENMEM_sharing_op_share)
        return SHARE;
    return OTHER;
}

/* libxenctrl wraps each operation on memory in a multicall of one, whose result is longer. */
static inline enum kind kind_of_hypercall(const privcmd_hypercall_t *call)
{
    if (call->op == __HYPERVISOR_memory_op)
        return kind_of_memory_op(call->arg[0], call->arg[1]);
    const multicall_entry_t *inner = (const void *)(uintptr_t)call->arg[0];
    if (call->op == __HYPERVISOR_multicall && call->arg[1] == 1 && inner->op == __HYPERVISOR_memory_op)
        return kind_of_memory_op(inner->args[0], inner->args[1]);
    return OTHER;
}

#endif
