/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file client_internal.h
 * A client's end of the protocol: lanes taken and given back, calls made over them.
 */
#ifndef DIFFENGINE_MACHINE_CLIENT_INTERNAL_H
#define DIFFENGINE_MACHINE_CLIENT_INTERNAL_H

#include "protocol.h"

#include <diffengine/machine_client.h>
#include <pthread.h>

/** Events that a wait brought along, until they are taken. */
struct brought_events {
    uint16_t domain;
    uint32_t next;
    uint32_t count;
    bool all; /**< that its ring had: no need to ask when they are taken */
    struct de_vm_event events[DE_RING_SLOTS];
};

struct de_machine_client {
    int socket;
    int frames_fd;
    struct area *area;
    uint8_t *memory; /**< the frames' file */
    uint32_t frames;
    pthread_mutex_t lock;
    pthread_cond_t given;  /**< a lane is free again */
    uint32_t busy;         /**< lanes in use, a bit each */
    uint32_t opened;       /**< lanes that have a thread in the machine */
    atomic_bool gone;      /**< the machine hung up */
    bool bringing;         /**< a wait is under way that may bring events */
    uint64_t wait_spin_ns; /**< de_client_spin() */
    struct brought_events brought;
    pthread_mutex_t socket_lock;
};

/** A lane of one's own; waits for one. NULL: the machine is gone. */
struct lane *client_take(struct de_machine_client *client);
void client_give(struct de_machine_client *client, struct lane *lane);
/** Make a call over a lane whose data is filled; @p call gets the results. Its result, or -ECONNRESET. */
int64_t client_call(struct de_machine_client *client, struct lane *lane, struct call *call);
/** The second half: wait for its end. */
int64_t client_await(struct de_machine_client *client, struct lane *lane, struct call *call,
                     uint64_t spin_ns);
/** The same for a call without arrays. */
int64_t client_plain(struct de_machine_client *client, struct call *call);
/** The same for a call that returns a structure in the lane's data. */
int client_fetch(struct de_machine_client *client, struct call *call, void *to, size_t bytes);

#endif
