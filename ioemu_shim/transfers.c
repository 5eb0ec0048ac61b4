/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The system calls that a device model makes on guest memory. Before the real call the range gets its frames,
 * and keeps them until it is over; so the kernel's copy meets no empty page. Should it all the same, it gives
 * EFAULT, or less than was asked for: for a file that looks like its end, so the rest is asked for once more.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* it renames functions that are defined here */
#include "next.h"
#include "windows.h"

#include <errno.h>
#include <limits.h>
#include <time.h>

/* A buffer is passed on, not looked at: the compiler thinks otherwise of those that are to be written. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define TRIES 1000u
#define WAIT_NS 20000

/** A call that goes on at `done`, or ends. */
struct call {
    int fd;
    int flags;
    off_t offset; /**< of a file; -1: a call without */
    struct msghdr *message;
    const struct sockaddr *to;
    struct sockaddr *from;
    socklen_t to_length, *from_length;
};

typedef ssize_t transfer(const struct call *call, const struct iovec *vectors, int count, off_t offset);

/* The next part of the buffers that is memory in one piece. @return its vectors. */
static int next_piece(const struct iovec *vectors, int count, struct iovec *piece)
{
    int taken = 1;
    *piece = vectors[0];
    for (; taken < count && vectors[taken].iov_base == (char *)piece->iov_base + piece->iov_len; taken++)
        piece->iov_len += vectors[taken].iov_len;
    return taken;
}

/* @param[out] use Of buffers that are one piece. */
static bool prepare(const struct iovec *vectors, int count, struct use *use)
{
    bool some = false;
    struct iovec piece;
    use->window = NULL;
    for (int i = 0, taken; i < count; i += taken) {
        taken = next_piece(vectors + i, count - i, &piece);
        if (windows_near(piece.iov_base, piece.iov_len))
            some |= windows_prepare(piece.iov_base, piece.iov_len, use);
        if (taken < count)
            use->window = NULL;
    }
    return some;
}

static void finish(const struct iovec *vectors, int count, const struct use *use)
{
    struct iovec piece;
    if (use->window) {
        windows_end_use(use);
        return;
    }
    int error = errno;
    for (int i = 0; i < count;) {
        i += next_piece(vectors + i, count - i, &piece);
        if (windows_near(piece.iov_base, piece.iov_len))
            windows_finish(piece.iov_base, piece.iov_len);
    }
    errno = error;
}

static bool near(const struct iovec *vectors, int count)
{
    for (int i = 0; i < count; i++)
        if (windows_near(vectors[i].iov_base, vectors[i].iov_len))
            return true;
    return false;
}

static ssize_t try(const struct call *call, transfer *real, const struct iovec *vectors, int count,
                   off_t offset, bool *in_window)
{
    for (unsigned tries = 0;; tries++) {
        struct use use;
        *in_window = prepare(vectors, count, &use);
        ssize_t result = real(call, vectors, count, offset);
        finish(vectors, count, &use);
        if (result >= 0 || errno != EFAULT || !*in_window || tries == TRIES)
            return result;
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    }
}

static size_t length_of(const struct iovec *vectors, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += vectors[i].iov_len;
    return bytes;
}

/* What is left after the first @p done bytes. @return how many vectors. */
static int rest_of(const struct iovec *vectors, int count, size_t done, struct iovec *rest)
{
    int left = 0;
    for (int i = 0; i < count; i++) {
        size_t skip = done < vectors[i].iov_len ? done : vectors[i].iov_len;
        done -= skip;
        if (vectors[i].iov_len > skip)
            rest[left++] = (struct iovec){(char *)vectors[i].iov_base + skip, vectors[i].iov_len - skip};
    }
    return left;
}

static ssize_t run(const struct call *call, transfer *real, const struct iovec *vectors, int count)
{
    if (count < 0 || count > IOV_MAX || !near(vectors, count))
        return real(call, vectors, count, call->offset);
    bool in_window;
    size_t bytes = length_of(vectors, count);
    ssize_t result = try(call, real, vectors, count, call->offset, &in_window);
    struct iovec rest[IOV_MAX];
    while (call->offset >= 0 && in_window && result > 0 && (size_t)result < bytes) {
        int left = rest_of(vectors, count, (size_t)result, rest);
        ssize_t more = try(call, real, rest, left, call->offset + result, &in_window);
        if (more <= 0)
            break;
        result += more;
    }
    return result;
}

static ssize_t real_read(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    (void)offset;
    return next_functions()->read(call->fd, vectors->iov_base, vectors->iov_len);
}

static ssize_t real_write(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    (void)offset;
    return next_functions()->write(call->fd, vectors->iov_base, vectors->iov_len);
}

static ssize_t real_pread(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    return next_functions()->pread(call->fd, vectors->iov_base, vectors->iov_len, offset);
}

static ssize_t real_pwrite(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    return next_functions()->pwrite(call->fd, vectors->iov_base, vectors->iov_len, offset);
}

static ssize_t real_readv(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)offset;
    return next_functions()->readv(call->fd, vectors, count);
}

static ssize_t real_writev(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)offset;
    return next_functions()->writev(call->fd, vectors, count);
}

static ssize_t real_preadv(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    return next_functions()->preadv(call->fd, vectors, count, offset);
}

static ssize_t real_pwritev(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    return next_functions()->pwritev(call->fd, vectors, count, offset);
}

static ssize_t real_preadv2(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    return next_functions()->preadv2(call->fd, vectors, count, offset, call->flags);
}

static ssize_t real_pwritev2(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    return next_functions()->pwritev2(call->fd, vectors, count, offset, call->flags);
}

static ssize_t real_recvfrom(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    (void)offset;
    return next_functions()->recvfrom(call->fd, vectors->iov_base, vectors->iov_len, call->flags, call->from,
                                      call->from_length);
}

static ssize_t real_sendto(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)count;
    (void)offset;
    return next_functions()->sendto(call->fd, vectors->iov_base, vectors->iov_len, call->flags, call->to,
                                    call->to_length);
}

static ssize_t real_recvmsg(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)vectors;
    (void)count;
    (void)offset;
    return next_functions()->recvmsg(call->fd, call->message, call->flags);
}

static ssize_t real_sendmsg(const struct call *call, const struct iovec *vectors, int count, off_t offset)
{
    (void)vectors;
    (void)count;
    (void)offset;
    return next_functions()->sendmsg(call->fd, call->message, call->flags);
}

#define ONE(buffer, bytes) (&(struct iovec){(void *)(buffer), (bytes)}), 1

ssize_t read(int fd, void *buffer, size_t bytes)
{
    return run(&(struct call){.fd = fd, .offset = -1}, real_read, ONE(buffer, bytes));
}

ssize_t write(int fd, const void *buffer, size_t bytes)
{
    return run(&(struct call){.fd = fd, .offset = -1}, real_write, ONE(buffer, bytes));
}

ssize_t pread(int fd, void *buffer, size_t bytes, off_t offset)
{
    return run(&(struct call){.fd = fd, .offset = offset}, real_pread, ONE(buffer, bytes));
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return run(&(struct call){.fd = fd, .offset = offset}, real_pwrite, ONE(buffer, bytes));
}

ssize_t pread64(int fd, void *buffer, size_t bytes, off_t offset)
{
    return pread(fd, buffer, bytes, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return pwrite(fd, buffer, bytes, offset);
}

ssize_t readv(int fd, const struct iovec *vectors, int count)
{
    return run(&(struct call){.fd = fd, .offset = -1}, real_readv, vectors, count);
}

ssize_t writev(int fd, const struct iovec *vectors, int count)
{
    return run(&(struct call){.fd = fd, .offset = -1}, real_writev, vectors, count);
}

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t offset)
{
    return run(&(struct call){.fd = fd, .offset = offset}, real_preadv, vectors, count);
}

ssize_t pwritev(int fd, const struct iovec *vectors, int count, off_t offset)
{
    return run(&(struct call){.fd = fd, .offset = offset}, real_pwritev, vectors, count);
}

ssize_t preadv64(int fd, const struct iovec *vectors, int count, off_t offset)
{
    return preadv(fd, vectors, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *vectors, int count, off_t offset)
{
    return pwritev(fd, vectors, count, offset);
}

ssize_t preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags)
{
    return run(&(struct call){.fd = fd, .offset = offset, .flags = flags}, real_preadv2, vectors, count);
}

ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags)
{
    return run(&(struct call){.fd = fd, .offset = offset, .flags = flags}, real_pwritev2, vectors, count);
}

ssize_t preadv64v2(int fd, const struct iovec *vectors, int count, off_t offset, int flags)
{
    return preadv2(fd, vectors, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *vectors, int count, off_t offset, int flags)
{
    return pwritev2(fd, vectors, count, offset, flags);
}

ssize_t recvfrom(int fd, void *buffer, size_t bytes, int flags, struct sockaddr *from, socklen_t *length)
{
    return run(&(struct call){.fd = fd, .offset = -1, .flags = flags, .from = from, .from_length = length},
               real_recvfrom, ONE(buffer, bytes));
}

ssize_t recv(int fd, void *buffer, size_t bytes, int flags)
{
    return recvfrom(fd, buffer, bytes, flags, NULL, NULL);
}

ssize_t sendto(int fd, const void *buffer, size_t bytes, int flags, const struct sockaddr *to,
               socklen_t length)
{
    return run(&(struct call){.fd = fd, .offset = -1, .flags = flags, .to = to, .to_length = length},
               real_sendto, ONE(buffer, bytes));
}

ssize_t send(int fd, const void *buffer, size_t bytes, int flags)
{
    return sendto(fd, buffer, bytes, flags, NULL, 0);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return run(&(struct call){.fd = fd, .offset = -1, .flags = flags, .message = message}, real_recvmsg,
               message->msg_iov, (int)message->msg_iovlen);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct msghdr copy = *message; /* only the pointer's type differs */
    return run(&(struct call){.fd = fd, .offset = -1, .flags = flags, .message = &copy}, real_sendmsg,
               message->msg_iov, (int)message->msg_iovlen);
}
