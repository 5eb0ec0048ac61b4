/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "next.h"

#include <dlfcn.h>
#include <string.h>

static struct next next;
bool next_ready;

static void find(void *function, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    memcpy(function, &found, sizeof found); /* ISO C has no cast from an object's address to a function's */
}

__attribute__((constructor)) static void fill(void)
{
    find(&next.open, "xenforeignmemory_open");
    find(&next.map2, "xenforeignmemory_map2");
    find(&next.unmap, "xenforeignmemory_unmap");
    find(&next.mmap, "mmap");
    find(&next.munmap, "munmap");
    find(&next.mremap, "mremap");
    find(&next.pthread_sigmask, "pthread_sigmask");
    find(&next.sigaction, "sigaction");
    find(&next.read, "read");
    find(&next.write, "write");
    find(&next.pread, "pread");
    find(&next.pwrite, "pwrite");
    find(&next.readv, "readv");
    find(&next.writev, "writev");
    find(&next.preadv, "preadv");
    find(&next.pwritev, "pwritev");
    find(&next.preadv2, "preadv2");
    find(&next.pwritev2, "pwritev2");
    find(&next.recvfrom, "recvfrom");
    find(&next.sendto, "sendto");
    find(&next.recvmsg, "recvmsg");
    find(&next.sendmsg, "sendmsg");
    next_ready = true;
}

const struct next *next_functions(void)
{
    return &next;
}
