/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file world.h
 * One simulated host: the machine and the pager under test, and everybody around them.
 */
#ifndef DIFFENGINE_SIMULATION_WORLD_H
#define DIFFENGINE_SIMULATION_WORLD_H

#include "scheduler.h"

#include <diffengine/compress.h>
#include <diffengine/holds.h>
#include <diffengine/machine.h>
#include <diffengine/pager.h>
#include <diffengine/patch.h>
#include <diffengine/simulation.h>
#include <diffengine/store.h>

#define CONTENTS 16u       /**< whole pages that guests write; 0 = zeros */
#define CONTENT_OTHER 255u /**< changed since */
#define CACHED_OBJECTS 12u
#define GROUPS 2u

/** What a page must hold. Who reads or changes it says so, so that only one changes it at a time. */
struct page_model {
    bool present;
    bool exclusive;  /**< somebody changes it now */
    uint8_t readers; /**< so many read it now */
    uint8_t content;
    uint8_t drops; /**< DROP events that the pager has taken and not yet answered */
    bool releasing;
    uint8_t bytes[DE_PAGE_SIZE];
};

/** What the operator wants of the daemon for a domain. */
enum request { REQUEST_NONE, REQUEST_RESTORE, REQUEST_REMOVE };

/** How far an operator got with having a domain released. A pager's death in its middle changes nothing: it
 * is asked for again. */
enum paging { PAGED, RELEASING, RELEASED };

/** A place for a domain: when one goes, the next takes it. */
struct place {
    struct world *world;
    uint32_t number;
    uint16_t id;      /**< 0: none now */
    uint16_t last_id; /**< what it is, or was before it went */
    bool leaving;     /**< is to go: nobody starts anything here */
    bool known;       /**< the pager has it */
    bool unheard;     /**< nobody told the pager that the one before went */
    uint32_t tenancy; /**< how manieth domain it is */
    enum request request;
    enum paging paging;
    bool halted;   /**< the pager paused it for good */
    bool standing; /**< the pager paused it for a moment, to nominate */
    bool hostile;
    bool device;
    struct de_holds *holds; /**< its device model's; NULL: not attached */
    unsigned tables;        /**< hold tables that there were, one after the other */
    unsigned attached;      /**< to which of them */
    unsigned guests;        /**< its vCPUs' fibers */
    unsigned users;         /**< others in the middle of something with it */
    uint64_t operations;
    uint64_t operations_before; /**< when the operator last looked */
    unsigned idle_ticks;
    struct de_vcpu *vcpus[DE_SIMULATION_MAX_VCPUS];
    struct page_model *pages;
};

/** Somebody with steps to do: a stream of random numbers, or a position in the scenario. */
struct actor {
    struct world *world;
    struct random_stream random;
    size_t cursor;
    uint8_t first_action, last_action;
    uint8_t place, vcpu; /**< guests only */
    bool guest;
};

/** An object that the daemon keeps a reference of its own on, and its page. */
struct cached_object {
    uint32_t id; /**< DE_NONE: none */
    uint32_t group;
    uint8_t bytes[DE_PAGE_SIZE];
};

struct state_files;

struct world {
    struct de_simulation_options options;
    struct de_simulation_result result;
    struct scheduler *scheduler;
    struct de_machine *machine;
    struct de_hypervisor hypervisor;                  /**< the machine's own */
    struct de_hypervisor_operations pager_operations; /**< the same, disturbed */
    struct de_store_domain_operations store_operations;
    struct random_stream disturbance;
    struct place places[DE_SIMULATION_MAX_DOMAINS];
    struct actor guests[DE_SIMULATION_MAX_DOMAINS * DE_SIMULATION_MAX_VCPUS];
    struct actor daemon, host, operator;
    uint8_t contents[GROUPS][CONTENTS][DE_PAGE_SIZE];

    /* The pager's process. */
    struct de_store *store;
    struct de_pager *pager; /**< NULL: not there now */
    bool pager_running;     /**< or about to */
    bool pager_ready;
    bool daemon_stop;
    bool host_done;
    struct cached_object cache[CACHED_OBJECTS];
    struct state_files *files;
    struct de_compress_context *lz4, *zstd;
    struct de_patch_encoder *patch;
    const uint8_t *pager_maps[64]; /**< what it has mapped */

    bool calm;  /**< no more disturbances */
    bool tight; /**< frames may run out */
    uint64_t next_audit;
};

/** End the run: an invariant does not hold. */
#define WORLD_FAIL(world, ...) scheduler_fail((world)->scheduler, __VA_ARGS__)

static inline bool chance(struct world *world, uint32_t per_million)
{
    return per_million && !world->calm && random_below(&world->disturbance, 1000000) < per_million;
}

static inline uint32_t place_group(const struct place *place)
{
    return place->number % GROUPS;
}

/* actor.c */
/** @return false: it has nothing left to do. A step with action DE_SIMULATE_ACTIONS: not now. */
bool actor_next(struct actor *actor, struct de_simulation_step *step);
void actors_create(struct world *world);

/* model.c */
void contents_create(struct world *world);
void page_fill(struct world *world, struct place *place, struct page_model *page, uint32_t content);
struct page_model *page_read_begin(struct place *place, uint32_t gfn);
struct page_model *page_write_begin(struct place *place, uint32_t gfn);
/** Compare what somebody read with what must be there. */
void page_check(struct place *place, uint32_t gfn, const uint8_t *found, const char *who);
/** The bytes that write number @p argument changes. @return how many. */
uint32_t write_bytes(uint32_t argument, uint32_t *offset, uint8_t *bytes);

/* guest.c */
/** Start a place's vCPUs. */
void guests_start(struct place *place);
/** Read all of a domain. */
void guest_read_all(struct place *place);

/* daemon.c */
/** The first fiber of the pager's process: makes or takes over store and pager, then proposes. */
void *daemon_run(void *world);
void cache_forget(struct world *world);
/** Add what the pager has counted to the result; its successor starts anew. */
void daemon_add_statistics(struct world *world);

/* host.c */
void *host_run(void *world);

/** Let go of the hold table: its domain goes. */
void host_detach(struct place *place);

/* operator.c */
void *operator_run(void *world);

/* disturbed.c */
void disturbed_create(struct world *world);

/* files.c */
/** Make the directories that outlive a pager. DE_OK, DE_NO_MEMORY or DE_SYSTEM. */
int files_create(struct world *world);
const struct de_pager_state *files_state(const struct world *world);
void files_holds_path(const struct world *world, uint16_t domain, char *path, size_t capacity);
/** @return whether the pager left nothing behind. */
bool files_remove(struct world *world);

/* audit_*.c */
void *auditor_run(void *world);
/** Nobody else runs during these three. */
void audit_machine(struct world *world);
void audit_pager(struct world *world);
void audit_store(struct world *world);
/** Whether everybody is between two steps as far as @p world's locks tell. */
bool audit_machine_settled(struct world *world);
bool audit_pager_settled(struct world *world);
bool audit_store_settled(struct world *world);
/** Add what is out of a domain to @p named, a count for each object id below @p ids. */
void audit_count_entries(struct world *world, struct place *place, uint32_t *named, uint32_t ids);
/** p2m: whether the gfn has no frame and is no hole. */
bool audit_page_is_out(struct world *world, struct place *place, uint32_t gfn);
/** p2m: nominated, or touched since and not loaded yet. */
bool audit_page_is_nominated(struct world *world, struct place *place, uint32_t gfn);
/** Whether @p address is the gfn's frame, and no other gfn's. */
bool audit_is_private(struct world *world, struct place *place, uint32_t gfn, const uint8_t *address);
/** Entries that are in the middle of a transition. */
uint64_t audit_between(struct world *world);
bool audit_drop_pending(struct world *world, struct place *place, uint32_t gfn);
uint32_t audit_store_ids(struct world *world);
void corrupt_object(struct world *world, uint32_t argument);

#endif
