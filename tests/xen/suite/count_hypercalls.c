/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * To be preloaded into a process of ours: counts what it asks Xen for, and the time until the answer, by
 * kind, into the file that COUNT_HYPERCALLS names (an array of struct count, in the order of enum kind).
 */
#define _GNU_SOURCE
#include "hypercall_kinds.h"

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

#include <xen/sys/evtchn.h>

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
