/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pager on a real Xen that is killed again and again under load: run in dom0 as root.
 *
 *     takeover PAGER KILLS MIB DOMAIN...
 *
 * Pages of the domains, which run and check their memory themselves, are evicted (raw and as LZ4) and shared
 * with one another as fast as it goes; at random moments the pager gets SIGKILL, and a new one takes over. In
 * the end all pages are brought back and paging is disabled. Prints what was done; that no byte was wrong is
 * for the guests to say.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <diffengine/compress.h>
#include <diffengine/digest.h>
#include <diffengine/pager_queue.h>
#include <diffengine/status.h>
#include <diffengine/xen.h>

#include "../../unit/native/check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DOMAINS = 8, WINDOW = 128, KEYS = 4096 };

static const char *pager_program;
static char state_directory[] = "/run/test-takeover-XXXXXX", own_directory[] = "/run/test-reader-XXXXXX";
static uint16_t domains[MAX_DOMAINS];
static unsigned domain_count;
static uint32_t gfns;
static struct de_queue_client *queue;
static struct de_xen *xen;
static struct de_hypervisor hypervisor;
static struct de_compress_context *compressor;
static _Atomic pid_t pager_process;
static atomic_uint kills_left, kills_done;
static uint64_t random_state = 88172645463325252u;
static atomic_ulong evicted;
static unsigned long refused, shared, unshared, pager_loads, pager_touches, pager_events;

#define CALL(operation, ...) hypervisor.operations->operation(hypervisor.context, ##__VA_ARGS__)

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 16) % limit;
}

static void sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

static void launch_pager(void)
{
    int out[2];
    char text[8] = "";
    CHECK(pipe(out) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execl(pager_program, pager_program, "--xen", "--state", state_directory, "--store-mib", "256", NULL);
        _exit(127);
    }
    close(out[1]);
    CHECK(read(out[0], text, 5) == 5 && !memcmp(text, "ready", 5));
    close(out[0]);
    CHECK_EQ(de_queue_connect(state_directory, &queue), DE_OK);
    atomic_store(&pager_process, child);
}

static void note_statistics(void)
{
    struct de_pager_page page;
    if (de_queue_statistics(queue, &page) != DE_OK)
        return;
    pager_loads += page.pager.loads;
    pager_touches += page.pager.touches;
    pager_events += page.pager.events;
    CHECK_EQ(page.pager.corrupt, 0);
}

/* @return false: the pager was killed; another one is there now, and what was put is gone. */
static bool call(uint32_t command, uint32_t count, int *status)
{
    *status = de_queue_call(queue, command, count);
    if (*status != DE_NOT_FOUND || de_queue_alive(queue))
        return true;
    int ended;
    note_statistics();
    de_queue_client_free(queue);
    CHECK(waitpid(atomic_load(&pager_process), &ended, 0) > 0);
    CHECK(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGKILL);
    launch_pager();
    return false;
}

static void *killer(void *unused)
{
    unsigned seed = 12345;
    (void)unused;
    while (atomic_load(&kills_left)) {
        /* When it has done something, and at any moment after. */
        unsigned long target = atomic_load(&evicted) + 1 + (unsigned long)rand_r(&seed) % 400;
        for (unsigned i = 0; i < 200 && atomic_load(&evicted) < target; i++)
            sleep_ms(25);
        sleep_ms((unsigned)rand_r(&seed) % 100);
        pid_t victim = atomic_exchange(&pager_process, 0);
        if (!victim)
            continue;
        kill(victim, SIGKILL);
        atomic_store(&pager_process, victim);
        atomic_fetch_sub(&kills_left, 1);
        atomic_fetch_add(&kills_done, 1);
        /* The next one is to have some time. */
        while (kill(victim, 0) == 0)
            sleep_ms(5);
    }
    return NULL;
}

static void put_page(struct de_queue *area, uint32_t item, const uint8_t *page, uint32_t *offset)
{
    size_t bytes =
        item % 3 ? de_compress_page(compressor, page, area->payloads + *offset, DE_PAGE_SIZE - 1) : 0;
    area->encodings[item] = bytes ? DE_ENCODING_LZ4 : DE_ENCODING_RAW;
    area->sizes[item] = (uint16_t)(bytes ? bytes : DE_PAGE_SIZE);
    area->checksums[item] = de_page_checksum(page);
    area->reference_counts[item] = 0;
    if (!bytes)
        memcpy(area->payloads + *offset, page, DE_PAGE_SIZE);
    *offset += area->sizes[item];
}

/* Put the pages of a window that have frames; @return how many, their gfns packed. */
static uint32_t put_window(uint16_t domain, uint32_t first, uint32_t *chosen)
{
    static uint32_t numbers[WINDOW];
    static const uint8_t *pages[WINDOW];
    static int32_t errors[WINDOW];
    static uint8_t states[WINDOW];
    uint32_t count = 0, wanted = 0, offset = 0;
    if (de_queue_states(queue, domain, first, WINDOW, states, NULL, NULL) != DE_OK)
        return 0;
    for (uint32_t i = 0; i < WINDOW; i++)
        if (states[i] == DE_PAGE_RESIDENT || states[i] == DE_PAGE_WATCHED)
            numbers[wanted++] = first + i;
    if (!wanted || CALL(map, domain, numbers, wanted, pages, errors) < 0)
        return 0;
    for (uint32_t i = 0; i < wanted; i++) {
        if (!pages[i])
            continue;
        chosen[count] = numbers[i];
        put_page(de_queue_area(queue), count++, pages[i], &offset);
    }
    CALL(unmap, pages, wanted);
    return count;
}

static void evict_window(uint16_t domain)
{
    static uint32_t chosen[WINDOW];
    struct de_queue *area = de_queue_area(queue);
    int status;
    uint32_t first = random_below(gfns - WINDOW), count = put_window(domain, first, chosen);
    if (!count || !call(DE_COMMAND_PUT, count, &status))
        return;
    CHECK_EQ(status, DE_OK);
    for (uint32_t i = 0; i < count; i++) {
        area->domains[i] = domain;
        area->gfns[i] = chosen[i];
    }
    if (!call(DE_COMMAND_EVICT, count, &status))
        return;
    CHECK_EQ(status, DE_OK);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(area->results[i] != DE_PROPOSAL_FAILED && area->results[i] != DE_PROPOSAL_NO_DOMAIN);
        evicted += area->results[i] == DE_PROPOSAL_DONE;
        refused += area->results[i] != DE_PROPOSAL_DONE;
    }
    call(DE_COMMAND_RELEASE, count, &status);
}

/** A page seen on one side, by its checksum. */
struct seen {
    uint32_t checksum, gfn;
    bool used;
};

static void look_at(struct seen *seen, unsigned side, uint32_t gfn, const uint8_t *page,
                    struct de_queue *area, uint32_t *pairs)
{
    uint32_t checksum = de_page_checksum(page);
    struct seen *place = &seen[checksum % KEYS];
    if (!side) {
        *place = (struct seen){.checksum = checksum, .gfn = gfn, .used = true};
    } else if (place->used && place->checksum == checksum && *pairs < WINDOW) {
        area->domains[*pairs] = domains[0], area->gfns[*pairs] = place->gfn;
        area->client_domains[*pairs] = domains[1], area->client_gfns[(*pairs)++] = gfn;
        place->used = false;
    }
}

/* Pages of two windows with the same checksum are proposed as a pair. */
static uint32_t find_pairs(struct de_queue *area)
{
    static struct seen seen[KEYS];
    static uint32_t numbers[KEYS / 2];
    static const uint8_t *pages[KEYS / 2];
    static int32_t errors[KEYS / 2];
    uint32_t pairs = 0, first = random_below(gfns - KEYS);
    memset(seen, 0, sizeof seen);
    for (unsigned side = 0; side < 2; side++) {
        for (uint32_t i = 0; i < KEYS / 2; i++)
            numbers[i] = first + i;
        CHECK(CALL(map, domains[side], numbers, KEYS / 2, pages, errors) >= 0);
        for (uint32_t i = 0; i < KEYS / 2; i++)
            if (pages[i])
                look_at(seen, side, numbers[i], pages[i], area, &pairs);
        CALL(unmap, pages, KEYS / 2);
    }
    return pairs;
}

static void share_some(void)
{
    struct de_queue *area = de_queue_area(queue);
    int status;
    uint32_t pairs = find_pairs(area);
    if (!pairs || !call(DE_COMMAND_SHARE, pairs, &status))
        return;
    for (uint32_t i = 0; i < pairs; i++)
        shared += area->results[i] == DE_PROPOSAL_DONE;
    /* Every other one is taken back. */
    for (uint32_t i = 0; i < pairs / 2; i++) {
        area->domains[i] = area->client_domains[i];
        area->gfns[i] = area->client_gfns[i];
    }
    if (pairs < 2 || !call(DE_COMMAND_UNSHARE, pairs / 2, &status))
        return;
    for (uint32_t i = 0; i < pairs / 2; i++)
        unshared += area->results[i] == DE_PROPOSAL_DONE;
}

static void each_domain(uint32_t command)
{
    for (unsigned i = 0; i < domain_count; i++) {
        int status;
        do {
            de_queue_area(queue)->domains[0] = domains[i];
            de_queue_area(queue)->gfns[0] = gfns;
            if (!call(command, 1, &status))
                status = DE_BUSY;
            if (status == DE_BUSY)
                sleep_ms(20);
        } while (status == DE_BUSY);
        CHECK_EQ(status, DE_OK);
    }
}

static void begin(int count, char **arguments)
{
    char error[500];
    pager_program = arguments[1];
    atomic_store(&kills_left, (unsigned)atoi(arguments[2]));
    gfns = (uint32_t)atoi(arguments[3]) * 256;
    for (int i = 4; i < count; i++)
        domains[domain_count++] = (uint16_t)atoi(arguments[i]);
    CHECK(mkdtemp(state_directory) && mkdtemp(own_directory));
    CHECK_EQ(de_compress_create(DE_COMPRESS_LZ4, 1, &compressor), DE_OK);
    struct de_xen_options options = {.state_directory = own_directory};
    if (de_xen_open(&options, &xen, error, sizeof error)) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    hypervisor = de_xen_hypervisor(xen);
    launch_pager();
}

static void end(void)
{
    int status;
    pid_t pager = atomic_load(&pager_process);
    note_statistics();
    de_queue_client_free(queue);
    CHECK(kill(pager, SIGTERM) == 0 && waitpid(pager, &status, 0) == pager && status == 0);
    de_xen_close(xen);
    printf("takeover: %u kills, %lu evicted, %lu refused, %lu shared, %lu unshared; %lu events, %lu loads, "
           "%lu touches\n",
           atomic_load(&kills_done), atomic_load(&evicted), refused, shared, unshared, pager_events,
           pager_loads, pager_touches);
}

int main(int count, char **arguments)
{
    pthread_t thread;
    if (count < 5 || count > 4 + MAX_DOMAINS) {
        fputs("Usage: takeover PAGER KILLS MIB DOMAIN...\n", stderr);
        return 2;
    }
    begin(count, arguments);
    each_domain(DE_COMMAND_ADD_DOMAIN);
    CHECK(!pthread_create(&thread, NULL, killer, NULL));
    for (unsigned round = 1; atomic_load(&kills_left); round++) {
        evict_window(domains[round % domain_count]);
        if (domain_count > 1 && round % 8 == 0)
            share_some();
        if (round % 200 == 0)
            fprintf(stderr, "round %u: %u kills left, %lu evicted\n", round, atomic_load(&kills_left),
                    evicted);
    }
    pthread_join(thread, NULL);
    each_domain(DE_COMMAND_RESTORE);
    each_domain(DE_COMMAND_REMOVE_DOMAIN);
    end();
    puts("takeover: ok");
    return 0;
}
