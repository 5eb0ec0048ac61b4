/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machine's process as hypervisor.h's operations table. */
#include "client_internal.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#define NS_PER_S 1000000000u
#define GONE_PAUSE_NS 10000000

static size_t batch(size_t count, size_t limit)
{
    return count < limit ? count : limit;
}

/* Frame numbers become addresses in this process's mapping of the frames. */
static void take_pages(const struct de_machine_client *client, const struct map_arrays *area, size_t count,
                       uint8_t **pages, int32_t *errors)
{
    for (size_t i = 0; i < count; i++) {
        bool mapped = !area->errors[i] && area->frames[i] < client->frames;
        pages[i] = mapped ? client->memory + (size_t)area->frames[i] * DE_PAGE_SIZE : NULL;
        errors[i] = area->errors[i];
    }
}

static int64_t map_batch(struct de_machine_client *client, uint16_t domain, bool writable,
                         const uint32_t *gfns, size_t count, uint8_t **pages, int32_t *errors)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    struct map_arrays *area = (struct map_arrays *)lane->data;
    struct call call = {.operation = OPERATION_MAP, .count = (uint32_t)count, .words = {domain, writable}};
    memcpy(area->gfns, gfns, count * sizeof *gfns);
    int64_t mapped = client_call(client, lane, &call);
    if (mapped >= 0)
        take_pages(client, area, count, pages, errors);
    client_give(client, lane);
    return mapped;
}

int de_client_map(struct de_machine_client *client, uint16_t domain, bool writable, const uint32_t *gfns,
                  size_t count, uint8_t **pages, int32_t *errors)
{
    int64_t mapped = 0;
    for (size_t done = 0; done < count;) {
        size_t now = batch(count - done, MAP_BATCH);
        int64_t result = map_batch(client, domain, writable, gfns + done, now, pages + done, errors + done);
        if (result < 0) {
            /* Of earlier batches nothing may be left. */
            de_client_unmap(client, (const uint8_t *const *)pages, done);
            return (int)result;
        }
        mapped += result;
        done += now;
    }
    return (int)mapped;
}

static size_t unmap_batch(struct de_machine_client *client, const uint8_t *const *pages, size_t count)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return count;
    struct map_arrays *area = (struct map_arrays *)lane->data;
    struct call call = {.operation = OPERATION_UNMAP};
    size_t looked = 0;
    for (; looked < count && call.count < MAP_BATCH; looked++)
        if (pages[looked])
            area->frames[call.count++] = (uint32_t)((size_t)(pages[looked] - client->memory) / DE_PAGE_SIZE);
    if (call.count)
        client_call(client, lane, &call);
    client_give(client, lane);
    return looked;
}

void de_client_unmap(struct de_machine_client *client, const uint8_t *const *pages, size_t count)
{
    for (size_t done = 0; done < count;)
        done += unmap_batch(client, pages + done, count - done);
}

static int map(void *context, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
               int32_t *errors)
{
    return de_client_map(context, domain, false, gfns, count, (uint8_t **)pages, errors);
}

static void unmap(void *context, const uint8_t *const *pages, size_t count)
{
    de_client_unmap(context, pages, count);
}

static int call_domain(void *context, enum operation operation, uint16_t domain, uint32_t gfn)
{
    struct call call = {.operation = operation, .words = {domain, gfn}};
    return (int)client_plain(context, &call);
}

static int domain_uuid(void *context, uint16_t domain, struct de_uuid *uuid)
{
    struct call call = {.operation = OPERATION_DOMAIN_UUID, .words = {domain}};
    int error = (int)client_plain(context, &call);
    if (!error)
        memcpy(uuid, &call.words[2], sizeof *uuid);
    return error;
}

/* Its ring begins anew. */
static void forget_brought(struct de_machine_client *client, uint16_t domain)
{
    pthread_mutex_lock(&client->lock);
    if (client->brought.domain == domain)
        client->brought = (struct brought_events){.count = 0};
    pthread_mutex_unlock(&client->lock);
}

static int paging_enable(void *context, uint16_t domain)
{
    forget_brought(context, domain);
    return call_domain(context, OPERATION_PAGING_ENABLE, domain, 0);
}

static int paging_disable(void *context, uint16_t domain)
{
    forget_brought(context, domain);
    return call_domain(context, OPERATION_PAGING_DISABLE, domain, 0);
}

static int paging_take_over(void *context, uint16_t domain, uint32_t *answered)
{
    forget_brought(context, domain);
    struct call call = {.operation = OPERATION_PAGING_TAKE_OVER, .words = {domain}};
    int error = (int)client_plain(context, &call);
    if (!error)
        *answered = (uint32_t)call.words[1];
    return error;
}

static int paging_nominate(void *context, uint16_t domain, uint32_t gfn)
{
    return call_domain(context, OPERATION_PAGING_NOMINATE, domain, gfn);
}

static int paging_touch(void *context, uint16_t domain, uint32_t gfn)
{
    return call_domain(context, OPERATION_PAGING_TOUCH, domain, gfn);
}

static int paging_evict(void *context, uint16_t domain, uint32_t gfn)
{
    return call_domain(context, OPERATION_PAGING_EVICT, domain, gfn);
}

static int paging_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page)
{
    struct lane *lane = client_take(context);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = OPERATION_PAGING_LOAD, .words = {domain, gfn, page != NULL}};
    if (page)
        memcpy(lane->data, page, DE_PAGE_SIZE);
    int error = (int)client_call(context, lane, &call);
    client_give(context, lane);
    return error;
}

static int paging_load_answer(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                              const struct de_vm_event *answer)
{
    struct lane *lane = client_take(context);
    if (!lane)
        return -ECONNRESET;
    struct load_arrays *area = (struct load_arrays *)lane->data;
    struct call call = {.operation = OPERATION_PAGING_LOAD_ANSWER, .words = {domain, gfn, page != NULL}};
    if (page)
        memcpy(area->page, page, DE_PAGE_SIZE);
    area->answer = *answer;
    int error = (int)client_call(context, lane, &call);
    client_give(context, lane);
    return error;
}

static int share_nominate(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle)
{
    struct call call = {.operation = OPERATION_SHARE_NOMINATE, .words = {domain, gfn}};
    int error = (int)client_plain(context, &call);
    *handle = error ? 0 : call.words[2];
    return error;
}

static int share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle, uint16_t client,
                 uint32_t client_gfn, uint64_t client_handle)
{
    struct call call = {.operation = OPERATION_SHARE,
                        .words = {source, source_gfn, source_handle, client, client_gfn, client_handle}};
    return (int)client_plain(context, &call);
}

static int unshare(void *context, uint16_t domain, uint32_t gfn)
{
    return call_domain(context, OPERATION_UNSHARE, domain, gfn);
}

/* @return 1: taken, 0: none is left, -1: ask the machine. */
static int take_brought(struct de_machine_client *client, uint16_t domain, struct de_vm_event *event)
{
    struct brought_events *brought = &client->brought;
    int taken = -1;
    pthread_mutex_lock(&client->lock);
    if (brought->domain == domain && brought->next < brought->count) {
        *event = brought->events[brought->next++];
        taken = 1;
    } else if (brought->domain == domain && brought->all) {
        brought->all = false;
        taken = 0;
    }
    pthread_mutex_unlock(&client->lock);
    return taken;
}

static int ring_take(void *context, uint16_t domain, struct de_vm_event *event)
{
    int brought = take_brought(context, domain, event);
    if (brought >= 0)
        return brought;
    struct lane *lane = client_take(context);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = OPERATION_RING_TAKE, .words = {domain}};
    int64_t taken = client_call(context, lane, &call);
    if (taken == 1)
        memcpy(event, lane->data, sizeof *event);
    client_give(context, lane);
    return (int)taken;
}

static int ring_answer(void *context, uint16_t domain, const struct de_vm_event *answer)
{
    struct lane *lane = client_take(context);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = OPERATION_RING_ANSWER, .words = {domain}};
    memcpy(lane->data, answer, sizeof *answer);
    int error = (int)client_call(context, lane, &call);
    client_give(context, lane);
    return error;
}

/* One wait at a time brings events; what nobody took of the last one's goes back. @return whether this one
 * does. */
static bool bring_begin(struct de_machine_client *client, struct call *call)
{
    pthread_mutex_lock(&client->lock);
    bool bring = !client->bringing;
    if (bring) {
        call->words[WAIT_LEFT_DOMAIN] = client->brought.domain;
        call->words[WAIT_LEFT_COUNT] = client->brought.count - client->brought.next;
        client->brought = (struct brought_events){.count = 0};
        client->bringing = true;
    }
    pthread_mutex_unlock(&client->lock);
    call->words[WAIT_BRING_EVENTS] = bring;
    return bring;
}

/* @param area NULL: nothing came. */
static void bring_end(struct de_machine_client *client, const struct wait_arrays *area)
{
    pthread_mutex_lock(&client->lock);
    if (area) {
        client->brought = (struct brought_events){.domain = area->domains[0],
                                                  .count = (uint32_t)batch(area->events_count, DE_RING_SLOTS),
                                                  .all = true};
        memcpy(client->brought.events, area->events, sizeof area->events);
    }
    client->bringing = false;
    pthread_mutex_unlock(&client->lock);
}

/* Wait without a thread of the machine that waits, too: it is the thread that brings an event that wakes us.
 */
static int64_t wait_on_lane(struct de_machine_client *client, struct lane *lane, struct call *call)
{
    struct area *area = client->area;
    for (;;) {
        if (atomic_exchange(&area->ready, 0)) {
            call->words[WAIT_TIMEOUT_NS] = 0;
            call->words[WAIT_ENDS] = true;
            int64_t found = client_call(client, lane, call);
            if (found || call->words[WAIT_INTERRUPTED])
                return found;
            call->words[WAIT_LEFT_COUNT] = 0;
        }
        lane->call = *call;
        atomic_store(&area->waiting_lane, (uint32_t)(lane - area->lanes));
        atomic_store(&lane->state, LANE_WAITING);
        uint32_t waiting = LANE_WAITING;
        if (!atomic_load(&area->ready) || !atomic_compare_exchange_strong(&lane->state, &waiting, LANE_IDLE))
            return client_await(client, lane, call, client->wait_spin_ns);
    }
}

static int64_t wait_over(struct de_machine_client *client, struct lane *lane, struct call *call,
                         uint16_t *domains)
{
    const struct wait_arrays *area = (const struct wait_arrays *)lane->data;
    bool bring = bring_begin(client, call);
    int64_t found = call->words[WAIT_TIMEOUT_NS] == UINT64_MAX && bring ? wait_on_lane(client, lane, call)
                                                                        : client_call(client, lane, call);
    if (found > 0)
        memcpy(domains, area->domains, (size_t)found * sizeof *domains);
    if (bring)
        bring_end(client, found > 0 ? area : NULL);
    return found;
}

static int wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    struct call call = {.operation = OPERATION_WAIT,
                        .count = (uint32_t)batch(capacity, WAIT_BATCH),
                        .words = {[WAIT_TIMEOUT_NS] = timeout_ns}};
    struct lane *lane = client_take(context);
    int64_t found = lane ? wait_over(context, lane, &call, domains) : -ECONNRESET;
    if (lane)
        client_give(context, lane);
    /* Who waits in a loop should not burn a processor when there is nothing left to wait for. */
    if (found == -ECONNRESET && timeout_ns)
        nanosleep(&(struct timespec){.tv_nsec = GONE_PAUSE_NS}, NULL);
    return (int)found;
}

static void interrupt(void *context)
{
    struct call call = {.operation = OPERATION_INTERRUPT};
    client_plain(context, &call);
}

static int pause_domain(void *context, uint16_t domain)
{
    return call_domain(context, OPERATION_PAUSE, domain, 0);
}

static int unpause_domain(void *context, uint16_t domain)
{
    return call_domain(context, OPERATION_UNPAUSE, domain, 0);
}

static void yield(void *context)
{
    (void)context;
    sched_yield();
}

static uint64_t now_ns(void *context)
{
    (void)context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static const struct de_hypervisor_operations client_operations = {
    .domain_uuid = domain_uuid,
    .map = map,
    .unmap = unmap,
    .paging_enable = paging_enable,
    .paging_disable = paging_disable,
    .paging_take_over = paging_take_over,
    .paging_nominate = paging_nominate,
    .paging_touch = paging_touch,
    .paging_evict = paging_evict,
    .paging_load = paging_load,
    .share_nominate = share_nominate,
    .share = share,
    .unshare = unshare,
    .ring_take = ring_take,
    .ring_answer = ring_answer,
    .paging_load_answer = paging_load_answer,
    .wait = wait,
    .interrupt = interrupt,
    .pause = pause_domain,
    .unpause = unpause_domain,
    .yield = yield,
    .now_ns = now_ns,
};

struct de_hypervisor de_client_hypervisor(struct de_machine_client *client)
{
    return (struct de_hypervisor){.operations = &client_operations, .context = client};
}
