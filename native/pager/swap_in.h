/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file swap_in.h
 * One domain's way back from the disk: a thread that reads, so that the serving thread never does, and no
 * domain waits for another one's disk (the paper's swapd has one per VM, too). A domain with a device model
 * has one more, for what that asks for.
 *
 * One page at a time. The serving thread, which has claimed the page table entry, begins and finishes; the
 * reading thread only fills buffers.
 */
#ifndef DIFFENGINE_PAGER_SWAP_IN_H
#define DIFFENGINE_PAGER_SWAP_IN_H

#include "internal.h"

enum swap_in_state { SWAP_IN_FREE, SWAP_IN_READING, SWAP_IN_READ };

struct swap_in {
    struct de_pager *pager;
    struct de_swap_channel *channel;
    struct de_holds *holds; /**< whose requests it reads for; NULL: the domain's faults */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool running, stop;
    _Atomic enum swap_in_state state;
    /* Written by the server while FREE or READ, by the reader while READING. */
    uint32_t gfn;
    struct entry claimed;    /**< the entry as it is now: loading */
    enum de_page_state from; /**< what it was */
    struct de_swapped_parts parts;
    int status; /**< of reading: DE_OK, DE_SYSTEM or DE_CORRUPT */
};

/** DE_OK or DE_NO_MEMORY. */
int swap_in_create(struct de_pager *pager, struct de_holds *holds, struct swap_in **swap_in);
/** Its thread is stopped. */
void swap_in_free(struct swap_in *swap_in);
/** 0 or an errno value. */
int swap_in_start(struct swap_in *swap_in);
/** Waits for what is being read. */
void swap_in_stop(struct swap_in *swap_in);

/** The server: have the parts read. The job's other fields are set. */
void swap_in_begin(struct swap_in *swap_in);
/** The server: the job is over. */
static inline void swap_in_end(struct swap_in *swap_in)
{
    atomic_store(&swap_in->state, SWAP_IN_FREE);
}
/** Without a thread: read now what is to be read. @return whether there was something. */
bool swap_in_read(struct swap_in *swap_in);

/** Read the parts into a channel's first pages. DE_OK, DE_SYSTEM or DE_CORRUPT. */
int swap_read_parts(struct de_swap_channel *channel, struct de_swapped_parts *parts);

#endif
