/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The functions that the shim stands in for: those that make and end mappings, and those that would keep its
 * signals away.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* it renames functions that are defined here */
#include "faults.h"
#include "next.h"
#include "pager_link.h"
#include "windows.h"

#include <diffengine/page.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A device model opens the library when it starts, and may give up its privileges afterwards. */
xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger, unsigned flags)
{
    faults_open();
    link_connect();
    return next_functions()->open(logger, flags);
}

static int first_error(const int *errors, size_t pages)
{
    for (size_t i = 0; i < pages; i++)
        if (errors[i])
            return errors[i];
    return 0;
}

static void *map_plainly(const struct request *request, int *errors)
{
    struct plain *plain = windows_plain_begin(request);
    void *address =
        next_functions()->map2(request->xen, request->domain, request->address, request->protection,
                               request->flags, request->pages, request->gfns, errors);
    int error = errno;
    windows_plain_made(plain, address);
    errno = error;
    return address;
}

void *xenforeignmemory_map2(xenforeignmemory_handle *xen, uint32_t domain, void *address, int protection,
                            int flags, size_t pages, const xen_pfn_t *gfns, int *errors)
{
    struct request request = {xen, domain, address, protection, flags, pages, gfns};
    if (windows_mapping_here())
        return next_functions()->map2(xen, domain, address, protection, flags, pages, gfns, errors);
    struct taken replaced = {.windows = NULL};
    if (address && flags & MAP_FIXED)
        replaced = windows_take_out((uintptr_t)address, pages * DE_PAGE_SIZE);
    int *own_errors = errors ? NULL : calloc(pages, sizeof *own_errors);
    void *mapped = errors || own_errors ? windows_map(&request, errors ? errors : own_errors) : NULL;
    /* Who gives no place for errors gets all pages, or nothing. */
    int error = mapped && own_errors ? first_error(own_errors, pages) : 0;
    bool ended = mapped != NULL;
    free(own_errors);
    if (error) {
        munmap(mapped, pages * DE_PAGE_SIZE);
        mapped = NULL;
        errno = -error;
    } else if (!mapped) {
        mapped = map_plainly(&request, errors);
    }
    /* Xen's library may, or may not, have ended what was there before it failed. */
    if (ended || mapped)
        windows_forget(replaced);
    else
        windows_abandon(replaced);
    return mapped;
}

void *xenforeignmemory_map(xenforeignmemory_handle *xen, uint32_t domain, int protection, size_t pages,
                           const xen_pfn_t *gfns, int *errors)
{
    return xenforeignmemory_map2(xen, domain, NULL, protection, 0, pages, gfns, errors);
}

/* @return the result; errno stays. */
static int finish_unmap(struct taken gone, int result)
{
    int error = errno;
    if (result)
        windows_put_back(gone);
    else
        windows_forget(gone);
    errno = error;
    return result;
}

int xenforeignmemory_unmap(xenforeignmemory_handle *xen, void *address, size_t pages)
{
    size_t bytes = pages * DE_PAGE_SIZE;
    if (!windows_near(address, bytes) || windows_mapping_here())
        return next_functions()->unmap(xen, address, pages);
    struct taken gone = windows_take_out((uintptr_t)address, bytes);
    int result = gone.windows ? next_functions()->munmap(address, bytes)
                              : next_functions()->unmap(xen, address, pages);
    return finish_unmap(gone, result);
}

/* A library that could not map into a window gives the addresses back: somebody else could get them, and a
 * touch meanwhile must be heard. */
static int keep_reserved(void *address, size_t bytes)
{
    return faults_empty(address, bytes, PROT_READ | PROT_WRITE) ? 0 : -1;
}

static int unmap(void *address, size_t bytes)
{
    if (!windows_near(address, bytes) || (uintptr_t)address % DE_PAGE_SIZE)
        return next_functions()->munmap(address, bytes);
    if (windows_mapping_here())
        return windows_covers((uintptr_t)address) ? keep_reserved(address, bytes)
                                                  : next_functions()->munmap(address, bytes);
    struct taken gone = windows_take_out((uintptr_t)address, bytes);
    return finish_unmap(gone, next_functions()->munmap(address, bytes));
}

static void *map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (!(flags & MAP_FIXED) || !windows_near(address, bytes) || windows_mapping_here())
        return next_functions()->mmap(address, bytes, protection, flags, fd, offset);
    struct taken gone = windows_take_out((uintptr_t)address, bytes);
    void *mapped = next_functions()->mmap(address, bytes, protection, flags, fd, offset);
    int error = errno;
    if (mapped == MAP_FAILED)
        windows_abandon(gone);
    else
        windows_forget(gone);
    errno = error;
    return mapped;
}

/* A sanitizer's own start maps memory, too, when nothing of it works yet. */
#define EARLY __attribute__((no_sanitize("thread")))

EARLY int munmap(void *address, size_t bytes)
{
    return next_ready ? unmap(address, bytes) : (int)syscall(SYS_munmap, address, bytes);
}

EARLY void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return next_ready ? map(address, bytes, protection, flags, fd, offset)
                      : (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

EARLY void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, bytes, protection, flags, fd, offset);
}

int sigaction(int signal, const struct sigaction *action, struct sigaction *former)
{
    return faults_chain(signal, action, former) ? 0 : next_functions()->sigaction(signal, action, former);
}

/* QEMU's threads block all they can, SIGBUS too. */
EARLY int pthread_sigmask(int how, const sigset_t *set, sigset_t *former)
{
    if (!next_ready)
        return syscall(SYS_rt_sigprocmask, how, set, former, _NSIG / CHAR_BIT) ? errno : 0;
    if (!set || how == SIG_UNBLOCK)
        return next_functions()->pthread_sigmask(how, set, former);
    sigset_t blockable = faults_blockable(set);
    return next_functions()->pthread_sigmask(how, &blockable, former);
}

int sigprocmask(int how, const sigset_t *set, sigset_t *former)
{
    int error = pthread_sigmask(how, set, former);
    errno = error ? error : errno;
    return error ? -1 : 0;
}
