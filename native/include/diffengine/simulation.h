/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file simulation.h
 * Machine and pager in virtual time: one thread, every interleaving decided by a seed, faults injected,
 * invariants checked throughout. The same options give the same run, on any machine (see trace_hash).
 *
 * The guests know what they last wrote and compare each read with it byte by byte. An auditor stops everybody
 * now and then and counts frames, page tables and references against one another. Every run ends with all
 * pages read, brought back and given up, and with a store that must be empty.
 *
 * Several threads may each run a simulation of their own at the same time.
 */
#ifndef DIFFENGINE_SIMULATION_H
#define DIFFENGINE_SIMULATION_H

#include <stddef.h>
#include <stdint.h>

#define DE_SIMULATION_MAX_DOMAINS 8u
#define DE_SIMULATION_MAX_VCPUS 4u
#define DE_SIMULATION_MAX_GFNS 1024u
#define DE_SIMULATION_TEXT_BYTES 256u

/** What somebody does. Places that do not exist are taken modulo what there is, so any step can be carried
 * out. */
enum de_simulation_action {
    /* A guest's vCPU: */
    DE_SIMULATE_READ = 0,    /**< the whole page, compared */
    DE_SIMULATE_WRITE = 1,   /**< some bytes; argument: which */
    DE_SIMULATE_FILL = 2,    /**< the whole page; argument: one of 16 contents, 0 = zeros */
    DE_SIMULATE_RELEASE = 3, /**< give the page back */
    DE_SIMULATE_OBTAIN = 4,  /**< take one into a hole */
    /** A hypercall copies from the page, or (odd argument) to it, again when the page was out. */
    DE_SIMULATE_HYPERCALL = 5,
    /* The daemon, through the pager: */
    DE_SIMULATE_WATCH = 6,
    DE_SIMULATE_EVICT = 7,       /**< argument: how it is encoded */
    DE_SIMULATE_EVICT_WRONG = 8, /**< as an object with other content, or none: must be refused */
    DE_SIMULATE_SHARE = 9,       /**< with other_gfn of other_domain (of the same trust group) */
    DE_SIMULATE_UNSHARE = 10,
    DE_SIMULATE_COMPACT = 11,        /**< the store */
    DE_SIMULATE_RESTORE = 12,        /**< all pages of the domain */
    DE_SIMULATE_SWAP_OUT = 13,       /**< the object of a page that is out */
    DE_SIMULATE_RELEASE_DOMAIN = 14, /**< and take it back after a while */
    /* Other processes on the host: */
    DE_SIMULATE_HOLD = 15,         /**< map a page read-only for a while; argument % 4 == 0: ask for a row */
    DE_SIMULATE_DEVICE_WRITE = 16, /**< map a page read-write, write, unmap: as a device model does */
    DE_SIMULATE_GRANT = 17,        /**< map a grant for a while: as a backend does; odd argument: and write */
    DE_SIMULATE_NOMINATE = 18,     /**< another tool nominates a row of pages for sharing */
    /* The world: */
    DE_SIMULATE_HOG = 19,     /**< somebody takes all free frames for a while */
    DE_SIMULATE_CORRUPT = 20, /**< flip a byte of some object in the store */
    DE_SIMULATE_DESTROY = 21, /**< the domain goes, and a new one takes its place, now and then with its id */
    DE_SIMULATE_CRASH = 22,   /**< kill the pager wherever it is, and start a new one that takes over */
    DE_SIMULATE_CLAIM = 23,   /**< somebody claims free frames, and takes them later */
    DE_SIMULATE_ACTIONS = 24,
};

struct de_simulation_step {
    uint8_t action; /**< enum de_simulation_action */
    uint8_t domain;
    uint8_t vcpu;
    uint8_t other_domain;
    uint16_t gfn;
    uint16_t other_gfn;
    uint32_t argument;
};

struct de_simulation_options {
    uint64_t seed;       /**< of the interleaving, and of the steps if none are given */
    uint64_t operations; /**< guest operations in all (steps given: ignored) */
    uint32_t domains;    /**< 1 .. DE_SIMULATION_MAX_DOMAINS; the odd ones are one trust group, the even ones
                            another */
    uint32_t vcpus;      /**< per domain, 1 .. DE_SIMULATION_MAX_VCPUS */
    uint32_t gfns;       /**< per domain, 2 .. DE_SIMULATION_MAX_GFNS */
    uint32_t frames;     /**< of the machine; fewer than domains * gfns: it only works while pages are out */
    uint32_t store_mib;  /**< at least 1 */
    /** 1: the store lies in a domain's frames, which the machine must have besides all guests'; 0: in a file
     */
    uint32_t store_domain;
    uint32_t switch_gap;          /**< mean number of points between two changes of threads, at least 1 */
    uint32_t audit_interval;      /**< guest operations between two audits, at least 1 */
    uint32_t hostile_domains;     /**< bit i: domain i scribbles on its ring */
    uint32_t device_domains;      /**< bit i: domain i has a device model, which keeps a hold table */
    uint32_t swap_slots;          /**< of the swap file; 0: none */
    uint32_t disk_errors;         /**< reads and writes of the swap file that fail, per million */
    uint32_t load_no_memory;      /**< loads that fail with ENOMEM, per million */
    uint32_t refusals;            /**< nominations and mappings refused, per million */
    uint32_t allocation_failures; /**< of machine, store and pager, per million */
    uint32_t
        weights[DE_SIMULATE_ACTIONS]; /**< how often each action is drawn, relative to its actor's others */
    const struct de_simulation_step
        *steps; /**< an explicit scenario, each actor's in this order; NULL: drawn */
    size_t step_count;
};

struct de_simulation_result {
    uint64_t trace_hash; /**< of every choice and result */
    uint64_t operations; /**< of guests */
    uint64_t reads;      /**< each compared */
    uint64_t writes;
    uint64_t faults;
    uint64_t evictions;
    uint64_t shares;
    uint64_t loads;
    uint64_t touches;
    uint64_t drops;
    uint64_t duplicates;
    uint64_t refused; /**< proposals that were refused */
    uint64_t device_writes;
    uint64_t brought_in; /**< by a device model's request */
    uint64_t grant_writes;
    uint64_t hypercalls;       /**< that copied */
    uint64_t hypercalls_again; /**< that failed, as the page was out */
    uint64_t domains_released;
    uint64_t claims;
    uint64_t store_frames; /**< most that a store domain had */
    uint64_t load_no_memory;
    uint64_t slot_waits; /**< full rings */
    uint64_t bad_events;
    uint64_t corruptions;
    uint64_t domains_created;
    uint64_t domains_destroyed;
    uint64_t domains_halted;  /**< for a corrupt object */
    uint64_t domains_crashed; /**< for want of a frame */
    uint64_t pager_crashes;
    uint64_t swap_outs;
    uint64_t swap_ins;
    uint64_t disk_errors;
    uint64_t pages_settled; /**< in-between entries that a successor found */
    uint64_t audits;
    uint64_t switches;
    uint64_t virtual_ns;
    char failure[DE_SIMULATION_TEXT_BYTES]; /**< "": every invariant held */
};

/** Options drawn from a seed: sizes, rates and weights all differ, so that seeds explore different corners.
 */
void de_simulation_draw(uint64_t seed, uint64_t operations, struct de_simulation_options *options);

/**
 * Run it.
 * @return DE_OK, also if an invariant failed (see result->failure); DE_INVALID: options outside their ranges;
 * DE_NO_MEMORY; DE_BUSY: this thread runs one already; DE_SYSTEM: no temporary directory (errno).
 */
int de_simulation_run(const struct de_simulation_options *options, struct de_simulation_result *result);

#endif
