/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file next.h
 * What the shim stands in for: the functions behind its own. Xen's library and libc, or, on the embedded
 * machine, the stand-in for Xen's library (embedded_xen.c) and libc.
 */
#ifndef DIFFENGINE_IOEMU_NEXT_H
#define DIFFENGINE_IOEMU_NEXT_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <xenforeignmemory.h>

struct next {
    xenforeignmemory_handle *(*open)(struct xentoollog_logger *logger, unsigned flags);
    void *(*map2)(xenforeignmemory_handle *xen, uint32_t domain, void *address, int protection, int flags,
                  size_t pages, const xen_pfn_t *gfns, int *errors);
    int (*unmap)(xenforeignmemory_handle *xen, void *address, size_t pages);
    void *(*mmap)(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
    int (*munmap)(void *address, size_t bytes);
    void *(*mremap)(void *from, size_t from_bytes, size_t bytes, int flags, ...);
    int (*pthread_sigmask)(int how, const sigset_t *set, sigset_t *former);
    int (*sigaction)(int signal, const struct sigaction *action, struct sigaction *former);
    ssize_t (*read)(int fd, void *buffer, size_t bytes);
    ssize_t (*write)(int fd, const void *buffer, size_t bytes);
    ssize_t (*pread)(int fd, void *buffer, size_t bytes, off_t offset);
    ssize_t (*pwrite)(int fd, const void *buffer, size_t bytes, off_t offset);
    ssize_t (*readv)(int fd, const struct iovec *vectors, int count);
    ssize_t (*writev)(int fd, const struct iovec *vectors, int count);
    ssize_t (*preadv)(int fd, const struct iovec *vectors, int count, off_t offset);
    ssize_t (*pwritev)(int fd, const struct iovec *vectors, int count, off_t offset);
    ssize_t (*preadv2)(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
    ssize_t (*pwritev2)(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
    ssize_t (*recvfrom)(int fd, void *buffer, size_t bytes, int flags, struct sockaddr *from,
                        socklen_t *length);
    ssize_t (*sendto)(int fd, const void *buffer, size_t bytes, int flags, const struct sockaddr *to,
                      socklen_t length);
    ssize_t (*recvmsg)(int fd, struct msghdr *message, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *message, int flags);
};

/** Whether the table is filled. Libraries that are initialised earlier call mmap() and munmap() before. */
extern bool next_ready;
/** Any thread. */
const struct next *next_functions(void);

#endif
