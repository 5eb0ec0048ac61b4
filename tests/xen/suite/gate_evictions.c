/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * To be preloaded into the pager: an eviction, once asked for, waits as long as the gate is shut, so that
 * there is time for something between the pager's last look at a page and its eviction. GATE_EVICTIONS names
 * a file that holds a struct gate.
 */
#define _GNU_SOURCE
#include "hypercall_kinds.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 1000000

struct gate {
    _Atomic uint32_t shut;
    _Atomic uint32_t waiting; /**< evictions */
};

static struct gate nowhere, *gate = &nowhere;

__attribute__((constructor)) static void open_gate(void)
{
    const char *path = getenv("GATE_EVICTIONS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *memory = mmap(NULL, sizeof nowhere, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED)
        gate = memory;
    close(file);
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
    if (request == IOCTL_PRIVCMD_HYPERCALL && kind_of_hypercall(argument) == EVICT) {
        gate->waiting++;
        while (gate->shut)
            nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
        gate->waiting--;
    }
    return real(file, request, argument);
}
