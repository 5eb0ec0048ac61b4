/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file server_internal.h
 * The machine's process: one session per client, one worker thread per lane in use.
 *
 * Locks: server.lock guards sessions, contents and programs; session.lock its pins and vCPUs. Either may be
 * held when the machine's own lock is taken, and server.lock when session.lock is not.
 */
#ifndef DIFFENGINE_MACHINE_SERVER_INTERNAL_H
#define DIFFENGINE_MACHINE_SERVER_INTERNAL_H

#include "internal.h"
#include "protocol.h"

#include <diffengine/machine_server.h>
#include <diffengine/program.h>

#define MAX_SESSIONS 64u
#define MAX_CONTENTS 256u
#define MAX_PROGRAMS 256u
#define SESSION_VCPUS 64u
#define GFNS_PER_FRAME 16u
/* How long a lane is looked at for the next call before one sleeps: a pager rebuilds a page in less. */
#define SPIN_NS 20000u

/** Bytes that nobody can change: a sealed memfd, mapped. */
struct contents {
    uint32_t id;
    unsigned references; /**< its session, and each program that uses it */
    int fd;
    const uint8_t *bytes;
    size_t size;
};

struct served_program {
    uint32_t id; /**< 0: free */
    struct de_program *program;
    struct contents *used[3];
};

struct server {
    struct de_machine *machine;
    int listener;
    int frames_fd;     /**< the frames' file, opened for reading only */
    int stop_fd;       /**< an eventfd: end */
    unsigned evict_us; /**< an eviction takes at least so long */
    pthread_mutex_t lock;
    pthread_cond_t changed; /**< a session ended */
    unsigned sessions;
    struct session *first_session;
    uint64_t gfns; /**< of all domains */
    uint32_t next_id;
    struct contents *contents[MAX_CONTENTS];
    struct served_program programs[MAX_PROGRAMS];
};

struct served_vcpu {
    struct de_vcpu *vcpu;
    atomic_bool busy; /**< a vCPU belongs to one thread at a time */
    size_t sample_capacity;
    uint64_t samples_ns[VCPU_SAMPLES];
};

struct worker {
    struct session *session;
    struct lane *lane;
    pthread_t thread;
    bool started;
};

struct session {
    struct server *server;
    struct session *next;
    int socket;
    bool device_model;
    struct area *area;
    struct channel channel; /**< its rings tell it of their events here */
    atomic_bool closing;
    unsigned errands; /**< vCPUs that look after a lane; the machine's lock guards it */
    struct worker workers[LANES];
    pthread_mutex_t lock;
    uint16_t *pins; /**< per frame: mappings held */
    struct served_vcpu *vcpus[SESSION_VCPUS];
    uint32_t contents[MAX_CONTENTS]; /**< ids, 0: free */
};

/** Serve one client until it hangs up; then release what it held. The thread of a session. */
void *session_run(void *session);

/** Run the call that a lane has, and hand it back.
 * @param only NULL, or what it must be: else it is left to the worker, who is woken.
 * @return false: there was none, or not such a one. */
bool worker_call(struct worker *worker, bool (*only)(const struct call *call));
/** Run one call that came over a lane; results go into it. */
void call_run(struct session *session, struct call *call, uint8_t *untrusted_data);
/** Calls of server_guests.c: vCPUs and programs. */
int64_t call_vcpu(struct session *session, struct call *call, uint8_t *untrusted_data);
int64_t call_program(struct session *session, struct call *call, uint8_t *untrusted_data);
/** Take all vCPUs of the session out of their waits. */
void session_kick(struct session *session);
void session_free_vcpus(struct session *session);
/** No session is left. */
void server_stop_programs(struct server *server);

/* server_wait.c */

/** A session's channel has something to wait for; the machine's lock is held. */
void wait_announce(struct channel *channel, struct de_vcpu *vcpu);
/** A vCPU in a worker's place: channel.run_errand. */
void wait_errand(struct de_vcpu *vcpu);
/** No vCPU looks after a lane of the session any more; none begins, as no domain has its channel. */
void wait_for_errands(struct session *session);
int64_t call_wait(struct session *session, struct call *call, uint8_t *untrusted_data);

/** Words of a call as what they stand for; what does not fit becomes a domain, or a gfn, that does not exist.
 */
static inline uint16_t word_domain(uint64_t word)
{
    return word <= UINT16_MAX ? (uint16_t)word : 0;
}
static inline uint32_t word_gfn(uint64_t word)
{
    return word < UINT32_MAX ? (uint32_t)word : UINT32_MAX;
}
/** Copy out of the area, once: what is looked at later is the copy. */
void copy_in(void *to, const void *untrusted_from, size_t bytes);

/* server_contents.c */

/** Take a descriptor over (also on failure). 0 or a negative errno value. */
int contents_add(struct session *session, int fd, uint32_t *id);
int contents_remove(struct session *session, uint32_t id);
/** A reference on contents of at least @p bytes bytes, or NULL. The server's lock is held by both. */
struct contents *contents_get(struct server *server, uint32_t id, uint64_t bytes);
void contents_put(struct server *server, struct contents *contents);
/** Addresses of its pages, NULL for those that are holes in its file. */
void contents_pages(const struct contents *contents, const uint8_t **pages, size_t count);
/** All that the session still has. */
void contents_drop(struct session *session);

#endif
