/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file windows.h
 * Windows: large read-write mappings of guest memory of which only those frames are mapped that are in use.
 *
 * A window is reserved address space in which clusters of pages get their frames when they are touched, and
 * lose them when they were not for a while. A cluster changes under the hands of one thread at a time
 * (`working`), without the lock; everything else is under the lock. Nobody who has the lock, or works on a
 * cluster, touches a window's memory.
 */
#ifndef DIFFENGINE_IOEMU_WINDOWS_H
#define DIFFENGINE_IOEMU_WINDOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xenforeignmemory.h>

struct window;
struct plain;

/** What a system call has of a window: so that its end need neither look for that nor take the lock. */
struct use {
    struct window *window; /**< NULL: to be found by the address */
    size_t first, last;    /**< clusters */
};

/** What is listed no more. */
struct taken {
    struct window *windows;
    struct plain *plains;
};

/** What a mapping is made of. */
struct request {
    xenforeignmemory_handle *xen;
    uint32_t domain;
    void *address; /**< as given to xenforeignmemory_map2() */
    int protection;
    int flags;
    size_t pages;
    const xen_pfn_t *gfns;
};

/**
 * Make a window of a mapping, if that is possible now.
 * @param[out] errors As xenforeignmemory_map2() would have given them.
 * @return its address; NULL: map it plainly.
 */
void *windows_map(const struct request *request, int *errors);
/** Note a plain mapping, whose pages are held from now on; before it is made. @return what
 * windows_plain_made() wants. */
struct plain *windows_plain_begin(const struct request *request);
/** @param address NULL: it was not made. */
void windows_plain_made(struct plain *plain, void *address);

/** Whether some of the range may be in a window. No lock; never wrongly no. */
bool windows_near(const void *address, size_t bytes);
/** Whether the address is in a window now; the lock is taken for it. */
bool windows_covers(uintptr_t address);
/** Somebody touches this address: give it its frame. @return false: it is in no window. */
bool windows_touch(uintptr_t address);
/** A system call will touch the range: give it its frames, and keep them, until windows_end_use(), if there
 * is a window in @p use, else windows_finish(). @return whether some of the range is in a window. */
bool windows_prepare(const void *address, size_t bytes, struct use *use);
/** The system call is over. */
void windows_end_use(const struct use *use);
/** Likewise. @return whether some of it is in a window. */
bool windows_finish(const void *address, size_t bytes);

/**
 * The range is about to be unmapped, or mapped over: it is in no window any more, and in no plain mapping
 * that goes as a whole. @return what one of the next three functions wants.
 */
struct taken windows_take_out(uintptr_t from, size_t bytes);
/** Nothing of it is mapped any more: its holds go, and from now on its pages may be evicted. */
void windows_forget(struct taken taken);
/** All of it is as it was. */
void windows_put_back(struct taken taken);
/** Some of it may be mapped still: its holds stay for ever. */
void windows_abandon(struct taken taken);
/** This thread is in Xen's library, which maps and unmaps on the shim's behalf. */
bool windows_mapping_here(void);

/** Unmap what is due, look for the pager; by the ageing thread, over and over. */
void windows_age(void);

#endif
