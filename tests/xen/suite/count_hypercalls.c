/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * To be preloaded into a process of ours: counts what it asks Xen for, and the time until the answer, by
 * kind, into the file that COUNT_HYPERCALLS names (an array of struct count, in the order of enum kind).
 */
#define _GNU_SOURCE
#define __XEN_TOOLS__ 1
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <xen/xen.h>

#include <xen/memory.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/privcmd.h>

enum kind { NOMINATE, EVICT, LOAD, SHARE_NOMINATE, SHARE, MAP, NOTIFY, OTHER, KINDS };

struct count {
    _Atomic uint64_t calls;
    _Atomic uint64_t ns;
};

static struct count nowhere[KINDS], *counts = nowhere;

__attribute__((constructor)) static void open_counts(void)
{
    const char *path = getenv("COUNT_HYPERCALLS");
    int file = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file < 0)
        return;
    void *memory = MAP_FAILED;
    if (ftruncate(file, sizeof nowhere) == 0)
        memory = mmap(NULL, sizeof nowhere, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED)
        counts = memory;
    close(file);
}

static enum kind kind_of_memory_op(uint64_t command, uint64_t argument)
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
static enum kind kind_of_hypercall(const privcmd_hypercall_t *call)
{
    if (call->op == __HYPERVISOR_memory_op)
        return kind_of_memory_op(call->arg[0], call->arg[1]);
    const multicall_entry_t *inner = (const void *)(uintptr_t)call->arg[0];
    if (call->op == __HYPERVISOR_multicall && call->arg[1] == 1 && inner->op == __HYPERVISOR_memory_op)
        return kind_of_memory_op(inner->args[0], inner->args[1]);
    return OTHER;
}

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int ioctl(int file, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "ioctl");
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    enum kind kind;
    if (request == IOCTL_PRIVCMD_HYPERCALL)
        kind = kind_of_hypercall(argument);
    else if (request == IOCTL_PRIVCMD_MMAPBATCH_V2)
        kind = MAP;
    else if (request == IOCTL_EVTCHN_NOTIFY)
        kind = NOTIFY;
    else
        return real(file, request, argument);
    uint64_t begin_ns = now_ns();
    int result = real(file, request, argument);
    counts[kind].calls++;
    counts[kind].ns += now_ns() - begin_ns;
    return result;
}
