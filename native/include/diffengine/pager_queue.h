/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file pager_queue.h
 * How the daemon tells a pager in another process what it proposes: commands in memory that both share, in
 * the pager's state directory; and how it reads the pager's statistics and page tables without disturbing it.
 *
 * File `commands`: struct de_queue. The client fills in one command, sets `state` to SUBMITTED and wakes the
 * pager (futex); the pager carries it out and sets DONE. One client at a time (a flock on the file). Nothing
 * in it is trusted: the pager copies what it needs before it checks it. The pager's side of a session, the
 * objects that the client counts on, ends when a new client says HELLO.
 *
 * File `control`: the same for an operator, who may come while the daemon is connected: HELLO,
 * RELEASE_DOMAIN and TAKE_BACK_DOMAIN, which a daemon does not have. Looked at between two of the daemon's
 * commands.
 *
 * File `statistics`: struct de_pager_page, written a few times per second.
 */
#ifndef DIFFENGINE_PAGER_QUEUE_H
#define DIFFENGINE_PAGER_QUEUE_H

#include <diffengine/pager.h>
#include <diffengine/store.h>
#include <diffengine/swap.h>

#define DE_QUEUE_MAGIC_LOW 0x75514544u /* "DEQu" */
#define DE_QUEUE_VERSION 3u
#define DE_QUEUE_REFUSAL_BYTES 256u
#define DE_QUEUE_BATCH 1024u            /**< items of one command */
#define DE_QUEUE_PAYLOAD_BYTES 1048576u /**< of one PUT's payloads, or one REBUILD's pages */
#define DE_QUEUE_PAGES 256u             /**< pages of one REBUILD */
#define DE_QUEUE_IN_BATCH 2147483648u   /**< | row: a reference to an earlier row of the batch */

enum de_queue_state { DE_QUEUE_IDLE = 0, DE_QUEUE_SUBMITTED = 1, DE_QUEUE_RUNNING = 2, DE_QUEUE_DONE = 3 };

/** Arrays used, in and out (>). `status` is a de_status of the command as a whole. */
enum de_queue_command {
    DE_COMMAND_HELLO = 1,         /**< a new client: objects an earlier one counted on are released */
    DE_COMMAND_ADD_DOMAIN = 2,    /**< domains[0], gfns[0] = its size */
    DE_COMMAND_REMOVE_DOMAIN = 3, /**< domains[0] */
    DE_COMMAND_DEVICE_MODEL = 4,  /**< domains[0] */
    DE_COMMAND_RESTORE = 5,       /**< domains[0] */
    DE_COMMAND_WATCH = 6,         /**< domains, gfns > results */
    DE_COMMAND_EVICT = 7,         /**< domains, gfns, objects > results */
    DE_COMMAND_SHARE = 8,         /**< domains, gfns, client_domains, client_gfns > results */
    DE_COMMAND_UNSHARE = 9,       /**< domains, gfns > results */
    DE_COMMAND_SWAP_OUT = 10,     /**< objects > results */
    /** encodings, sizes, checksums, reference_counts, references, payloads (one behind the other) > objects,
     * results (de_status; DE_INVALID also if a reference of this batch was not put) */
    DE_COMMAND_PUT = 11,
    DE_COMMAND_RELEASE = 12, /**< objects, of those it put > results (de_status) */
    DE_COMMAND_REBUILD = 13, /**< objects > results (de_status), payloads: a page each */
    DE_COMMAND_COMPACT = 14, /**< > objects[0]: frames given back */
    /** objects > encodings, sizes (0: no such object), reference_counts (1: on another page's object, else 0)
     */
    DE_COMMAND_DESCRIBE = 15,
    DE_COMMAND_RESTORE_PART = 16,     /**< domains[0], gfns[0] = the first of gfns[1] pages */
    DE_COMMAND_RELEASE_DOMAIN = 32,   /**< domains[0] */
    DE_COMMAND_TAKE_BACK_DOMAIN = 33, /**< domains[0] */
};

struct de_queue {
    uint32_t magic, version;
    uint32_t session; /**< another one with each pager: object ids of an earlier one mean nothing */
    uint32_t pid;     /**< the pager's */
    uint32_t state;   /**< enum de_queue_state; a futex */
    uint32_t command, count;
    int32_t status;
    char refusal[DE_QUEUE_REFUSAL_BYTES]; /**< with a status that is not DE_OK: why, in words; or "" */
    uint16_t domains[DE_QUEUE_BATCH];
    uint32_t gfns[DE_QUEUE_BATCH];
    uint16_t client_domains[DE_QUEUE_BATCH];
    uint32_t client_gfns[DE_QUEUE_BATCH];
    uint32_t objects[DE_QUEUE_BATCH];
    int32_t results[DE_QUEUE_BATCH];
    uint8_t encodings[DE_QUEUE_BATCH];
    uint16_t sizes[DE_QUEUE_BATCH];
    uint32_t checksums[DE_QUEUE_BATCH];
    uint8_t reference_counts[DE_QUEUE_BATCH];
    uint32_t references[DE_QUEUE_BATCH][DE_STORE_MAX_REFERENCES];
    uint8_t payloads[DE_QUEUE_PAYLOAD_BYTES];
};

struct de_pager_page {
    uint32_t sequence; /**< odd while it is written */
    uint32_t session;
    uint64_t written_ns; /**< CLOCK_MONOTONIC */
    uint64_t cpu_ns;     /**< of the pager's process */
    struct de_pager_statistics pager;
    struct de_store_statistics store;
    struct de_swap_statistics swap; /**< slots 0: no swap */
};

/* The pager's side. */

struct de_queue_server;

/** Make the files in the state directory, or take over an earlier pager's. DE_OK, DE_NO_MEMORY or DE_SYSTEM.
 */
int de_queue_serve_create(const char *directory, struct de_pager *pager, struct de_queue_server **server);
void de_queue_serve_free(struct de_queue_server *server);
/** Wait up to @p timeout_ms for a command and carry it out; the statistics page counts it before its client
 * has the answer. */
void de_queue_serve(struct de_queue_server *server, unsigned timeout_ms);
/** Write the statistics page. Any thread, also while a command is carried out. */
void de_queue_publish(struct de_queue_server *server);

/* The client's side: one thread. */

struct de_queue_client;

/** @return DE_OK; DE_NOT_FOUND (no pager there), DE_BUSY (it has a client), DE_CORRUPT, DE_NO_MEMORY,
 * DE_SYSTEM. */
int de_queue_connect(const char *directory, struct de_queue_client **client);
/** The same as an operator, on the other queue. DE_BUSY: there is another one. */
int de_queue_connect_operator(const char *directory, struct de_queue_client **client);
void de_queue_client_free(struct de_queue_client *client);
/** Where to put arrays, and to find results. */
struct de_queue *de_queue_area(struct de_queue_client *client);
/**
 * Have a command carried out. @return the command's status, or DE_NOT_FOUND: the pager is gone, or another
 * one is there by now, for which to connect anew.
 */
int de_queue_call(struct de_queue_client *client, uint32_t command, uint32_t count);
/** Whether the pager that this client connected to still lives. */
bool de_queue_alive(const struct de_queue_client *client);
/** Put payloads into the area one behind the other, as PUT takes them. @return how many found room. */
size_t de_queue_gather(struct de_queue_client *client, const uint8_t *const *payloads, const uint16_t *sizes,
                       size_t count);
/** The area's first @p count pages, as REBUILD gives them, to an array of pages. */
void de_queue_pages(struct de_queue_client *client, uint8_t *pages, size_t count);
/** A consistent copy of the statistics. DE_OK or DE_BUSY (the pager died in the middle of writing them). */
int de_queue_statistics(struct de_queue_client *client, struct de_pager_page *page);
/** de_pager_states(), from the page table's file: the pager does not notice. */
int de_queue_states(struct de_queue_client *client, uint16_t domain, uint32_t first, size_t count,
                    uint8_t *states, uint32_t *objects, uint32_t *generations);
/** How many of the domain's pages are out, from the same file. DE_OK, DE_NOT_FOUND or DE_CORRUPT. */
int de_queue_count_out(struct de_queue_client *client, uint16_t domain, uint32_t *pages);
/** de_pager_failure() likewise. */
int de_queue_failure(struct de_queue_client *client, uint16_t domain, char *text, size_t capacity);

#endif
