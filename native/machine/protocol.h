/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file protocol.h
 * What passes between the machine's process and a client.
 *
 * On the socket (SOCK_SEQPACKET): hello, welcome with two descriptors (area, frames), then requests for lanes
 * and for contents. In the area: lanes, each a place for one call at a time, run by a thread of its own in
 * the machine. A lane belongs to the client while it is LANE_IDLE or LANE_DONE, to the machine while it is
 * LANE_CALL, then to the thread that makes it LANE_RUNNING. LANE_WAITING: an OPERATION_WAIT without a thread;
 * whoever brings the next event completes it, and the client may take it back while none came. The whole area
 * is untrusted for the machine: it reads every word of a call once, into memory of its own, before it looks
 * at it.
 */
#ifndef DIFFENGINE_MACHINE_PROTOCOL_H
#define DIFFENGINE_MACHINE_PROTOCOL_H

#include <diffengine/machine.h>
#include <diffengine/page.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PROTOCOL_MAGIC 0x6d454431u
#define PROTOCOL_VERSION 4u

#define LANES 32u
#define LANE_WORDS 12u
#define LANE_DATA_BYTES (65u * DE_PAGE_SIZE)

#define MAP_BATCH 4096u        /**< gfns per call */
#define POPULATE_BATCH 64u     /**< pages per call */
#define WAIT_BATCH 256u        /**< domains per call */
#define LIST_BATCH 4096u       /**< domains per call */
#define SAMPLE_BATCH 32768u    /**< latencies per call */
#define DIRTY_BATCH (1u << 21) /**< gfns per call */
#define VCPU_SAMPLES 512u

enum operation {
    OPERATION_MAP,
    OPERATION_UNMAP,
    OPERATION_PAGING_ENABLE,
    OPERATION_PAGING_DISABLE,
    OPERATION_PAGING_TAKE_OVER,
    OPERATION_PAGING_NOMINATE,
    OPERATION_PAGING_TOUCH,
    OPERATION_PAGING_EVICT,
    OPERATION_PAGING_LOAD,
    OPERATION_PAGING_LOAD_ANSWER,
    OPERATION_SHARE_NOMINATE,
    OPERATION_SHARE,
    OPERATION_UNSHARE,
    OPERATION_RING_TAKE,
    OPERATION_RING_ANSWER,
    OPERATION_WAIT,
    OPERATION_INTERRUPT,
    OPERATION_PAUSE,
    OPERATION_UNPAUSE,
    OPERATION_DOMAIN_UUID,
    OPERATION_ACCOUNT,
    OPERATION_DOMAIN_CREATE,
    OPERATION_DOMAIN_DESTROY,
    OPERATION_DOMAIN_LIST,
    OPERATION_DOMAIN_ACCOUNT,
    OPERATION_CRASH_REASON,
    OPERATION_P2M_TYPE,
    OPERATION_POPULATE,
    OPERATION_CLAIM,
    OPERATION_LOG_DIRTY_ENABLE,
    OPERATION_LOG_DIRTY_DISABLE,
    OPERATION_LOG_DIRTY_READ,
    OPERATION_VCPU_CREATE,
    OPERATION_VCPU_FREE,
    OPERATION_VCPU_STATISTICS,
    OPERATION_VCPU_KICK,
    OPERATION_GUEST_READ,
    OPERATION_GUEST_WRITE,
    OPERATION_GUEST_RELEASE,
    OPERATION_GUEST_OBTAIN,
    OPERATION_CONTENTS_REMOVE,
    OPERATION_PROGRAM_START,
    OPERATION_PROGRAM_READ,
    OPERATION_PROGRAM_STOP,
    OPERATION_SHUT_DOWN,
    OPERATIONS,
};

enum lane_state { LANE_IDLE, LANE_CALL, LANE_DONE, LANE_CLOSED, LANE_RUNNING, LANE_WAITING };

/** All sleep on the same word, and are woken apart. LANE_VCPU: on the machine's side, in the worker's place.
 */
enum lane_side { LANE_MACHINE = 1, LANE_CLIENT = 2, LANE_VCPU = 4 };

#define LANE_FOREVER UINT64_MAX

/** One call: its number, up to LANE_WORDS words of arguments (and of results), arrays in the lane's data. */
struct call {
    uint32_t operation;
    uint32_t count; /**< entries of its arrays */
    int64_t result;
    uint64_t words[LANE_WORDS];
};

struct lane {
    _Alignas(64) _Atomic(uint32_t) state; /**< the word both sides sleep on */
    _Atomic(uint32_t) machine_sleeps;     /**< who: LANE_MACHINE, LANE_VCPU; 0: nobody */
    _Atomic(uint32_t) client_sleeps;
    struct call call;
    _Alignas(DE_PAGE_SIZE) uint8_t data[LANE_DATA_BYTES];
};

struct area {
    /** There may be something to wait for: the machine sets it before it looks for a lane that waits, and a
     * client looks at it once its lane does. */
    _Atomic(uint32_t) ready;
    _Atomic(uint32_t) waiting_lane; /**< the one that may be LANE_WAITING */
    struct lane lanes[LANES];
};

struct hello {
    uint32_t magic;
    uint32_t version;
    uint32_t role;
};

struct welcome {
    uint32_t magic;
    uint32_t version;
    int32_t error; /**< 0: two descriptors come with this message */
    uint32_t frames;
};

enum socket_request_kind { REQUEST_LANE, REQUEST_CONTENTS };

struct socket_request {
    uint32_t kind;
    uint32_t lane; /**< REQUEST_LANE: start its thread. No answer */
};

/** To REQUEST_CONTENTS, which brings a descriptor. */
struct socket_answer {
    int32_t result;
    uint32_t contents;
};

/** OPERATION_MAP: in the lane's data; gfns in, the rest out. */
struct map_arrays {
    uint32_t gfns[MAP_BATCH];
    uint32_t frames[MAP_BATCH];
    int32_t errors[MAP_BATCH];
};

/** OPERATION_PAGING_LOAD_ANSWER: in the lane's data. OPERATION_PAGING_LOAD: the page alone. */
struct load_arrays {
    uint8_t page[DE_PAGE_SIZE];
    struct de_vm_event answer;
};

/**
 * OPERATION_WAIT: in the lane's data, out. A word out: interrupted. Words in: timeout; whether to bring
 * events along; of which domain how many events, brought along by the last wait, were not taken (they go back
 * to its ring); whether an interrupt ends it although it only looks.
 */
struct wait_arrays {
    uint16_t domains[WAIT_BATCH];
    uint32_t events_count;                    /**< of domains[0]: all that its ring had */
    struct de_vm_event events[DE_RING_SLOTS]; /**< taken */
};

enum wait_word {
    WAIT_TIMEOUT_NS,
    WAIT_BRING_EVENTS,
    WAIT_LEFT_DOMAIN,
    WAIT_LEFT_COUNT,
    WAIT_ENDS,
    WAIT_INTERRUPTED
};

/** OPERATION_POPULATE: in the lane's data; errors out, the rest in. */
struct populate_arrays {
    uint8_t pages[POPULATE_BATCH][DE_PAGE_SIZE];
    uint32_t gfns[POPULATE_BATCH];
    int32_t errors[POPULATE_BATCH];
    uint8_t zero[POPULATE_BATCH]; /**< 1: a zero page, pages[i] is not looked at */
};

/** OPERATION_PROGRAM_START: de_program_options without its pointers; in the lane's data. */
struct program_request {
    uint32_t kind;
    uint32_t first_gfn;
    uint32_t gfns;
    uint32_t hot_count;
    uint32_t generated;
    uint32_t similar_percent;
    uint32_t free_as;
    uint32_t bits_per_map;
    uint32_t maps;
    uint32_t contents; /**< ids, 0: none */
    uint32_t hot;
    uint32_t bits;
    uint64_t seed;
    uint64_t sample_capacity;
    uint64_t phase_ns;
    uint64_t interval_ns;
    double operations_per_s;
    double zipf;
    double excursion_fraction;
    double write_fraction;
};

/**
 * Wait while a lane is in @p state: spin for a moment, then sleep.
 * @param side Ours, which the other one must wake.
 * @param deadline_ns Of CLOCK_MONOTONIC, or LANE_FOREVER. @return false: it passed, or woken for another
 * reason.
 */
bool lane_await(struct lane *lane, uint32_t state, enum lane_side side, uint64_t spin_ns,
                uint64_t deadline_ns);
_Static_assert(sizeof(struct map_arrays) <= LANE_DATA_BYTES, "a batch fits a lane");
_Static_assert(sizeof(struct wait_arrays) <= LANE_DATA_BYTES, "a batch fits a lane");
_Static_assert(sizeof(struct populate_arrays) <= LANE_DATA_BYTES, "a batch fits a lane");
_Static_assert(LIST_BATCH * sizeof(struct de_domain_info) <= LANE_DATA_BYTES, "a batch fits a lane");
_Static_assert(DIRTY_BATCH / 8 <= LANE_DATA_BYTES, "a batch fits a lane");
_Static_assert(SAMPLE_BATCH * sizeof(uint64_t) <= LANE_DATA_BYTES, "a batch fits a lane");

/** Hand the lane over, and wake who sleeps there. @p other Of the side that gets it. */
void lane_hand_over(struct lane *lane, uint32_t state, enum lane_side other);
/** Wake sides (a set) whatever they say. */
void lane_wake(struct lane *lane, uint32_t sides);

#endif
