/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../core/futex.h"

#include <diffengine/holds.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOLDS_MAGIC 0x0a73646c6f684544u /* "DEholds\n" */
#define HOLDS_VERSION 5u
#define NAME_BYTES 16u
#define COUNT 0x1fu
#define HINTS ((unsigned)DE_HOLDS_SHARED | (unsigned)DE_HOLDS_OUT)
#define LOCKED 0x80u
#define SPINS 100u
#define WAIT_NS 50000
#define ATTACH_TRIES 100u
#define AWAIT_S 1
#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u
#define MAX_GUARDED 512u
#define GUARD_CLAIMED 1u /**< no address */

/** A request's state. */
enum { REQUEST_FREE, REQUEST_CLAIMED, REQUEST_ASKED, REQUEST_DONE };

struct request {
    _Atomic(uint32_t) state; /**< the device model sleeps on it */
    _Atomic(uint32_t) gfn;
};

/** The file's first page; one byte per gfn follows. */
struct holds_header {
    _Atomic uint64_t magic; /**< comes last */
    uint32_t version;
    uint32_t gfns;
    struct de_uuid uuid;
    uint16_t domain;
    _Atomic(uint32_t) ended;              /**< not 0: no pager will look at it again */
    _Atomic(uint32_t) complete;           /**< not 0: who has the lock has taken all its holds */
    _Alignas(64) _Atomic(uint32_t) asked; /**< requests so far: the pager sleeps on it */
    _Alignas(64) struct request requests[DE_HOLDS_REQUESTS];
};

struct guarded;

struct de_holds {
    int fd;
    uint32_t gfns;
    struct guarded *guard; /**< NULL: of a device model */
    bool void_table;       /**< atomic: it lost its memory */
    size_t bytes;
    struct holds_header *header;
    _Atomic uint8_t *pages;
};

/* Tables of this process's pager that lose their memory. A slot is in use while `from` is not 0. */
static struct guarded {
    uintptr_t from;
    size_t bytes;
    struct de_holds *holds;
} guarded[MAX_GUARDED];
static struct sigaction others;
static bool guarding;

static struct guarded *guarded_at(uintptr_t address)
{
    for (size_t i = 0; i < MAX_GUARDED; i++) {
        uintptr_t from = __atomic_load_n(&guarded[i].from, __ATOMIC_SEQ_CST);
        if (from > GUARD_CLAIMED && address >= from && address - from < guarded[i].bytes)
            return &guarded[i];
    }
    return NULL;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    int error = errno;
    struct guarded *place = guarded_at((uintptr_t)info->si_addr);
    void *page = (void *)((uintptr_t)info->si_addr & ~(uintptr_t)(DE_PAGE_SIZE - 1));
    if (place && mmap(page, DE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                      0) != MAP_FAILED) {
        __atomic_store_n(&place->holds->void_table, true, __ATOMIC_SEQ_CST);
        errno = error;
        return;
    }
    if (others.sa_flags & SA_SIGINFO)
        others.sa_sigaction(signal, info, context);
    else if (others.sa_handler == SIG_DFL || others.sa_handler == SIG_IGN)
        sigaction(SIGBUS, &others, NULL); /* and again, from where it came */
    else
        others.sa_handler(signal);
    errno = error;
}

/* Without a lock: a table is made when a domain comes, by whatever thread. Not by <stdatomic.h>: this is the
 * process's own, which the simulation has no part in. */
static void guard(struct de_holds *holds)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    if (!__atomic_exchange_n(&guarding, true, __ATOMIC_SEQ_CST))
        sigaction(SIGBUS, &action, &others);
    for (size_t i = 0; i < MAX_GUARDED; i++) {
        uintptr_t from = 0;
        if (!__atomic_compare_exchange_n(&guarded[i].from, &from, GUARD_CLAIMED, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        guarded[i].bytes = holds->bytes;
        guarded[i].holds = holds;
        __atomic_store_n(&guarded[i].from, (uintptr_t)holds->header, __ATOMIC_SEQ_CST);
        holds->guard = &guarded[i];
        return;
    }
}

static size_t file_bytes(uint32_t gfns)
{
    return DE_PAGE_SIZE + ((size_t)gfns + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE * DE_PAGE_SIZE;
}

static void name_of(uint16_t domain, char *name)
{
    snprintf(name, NAME_BYTES, "holds-%u", domain);
}

/* Takes @p fd over, with success or without. */
static int map(int fd, struct de_holds **result)
{
    struct stat status;
    struct de_holds *holds = calloc(1, sizeof *holds);
    if (!holds || fstat(fd, &status)) {
        free(holds);
        close(fd);
        return holds ? DE_SYSTEM : DE_NO_MEMORY;
    }
    holds->fd = fd;
    holds->bytes = (size_t)status.st_size;
    void *memory = holds->bytes <= DE_PAGE_SIZE
                       ? MAP_FAILED
                       : mmap(NULL, holds->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) {
        bool short_file = holds->bytes <= DE_PAGE_SIZE;
        free(holds);
        close(fd);
        return short_file ? DE_CORRUPT : DE_NO_MEMORY;
    }
    holds->header = memory;
    holds->pages = (_Atomic uint8_t *)memory + DE_PAGE_SIZE;
    *result = holds;
    return DE_OK;
}

static int check(struct de_holds *holds)
{
    const struct holds_header *header = holds->header;
    holds->gfns = header->gfns;
    bool valid = header->magic == HOLDS_MAGIC && header->version == HOLDS_VERSION && header->gfns &&
                 file_bytes(header->gfns) == holds->bytes;
    return valid ? DE_OK : DE_CORRUPT;
}

static int make_file(int directory, uint16_t domain, uint32_t gfns)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    de_holds_remove(directory, domain);
    int fd = directory < 0
                 ? memfd_create("diffengine-holds", MFD_CLOEXEC)
                 : openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    errno = posix_fallocate(fd, 0, (off_t)file_bytes(gfns));
    if (!errno)
        return fd;
    int error = errno;
    close(fd);
    de_holds_remove(directory, domain);
    errno = error;
    return -1;
}

int de_holds_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **result)
{
    struct de_holds *holds;
    int fd = make_file(directory, domain, gfns);
    if (fd < 0)
        return DE_SYSTEM;
    int status = map(fd, &holds);
    if (status != DE_OK) {
        de_holds_remove(directory, domain);
        return status;
    }
    holds->gfns = holds->header->gfns = gfns;
    holds->header->version = HOLDS_VERSION;
    holds->header->domain = domain;
    holds->header->uuid = *uuid;
    atomic_store(&holds->header->magic, HOLDS_MAGIC);
    guard(holds);
    *result = holds;
    return DE_OK;
}

int de_holds_reopen(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **result)
{
    char name[NAME_BYTES];
    struct de_holds *holds;
    name_of(domain, name);
    int fd = openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int status = map(fd, &holds);
    if (status != DE_OK)
        return status;
    guard(holds);
    bool same = check(holds) == DE_OK && holds->gfns == gfns && !de_holds_ended(holds) &&
                memcmp(&holds->header->uuid, uuid, sizeof *uuid) == 0;
    if (!same) {
        de_holds_close(holds);
        return DE_CORRUPT;
    }
    for (uint32_t gfn = 0; gfn < gfns; gfn++)
        atomic_fetch_and(&holds->pages[gfn], COUNT);
    *result = holds;
    return DE_OK;
}

void de_holds_close(struct de_holds *holds)
{
    if (!holds)
        return;
    if (holds->guard)
        __atomic_store_n(&holds->guard->from, 0, __ATOMIC_SEQ_CST);
    munmap(holds->header, holds->bytes);
    if (holds->fd >= 0)
        close(holds->fd);
    free(holds);
}

/* A pager that died may have left pages locked, and nobody else will ever unlock them. A count that changes
 * meanwhile does not matter any more. */
static void unlock_all(int fd)
{
    uint8_t bytes[DE_PAGE_SIZE];
    ssize_t count;
    for (off_t at = DE_PAGE_SIZE; (count = pread(fd, bytes, sizeof bytes, at)) > 0; at += count) {
        bool locked = false;
        for (ssize_t i = 0; i < count; i++) {
            locked = locked || bytes[i] & LOCKED;
            bytes[i] &= (uint8_t)~LOCKED;
        }
        if (locked && pwrite(fd, bytes, (size_t)count, at) != count)
            return;
    }
}

void de_holds_remove(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    int fd = directory < 0 ? -1 : openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        const uint32_t ended = 1;
        unlock_all(fd);
        /* Whom this can't be told goes without a table that counts. */
        (void)!pwrite(fd, &ended, sizeof ended, offsetof(struct holds_header, ended));
        close(fd);
    }
    if (directory >= 0)
        unlinkat(directory, name, 0);
}

int de_holds_fd(const struct de_holds *holds)
{
    return holds->fd;
}

uint32_t de_holds_gfns(const struct de_holds *holds)
{
    return holds->gfns;
}

size_t de_holds_bytes(const struct de_holds *holds)
{
    return sizeof *holds + holds->bytes;
}

bool de_holds_attached(const struct de_holds *holds)
{
    if (__atomic_load_n(&holds->void_table, __ATOMIC_SEQ_CST))
        return false;
    if (flock(holds->fd, LOCK_SH | LOCK_NB))
        return errno == EWOULDBLOCK && atomic_load(&holds->header->complete);
    /* Nobody else has the lock now: the next one is to say so anew. */
    atomic_store(&holds->header->complete, 0);
    flock(holds->fd, LOCK_UN);
    return false;
}

bool de_holds_lock(struct de_holds *holds, uint32_t gfn)
{
    if (gfn >= holds->gfns)
        return false;
    uint8_t now = atomic_load(&holds->pages[gfn]);
    while (!(now & (COUNT | LOCKED)))
        if (atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now | LOCKED)))
            return true;
    return false;
}

void de_holds_unlock(struct de_holds *holds, uint32_t gfn)
{
    if (gfn < holds->gfns)
        atomic_fetch_and(&holds->pages[gfn], (uint8_t)~LOCKED);
}

void de_holds_note(struct de_holds *holds, uint32_t gfn, enum de_holds_hint hint, bool now)
{
    if (gfn >= holds->gfns)
        return;
    if (now)
        atomic_fetch_or(&holds->pages[gfn], (uint8_t)hint);
    else
        atomic_fetch_and(&holds->pages[gfn], (uint8_t)~hint);
}

uint32_t de_holds_asked(const struct de_holds *holds)
{
    return atomic_load(&holds->header->asked);
}

void de_holds_await(struct de_holds *holds, uint32_t asked)
{
    /* A table without memory can't be slept on. */
    if (futex_wait(&holds->header->asked, asked, &(struct timespec){.tv_sec = AWAIT_S}) && errno == EFAULT)
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
}

void de_holds_interrupt(struct de_holds *holds)
{
    atomic_fetch_add(&holds->header->asked, 1);
    futex_wake(&holds->header->asked);
}

bool de_holds_request(struct de_holds *holds, uint32_t slot, uint32_t *gfn)
{
    struct request *request = &holds->header->requests[slot];
    if (atomic_load(&request->state) != REQUEST_ASKED)
        return false;
    uint32_t untrusted_gfn = atomic_load(&request->gfn);
    if (untrusted_gfn < holds->gfns) {
        *gfn = untrusted_gfn;
        return true;
    }
    de_holds_answer(holds, slot);
    return false;
}

void de_holds_answer(struct de_holds *holds, uint32_t slot)
{
    struct request *request = &holds->header->requests[slot];
    uint32_t asked = REQUEST_ASKED;
    atomic_compare_exchange_strong(&request->state, &asked, REQUEST_DONE);
    futex_wake(&request->state);
}

/* The pager looks whether somebody has the lock by having it itself for a moment: one refusal says little. */
static int lock_table(int fd)
{
    for (unsigned tries = 0; tries < ATTACH_TRIES; tries++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return DE_OK;
        if (errno != EWOULDBLOCK)
            return DE_SYSTEM;
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    }
    return DE_BUSY;
}

int de_holds_attach_fd(int fd, struct de_holds **result)
{
    struct de_holds *holds;
    int status = map(fd, &holds);
    if (status != DE_OK)
        return status;
    status = check(holds);
    if (status == DE_OK)
        status = lock_table(holds->fd);
    if (status != DE_OK) {
        de_holds_close(holds);
        return status;
    }
    atomic_store(&holds->header->complete, 0);
    close(holds->fd);
    holds->fd = -1;
    /* A child would keep the lock. */
    (void)madvise(holds->header, holds->bytes, MADV_DONTFORK);
    for (uint32_t gfn = 0; gfn < holds->gfns; gfn++)
        atomic_fetch_and(&holds->pages[gfn], (uint8_t)~COUNT);
    for (uint32_t i = 0; i < DE_HOLDS_REQUESTS; i++)
        atomic_store(&holds->header->requests[i].state, REQUEST_FREE);
    *result = holds;
    return DE_OK;
}

int de_holds_attach(const char *path, struct de_holds **result)
{
    /* A description of its own: a lock belongs to that, not to the file. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int status = fd < 0 ? DE_SYSTEM : de_holds_attach_fd(fd, result);
    if (status == DE_OK)
        de_holds_complete(*result);
    return status;
}

void de_holds_complete(struct de_holds *holds)
{
    atomic_store(&holds->header->complete, 1);
}

bool de_holds_ended(const struct de_holds *holds)
{
    return atomic_load(&holds->header->ended) != 0;
}

int de_holds_take(struct de_holds *holds, uint32_t gfn)
{
    if (gfn >= holds->gfns)
        return DE_INVALID;
    for (unsigned turn = 0;;) {
        uint8_t now = atomic_load(&holds->pages[gfn]);
        if ((now & COUNT) == DE_HOLDS_MAX)
            return DE_OK;
        if (!(now & LOCKED)) {
            if (atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now + 1)))
                return DE_OK;
        } else if (turn++ < SPINS) {
            sched_yield();
        } else {
            nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
        }
    }
}

int de_holds_take_plain(struct de_holds *holds, uint32_t gfn)
{
    if (gfn >= holds->gfns)
        return DE_INVALID;
    uint8_t now = atomic_load(&holds->pages[gfn]);
    while (!(now & (LOCKED | HINTS)))
        if ((now & COUNT) == DE_HOLDS_MAX ||
            atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now + 1)))
            return DE_OK;
    return DE_BUSY;
}

void de_holds_drop(struct de_holds *holds, uint32_t gfn)
{
    if (gfn >= holds->gfns)
        return;
    uint8_t now = atomic_load(&holds->pages[gfn]);
    while (now & COUNT && (now & COUNT) != DE_HOLDS_MAX &&
           !atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now - 1)))
        ;
}

unsigned de_holds_hints(const struct de_holds *holds, uint32_t gfn)
{
    return gfn < holds->gfns ? atomic_load(&holds->pages[gfn]) & HINTS : 0;
}

static struct request *claim_request(struct de_holds *holds)
{
    for (uint32_t i = 0; i < DE_HOLDS_REQUESTS; i++) {
        uint32_t expected = REQUEST_FREE;
        struct request *request = &holds->header->requests[i];
        if (atomic_compare_exchange_strong(&request->state, &expected, REQUEST_CLAIMED))
            return request;
    }
    return NULL;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* @return whether it was answered in time. The place is free again. */
static bool await_request(struct request *request, int64_t deadline_ns)
{
    uint32_t state;
    while ((state = atomic_load(&request->state)) == REQUEST_ASKED) {
        int64_t left_ns = deadline_ns - now_ns();
        if (left_ns <= 0)
            break;
        struct timespec timeout = {.tv_sec = left_ns / NS_PER_S, .tv_nsec = left_ns % NS_PER_S};
        futex_wait(&request->state, state, &timeout);
    }
    bool answered = state == REQUEST_DONE;
    atomic_store(&request->state, REQUEST_FREE);
    return answered;
}

int de_holds_bring_in(struct de_holds *holds, const uint32_t *gfns, size_t count, unsigned timeout_ms)
{
    int64_t deadline_ns = now_ns() + (int64_t)timeout_ms * NS_PER_MS;
    int status = DE_OK;
    for (size_t done = 0; done < count && status == DE_OK;) {
        struct request *mine[DE_HOLDS_REQUESTS];
        size_t asked = 0;
        for (; done < count && asked < DE_HOLDS_REQUESTS; done++) {
            if (!(de_holds_hints(holds, gfns[done]) & DE_HOLDS_OUT))
                continue;
            struct request *request = claim_request(holds);
            if (!request)
                break;
            atomic_store(&request->gfn, gfns[done]);
            atomic_store(&request->state, REQUEST_ASKED);
            mine[asked++] = request;
        }
        if (asked)
            de_holds_interrupt(holds);
        else if (done < count) /* others have all places */
            nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
        for (size_t i = 0; i < asked; i++)
            if (!await_request(mine[i], deadline_ns))
                status = DE_BUSY;
        if (now_ns() > deadline_ns)
            status = done < count ? DE_BUSY : status;
    }
    return status;
}
