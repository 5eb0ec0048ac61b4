/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file paging.h
 * Machine, store, domains with known content and guest accesses, for the tests of what stands on the pager.
 */
#ifndef DIFFENGINE_TEST_PAGING_H
#define DIFFENGINE_TEST_PAGING_H

#include "check.h"

#include <diffengine/digest.h>
#include <diffengine/machine.h>
#include <diffengine/pager.h>
#include <diffengine/status.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct de_machine *machine;
static struct de_pager *pager;

static inline void fill(uint8_t *page, uint32_t key)
{
    uint64_t word = key * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < DE_PAGE_SIZE; i += sizeof word) {
        memcpy(page + i, &word, sizeof word);
        word = word * 6364136223846793005u + 1442695040888963407u;
    }
}

/* A domain whose gfn i holds fill(first + i); nobody pages it yet. */
static inline uint16_t make_guest(uint32_t gfns, uint32_t first)
{
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, gfns, &domain), 0);
    for (uint32_t gfn = 0; gfn < gfns; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        const uint8_t *pages[] = {page};
        fill(page, first + gfn);
        CHECK_EQ(de_machine_populate(machine, domain, &gfn, pages, 1, NULL), 1);
    }
    return domain;
}

static inline uint32_t put_page(struct de_store *store, const uint8_t *page)
{
    struct de_object object = {.encoding = DE_ENCODING_RAW,
                               .checksum = de_page_checksum(page),
                               .payload = page,
                               .payload_bytes = DE_PAGE_SIZE};
    uint32_t id;
    CHECK_EQ(de_store_put(store, &object, &id), DE_OK);
    return id;
}

static inline uint32_t put_filled(struct de_store *store, uint32_t key)
{
    uint8_t page[DE_PAGE_SIZE];
    fill(page, key);
    return put_page(store, page);
}

static inline int evict(uint16_t domain, uint32_t gfn, uint32_t object)
{
    int32_t result = 1;
    de_pager_evict(pager, &domain, &gfn, &object, 1, &result);
    return result;
}

static inline int watch(uint16_t domain, uint32_t gfn)
{
    int32_t result = 1;
    de_pager_watch(pager, &domain, &gfn, 1, &result);
    return result;
}

static inline int swap_out(uint32_t object)
{
    int32_t result = 1;
    de_pager_swap_out(pager, &object, 1, &result);
    return result;
}

static inline int state(uint16_t domain, uint32_t gfn)
{
    uint8_t value;
    CHECK_EQ(de_pager_states(pager, domain, gfn, 1, &value, NULL, NULL), DE_OK);
    return value;
}

static inline struct de_pager_statistics statistics(void)
{
    struct de_pager_statistics now;
    de_pager_read_statistics(pager, &now);
    return now;
}

static inline void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* A guest access on a thread of its own. */
struct access {
    struct de_vcpu *vcpu;
    uint32_t gfn;
    bool write;
    int result;
    uint8_t page[DE_PAGE_SIZE];
    atomic_bool done;
    pthread_t thread;
};

static inline void *access_thread(void *argument)
{
    struct access *access = argument;
    access->result = access->write
                         ? de_machine_guest_write(access->vcpu, access->gfn, 0, access->page, 1)
                         : de_machine_guest_read(access->vcpu, access->gfn, 0, access->page, DE_PAGE_SIZE);
    atomic_store(&access->done, true);
    return NULL;
}

static inline void access_begin(struct access *access, uint16_t domain, uint32_t gfn)
{
    CHECK_EQ(de_vcpu_create(machine, domain, &access->vcpu), 0);
    access->gfn = gfn;
    atomic_store(&access->done, false);
    CHECK_EQ(pthread_create(&access->thread, NULL, access_thread, access), 0);
}

static inline int access_end(struct access *access)
{
    pthread_join(access->thread, NULL);
    de_vcpu_free(access->vcpu);
    return access->result;
}

static inline void wait_for_events(uint16_t domain, uint64_t count)
{
    struct de_domain_accounting accounting;
    do {
        pause_briefly();
        CHECK_EQ(de_machine_domain_account(machine, domain, &accounting), 0);
    } while (accounting.paging_events < count);
}

/* End a read, and compare what it found. */
static inline void access_end_right(struct access *access, uint32_t key)
{
    uint8_t expected[DE_PAGE_SIZE];
    CHECK_EQ(access_end(access), 0);
    fill(expected, key);
    CHECK(memcmp(access->page, expected, DE_PAGE_SIZE) == 0);
}

/* Read a page as the guest, serving (and reading from swap) on this thread. */
static inline void check_page(uint16_t domain, uint32_t gfn, uint32_t key)
{
    struct access access = {.write = false};
    access_begin(&access, domain, gfn);
    while (!atomic_load(&access.done)) {
        de_pager_serve(pager);
        de_pager_swap_read(pager);
    }
    access_end_right(&access, key);
}

static inline void check_failure(uint16_t domain, const char *part)
{
    char text[200];
    CHECK_EQ(de_pager_failure(pager, domain, text, sizeof text), DE_OK);
    if (!strstr(text, part))
        fprintf(stderr, "not \"%s\": %s\n", part, text);
    CHECK(strstr(text, part));
}

#endif
