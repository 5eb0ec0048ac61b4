/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pager on the embedded machine: each transition, its failure, and whatever may come in its middle. */
#define _GNU_SOURCE
#include "paging.h"

#include <diffengine/compress.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define STORE_BYTES (64u << 20)

static struct de_store *store;
static struct de_hypervisor real; /**< the machine's own operations */

/* The pager runs on this table: the machine's, with hooks around the steps that a test wants to disturb. */
static struct de_hypervisor_operations hooked;
static void (*before_evict)(uint16_t domain, uint32_t gfn);
static void (*after_evict)(uint16_t domain, uint32_t gfn);
static void (*after_take)(uint16_t domain, struct de_vm_event *event);
static void (*before_load)(uint16_t domain, uint32_t gfn, bool has_page);
static void (*after_load)(uint16_t domain, uint32_t gfn, int result);
static void (*before_share)(void);
static int pause_error; /**< what pausing gives instead of being done; 0: nothing */
static unsigned pauses;
static bool standing, nominated_running;
static int enable_error; /**< what enabling gives instead of being done; 0: nothing */
static _Atomic int load_error;
static _Atomic uint64_t last_timeout_ns; /**< of the pager's last wait */

static int hooked_evict(void *context, uint16_t domain, uint32_t gfn)
{
    if (before_evict)
        before_evict(domain, gfn);
    int error = real.operations->paging_evict(context, domain, gfn);
    if (after_evict)
        after_evict(domain, gfn);
    return error;
}

static int hooked_nominate(void *context, uint16_t domain, uint32_t gfn)
{
    nominated_running |= !standing;
    return real.operations->paging_nominate(context, domain, gfn);
}

static int hooked_pause_outside_kernel(void *context, uint16_t domain)
{
    (void)context;
    (void)domain;
    pauses++;
    standing = !pause_error;
    return pause_error;
}

static int hooked_go_on(void *context, uint16_t domain)
{
    (void)context;
    (void)domain;
    CHECK(standing);
    standing = false;
    return 0;
}

static int hooked_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page)
{
    if (before_load)
        before_load(domain, gfn, page != NULL);
    int error = page ? atomic_load(&load_error) : 0;
    error = error ? error : real.operations->paging_load(context, domain, gfn, page);
    if (after_load)
        after_load(domain, gfn, error);
    return error;
}

static int hooked_load_answer(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                              const struct de_vm_event *answer)
{
    int error = hooked_load(context, domain, gfn, page);
    if (!error)
        real.operations->ring_answer(context, domain, answer);
    return error;
}

static int hooked_take(void *context, uint16_t domain, struct de_vm_event *event)
{
    int taken = real.operations->ring_take(context, domain, event);
    if (taken == 1 && after_take)
        after_take(domain, event);
    return taken;
}

static int hooked_share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle,
                        uint16_t client, uint32_t client_gfn, uint64_t client_handle)
{
    if (before_share)
        before_share();
    return real.operations->share(context, source, source_gfn, source_handle, client, client_gfn,
                                  client_handle);
}

static int hooked_enable(void *context, uint16_t domain)
{
    return enable_error ? enable_error : real.operations->paging_enable(context, domain);
}

static int hooked_wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    atomic_store(&last_timeout_ns, timeout_ns);
    return real.operations->wait(context, timeout_ns, domains, capacity);
}

static void start(uint32_t frames)
{
    CHECK_EQ(de_machine_create(frames, &machine), 0);
    CHECK_EQ(de_store_create(NULL, STORE_BYTES, &store), DE_OK);
    real = de_machine_hypervisor(machine);
    hooked = *real.operations;
    hooked.paging_evict = hooked_evict;
    hooked.paging_nominate = hooked_nominate;
    hooked.pause_outside_kernel = hooked_pause_outside_kernel;
    hooked.go_on = hooked_go_on;
    hooked.paging_load = hooked_load;
    hooked.paging_load_answer = hooked_load_answer;
    hooked.ring_take = hooked_take;
    hooked.share = hooked_share;
    hooked.paging_enable = hooked_enable;
    hooked.wait = hooked_wait;
    before_evict = after_evict = NULL;
    after_take = NULL;
    before_load = NULL;
    after_load = NULL;
    before_share = NULL;
    enable_error = pause_error = 0;
    standing = nominated_running = false;
    atomic_store(&load_error, 0);
    struct de_hypervisor hypervisor = {.operations = &hooked, .context = real.context};
    CHECK_EQ(de_pager_create(store, &hypervisor, &pager), DE_OK);
}

/* Whatever a test did: no page was nominated while its domain ran, and nothing is left in the store but what
 * it put there itself, and released. */
static void finish(void)
{
    CHECK(!nominated_running && !standing);
    for (uint16_t id = 1; id < 32; id++)
        de_machine_domain_destroy(machine, id);
    for (uint16_t id = 1; id < 32; id++)
        de_pager_remove_domain(pager, id);
    CHECK_EQ(statistics().domains, 0);
    CHECK_EQ(statistics().evicted, 0);
    CHECK_EQ(statistics().watched, 0);
    CHECK_EQ(statistics().table_bytes, 0);
    de_pager_free(pager);
    struct de_store_statistics left;
    de_store_statistics(store, &left);
    CHECK_EQ(left.objects, 0);
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.used, 0);
    CHECK_EQ(accounting.mapped, 0);
    de_store_close(store);
    de_machine_free(machine);
}

/* A paged domain whose gfn i holds fill(first + i). */
static uint16_t make_domain(uint32_t gfns, uint32_t first)
{
    uint16_t domain = make_guest(gfns, first);
    CHECK_EQ(de_pager_add_domain(pager, domain, gfns), DE_OK);
    return domain;
}

static int share(uint16_t a, uint32_t gfn_a, uint16_t b, uint32_t gfn_b)
{
    int32_t result = 1;
    de_pager_share(pager, &a, &gfn_a, &b, &gfn_b, 1, &result);
    return result;
}

static int make_private(uint16_t domain, uint32_t gfn)
{
    int32_t result = 1;
    de_pager_unshare(pager, &domain, &gfn, 1, &result);
    return result;
}

static uint32_t generation(uint16_t domain, uint32_t gfn)
{
    uint32_t value;
    CHECK_EQ(de_pager_states(pager, domain, gfn, 1, NULL, NULL, &value), DE_OK);
    return value;
}

static void test_domains(void)
{
    start(16);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, 4, &domain), 0);
    CHECK_EQ(de_pager_add_domain(pager, domain, 0), DE_INVALID);
    CHECK_EQ(de_pager_add_domain(pager, 99, 4), DE_NOT_FOUND);
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_BUSY);
    CHECK(statistics().table_bytes >= 4 * 8);
    uint16_t taken;
    CHECK_EQ(de_machine_domain_create(machine, 4, &taken), 0);
    CHECK_EQ(real.operations->paging_enable(real.context, taken), 0);
    CHECK_EQ(de_pager_add_domain(pager, taken, 4), DE_BUSY);
    CHECK_EQ(de_pager_states(pager, domain, 3, 2, NULL, NULL, NULL), DE_INVALID);
    CHECK_EQ(de_pager_states(pager, 99, 0, 1, NULL, NULL, NULL), DE_NOT_FOUND);
    char text[8];
    CHECK_EQ(de_pager_failure(pager, 99, text, sizeof text), DE_NOT_FOUND);
    CHECK_EQ(de_pager_remove_domain(pager, 99), DE_NOT_FOUND);
    CHECK_EQ(de_pager_restore(pager, 99), DE_NOT_FOUND);
    CHECK_EQ(de_pager_restore_part(pager, 99, 0, 1), DE_NOT_FOUND);
    CHECK_EQ(de_pager_restore_part(pager, domain, 4, UINT32_MAX), DE_OK);
    CHECK_EQ(de_pager_restore_part(pager, domain, UINT32_MAX, UINT32_MAX), DE_OK);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_OK);
    finish();
}

/* Whoever comes after a pager may know nothing of its state. */
static void test_domains_with_nothing_out_are_left_at_the_end(void)
{
    start(16);
    uint16_t idle = make_domain(2, 300), watched = make_domain(2, 310), out = make_domain(2, 320);
    uint32_t object = put_filled(store, 320);
    CHECK_EQ(watch(watched, 1), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(out, 0, object), DE_PROPOSAL_DONE);
    de_pager_remove_idle(pager);
    CHECK_EQ(statistics().domains, 1);
    CHECK_EQ(real.operations->paging_enable(real.context, idle), 0);
    CHECK_EQ(real.operations->paging_enable(real.context, watched), 0);
    CHECK_EQ(real.operations->paging_enable(real.context, out), -EBUSY);
    check_page(watched, 1, 311);
    check_page(out, 0, 320);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* A domain went with a page out, and another one has its id before the pager is told. */
static void test_id_of_another(void)
{
    start(16);
    static const struct de_uuid uuid = {{1}};
    const uint32_t gfn = 0;
    uint8_t page[DE_PAGE_SIZE];
    const uint8_t *pages[] = {page};
    uint16_t domain = make_domain(2, 300);
    uint32_t objects[] = {put_filled(store, 300), put_filled(store, 301)};
    CHECK_EQ(evict(domain, 0, objects[0]), DE_PROPOSAL_DONE);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &uuid, &domain), 0);
    fill(page, 301);
    CHECK_EQ(de_machine_populate(machine, domain, &gfn, pages, 1, NULL), 1);
    /* It is not paged: nothing meant for the former one has an effect. */
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(evict(domain, 1, objects[1]), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(de_pager_restore(pager, domain), DE_NOT_FOUND);
    check_page(domain, 0, 301);
    CHECK_EQ(de_pager_add_domain(pager, domain, 2), DE_OK);
    CHECK_EQ(de_store_count(store, objects[0]), 1);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    CHECK_EQ(evict(domain, 0, objects[1]), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_add_domain(pager, domain, 2), DE_BUSY);
    check_page(domain, 0, 301);
    /* Told too late: the former one is forgotten, the other one left alone. */
    CHECK_EQ(evict(domain, 0, objects[1]), DE_PROPOSAL_DONE);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    static const struct de_uuid third = {{3}};
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &third, &domain), 0);
    CHECK_EQ(real.operations->paging_enable(real.context, domain), 0);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(real.operations->paging_enable(real.context, domain), -EBUSY);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(de_store_release(store, objects[i]), DE_OK);
    finish();
}

static void test_evict_and_fault(void)
{
    start(16);
    uint16_t domain = make_domain(4, 100);
    uint32_t object = put_filled(store, 102);
    CHECK_EQ(evict(domain, 2, object), DE_PROPOSAL_DONE);
    CHECK_EQ(state(domain, 2), DE_PAGE_EVICTED);
    CHECK_EQ(de_store_count(store, object), 2);
    CHECK_EQ(statistics().evicted, 1);
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.used, 3);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    uint32_t before = generation(domain, 2);
    check_page(domain, 2, 102);
    CHECK_EQ(state(domain, 2), DE_PAGE_RESIDENT);
    CHECK(generation(domain, 2) != before);
    CHECK_EQ(de_store_count(store, object), 1);
    CHECK_EQ(de_pager_retire(pager, 10), 1);
    CHECK_EQ(de_store_count(store, object), 0);
    struct de_pager_statistics now = statistics();
    CHECK_EQ(now.evictions, 1);
    CHECK_EQ(now.loads, 1);
    CHECK_EQ(now.events, 1);
    CHECK(de_latency_quantile(&now.rebuild, 0.5) > 0);
    CHECK(de_latency_quantile(&now.fault, 0.5) >= de_latency_quantile(&now.rebuild, 0.5));
    finish();
}

static void test_one_object_for_two_pages(void)
{
    start(16);
    uint16_t a = make_domain(1, 5);
    uint16_t b = make_domain(1, 5);
    uint32_t object = put_filled(store, 5);
    CHECK_EQ(evict(a, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(b, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    CHECK_EQ(de_store_count(store, object), 2);
    check_page(a, 0, 5);
    de_pager_retire(pager, 10);
    check_page(b, 0, 5);
    finish();
}

/* A refused eviction leaves page, entry and reference counts as they were. */
static void test_evict_refused(void)
{
    start(16);
    uint16_t domain = make_domain(4, 200);
    uint32_t right = put_filled(store, 200);
    uint32_t wrong = put_filled(store, 999);
    CHECK_EQ(evict(99, 0, right), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(evict(domain, 4, right), DE_PROPOSAL_INVALID);
    CHECK_EQ(evict(domain, 0, 0x7fffff), DE_PROPOSAL_NO_OBJECT);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    CHECK_EQ(evict(domain, 0, wrong), DE_PROPOSAL_DIFFERS);
    CHECK_EQ(state(domain, 0), DE_PAGE_WATCHED);
    CHECK_EQ(de_store_count(store, wrong), 1);
    CHECK_EQ(evict(domain, 0, right), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(domain, 0, right), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(de_store_count(store, right), 2);
    check_page(domain, 0, 200);
    /* Mapped by somebody else: nominate says no; mapped after it, evict does. */
    uint8_t *page;
    int32_t error;
    uint32_t gfn = 0;
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 1);
    CHECK_EQ(evict(domain, 0, right), DE_PROPOSAL_BUSY);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 1);
    CHECK_EQ(evict(domain, 0, right), DE_PROPOSAL_TOUCHED);
    CHECK_EQ(state(domain, 0), DE_PAGE_WATCHED);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    CHECK_EQ(evict(domain, 0, right), DE_PROPOSAL_DONE);
    check_page(domain, 0, 200);
    /* A hole. */
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 3), 0);
    CHECK_EQ(evict(domain, 3, right), DE_PROPOSAL_BUSY);
    de_vcpu_free(vcpu);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_store_count(store, right), 1);
    CHECK_EQ(de_store_release(store, right), DE_OK);
    CHECK_EQ(de_store_release(store, wrong), DE_OK);
    finish();
}

static void test_watch_and_touch(void)
{
    start(16);
    uint16_t domain = make_domain(2, 7);
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_DONE);
    CHECK_EQ(state(domain, 1), DE_PAGE_WATCHED);
    CHECK_EQ(statistics().watched, 1);
    uint32_t before = generation(domain, 1);
    check_page(domain, 1, 8);
    CHECK_EQ(state(domain, 1), DE_PAGE_RESIDENT);
    CHECK_EQ(generation(domain, 1), before + 1);
    CHECK_EQ(statistics().touches, 1);
    CHECK_EQ(statistics().loads, 0);
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_DONE);
    finish();
}

/* In the middle of an eviction: the guest touches the page between the check and the hypercall. */
static struct access middle;

static void touch_unserved(uint16_t domain, uint32_t gfn)
{
    before_evict = NULL;
    CHECK_EQ(state(domain, gfn), DE_PAGE_EVICTING);
    access_begin(&middle, domain, gfn);
    wait_for_events(domain, 1);
}

static void touch_served(uint16_t domain, uint32_t gfn)
{
    touch_unserved(domain, gfn);
    CHECK_EQ(de_pager_serve(pager), 1);
}

static void test_touch_before_evict(void (*touch)(uint16_t, uint32_t), int state_after)
{
    start(16);
    uint16_t domain = make_domain(1, 50);
    uint32_t object = put_filled(store, 50);
    uint8_t expected[DE_PAGE_SIZE];
    middle.write = true;
    middle.page[0] = 0xaa;
    before_evict = touch;
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_TOUCHED);
    CHECK_EQ(state(domain, 0), state_after);
    de_pager_serve(pager);
    CHECK_EQ(access_end(&middle), 0);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_store_count(store, object), 1);
    /* The write is there, and the old object is refused now. */
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DIFFERS);
    struct access check = {.write = false};
    access_begin(&check, domain, 0);
    while (!atomic_load(&check.done))
        de_pager_serve(pager);
    CHECK_EQ(access_end(&check), 0);
    fill(expected, 50);
    expected[0] = 0xaa;
    CHECK(memcmp(check.page, expected, DE_PAGE_SIZE) == 0);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* The hypercall is through, and the fault is served before the entry says "evicted". */
static void fault_served(uint16_t domain, uint32_t gfn)
{
    after_evict = NULL;
    middle.write = false;
    CHECK_EQ(state(domain, gfn), DE_PAGE_EVICTING);
    access_begin(&middle, domain, gfn);
    wait_for_events(domain, 1);
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(access_end(&middle), 0);
}

static void test_fault_after_evict(void)
{
    start(16);
    uint16_t domain = make_domain(1, 51);
    uint32_t object = put_filled(store, 51);
    uint8_t expected[DE_PAGE_SIZE];
    after_evict = fault_served;
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    fill(expected, 51);
    CHECK(memcmp(middle.page, expected, DE_PAGE_SIZE) == 0);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_store_count(store, object), 1);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* A stale event meets "evicting": the page is nominated still, so the entry stays the evictor's. */
static void stale_event(uint16_t domain, uint32_t gfn)
{
    before_evict = NULL;
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(state(domain, gfn), DE_PAGE_EVICTING);
}

static void test_stale_event_while_evicting(void)
{
    start(16);
    uint16_t domain = make_domain(1, 52);
    uint32_t object = put_filled(store, 52);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    /* dom0 asks for the page; it is loaded before its event is looked at, and evicted again. */
    uint8_t *page;
    int32_t error;
    uint32_t gfn = 0;
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 0);
    CHECK_EQ(error, -ENOENT);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    before_evict = stale_event;
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(state(domain, 0), DE_PAGE_EVICTED);
    CHECK_EQ(statistics().duplicates, 1);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_store_count(store, object), 2);
    check_page(domain, 0, 52);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* While a page is rebuilt its entry is the server's: whatever is proposed in that moment is refused. */
static uint32_t loading_object;

static void propose_while_loading(uint16_t domain, uint32_t gfn, bool has_page)
{
    before_load = NULL;
    CHECK(has_page);
    CHECK_EQ(state(domain, gfn), DE_PAGE_LOADING);
    CHECK_EQ(watch(domain, gfn), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(evict(domain, gfn, loading_object), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(share(domain, gfn, domain, gfn + 1), DE_PROPOSAL_NO_PAGE);
}

static void test_proposals_while_loading(void)
{
    start(16);
    uint16_t domain = make_domain(2, 53);
    loading_object = put_filled(store, 53);
    CHECK_EQ(evict(domain, 0, loading_object), DE_PROPOSAL_DONE);
    before_load = propose_while_loading;
    check_page(domain, 0, 53);
    CHECK(before_load == NULL);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_store_count(store, loading_object), 1);
    CHECK_EQ(de_store_release(store, loading_object), DE_OK);
    finish();
}

/* The page is resident when a stale event is looked at, and evicted before the server's question reaches the
 * machine. */
static void evict_before_load(uint16_t domain, uint32_t gfn, bool has_page)
{
    before_load = NULL;
    CHECK(!has_page);
    CHECK_EQ(evict(domain, gfn, loading_object), DE_PROPOSAL_DONE);
}

static void test_evicted_since_looked_at(void)
{
    start(16);
    uint16_t domain = make_domain(1, 54);
    loading_object = put_filled(store, 54);
    CHECK_EQ(evict(domain, 0, loading_object), DE_PROPOSAL_DONE);
    uint8_t *page;
    int32_t error;
    uint32_t gfn = 0;
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 0);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    before_load = evict_before_load;
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK(before_load == NULL);
    char text[200];
    CHECK_EQ(de_pager_failure(pager, domain, text, sizeof text), DE_OK);
    CHECK_EQ(text[0], 0);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    check_page(domain, 0, 54);
    CHECK_EQ(de_store_release(store, loading_object), DE_OK);
    finish();
}

static void test_dom0_request(void)
{
    start(16);
    uint16_t domain = make_domain(2, 60);
    uint32_t object = put_filled(store, 61);
    CHECK_EQ(evict(domain, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    uint8_t *page;
    int32_t error;
    uint32_t gfn = 1;
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 0);
    CHECK_EQ(error, -ENOENT);
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(de_machine_map(machine, domain, false, &gfn, 1, &page, &error), 1);
    uint8_t expected[DE_PAGE_SIZE];
    fill(expected, 61);
    CHECK(memcmp(page, expected, DE_PAGE_SIZE) == 0);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    finish();
}

static void test_duplicate_faults(void)
{
    start(16);
    uint16_t domain = make_domain(1, 70);
    uint32_t object = put_filled(store, 70);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    struct access accesses[2] = {{.write = false}, {.write = false}};
    access_begin(&accesses[0], domain, 0);
    access_begin(&accesses[1], domain, 0);
    wait_for_events(domain, 2);
    CHECK_EQ(de_pager_serve(pager), 2);
    CHECK_EQ(access_end(&accesses[0]), 0);
    CHECK_EQ(access_end(&accesses[1]), 0);
    CHECK(memcmp(accesses[0].page, accesses[1].page, DE_PAGE_SIZE) == 0);
    CHECK_EQ(statistics().duplicates, 1);
    CHECK_EQ(statistics().loads, 1);
    finish();
}

static void test_drop(void)
{
    start(16);
    uint16_t domain = make_domain(3, 80);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    uint32_t object = put_filled(store, 80);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_DONE);
    uint32_t before = generation(domain, 1), newer = put_filled(store, 81);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 1), 0);
    CHECK_EQ(de_pager_serve(pager), 2);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    /* Watched says little: who tries to evict it finds the hole. */
    CHECK_EQ(state(domain, 1), DE_PAGE_WATCHED);
    CHECK(generation(domain, 1) != before);
    CHECK_EQ(evict(domain, 1, newer), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(state(domain, 1), DE_PAGE_RESIDENT);
    CHECK_EQ(de_store_release(store, newer), DE_OK);
    CHECK_EQ(statistics().drops, 2);
    CHECK_EQ(de_pager_retire(pager, 10), 1);
    CHECK_EQ(de_store_count(store, object), 0);
    de_vcpu_free(vcpu);
    finish();
}

/* A drop of the gfn's former page, looked at after its new page was evicted, must not take the new page's
 * object. */
static uint32_t newer_object;

static void evict_newer_page(uint16_t domain, struct de_vm_event *event)
{
    if (!(event->paging_flags & DE_PAGING_DROP_PAGE))
        return;
    after_take = NULL;
    CHECK_EQ(evict(domain, event->gfn, newer_object), DE_PROPOSAL_DONE);
}

static void test_stale_drop(void)
{
    start(16);
    uint16_t domain = make_domain(1, 90);
    uint32_t object = put_filled(store, 90);
    uint8_t page[DE_PAGE_SIZE];
    const uint8_t *pages[] = {page};
    fill(page, 91);
    newer_object = put_page(store, page);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    /* A fault, and then, unserved yet, another vCPU gives the page back and gets a new one. */
    struct access fault = {.write = false};
    access_begin(&fault, domain, 0);
    wait_for_events(domain, 1);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), 0);
    CHECK_EQ(de_machine_populate(machine, domain, NULL, pages, 1, NULL), 1);
    /* Paused, so that the answered vCPU does not touch the new page in the middle of its eviction. */
    CHECK_EQ(de_machine_domain_pause(machine, domain), 0);
    after_take = evict_newer_page;
    CHECK_EQ(de_pager_serve(pager), 2);
    CHECK(after_take == NULL);
    CHECK_EQ(state(domain, 0), DE_PAGE_EVICTED);
    CHECK_EQ(de_machine_domain_unpause(machine, domain), 0);
    while (!atomic_load(&fault.done))
        de_pager_serve(pager);
    CHECK_EQ(access_end(&fault), 0);
    fill(page, 91);
    CHECK(memcmp(fault.page, page, DE_PAGE_SIZE) == 0);
    check_page(domain, 0, 91);
    de_vcpu_free(vcpu);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    CHECK_EQ(de_store_release(store, newer_object), DE_OK);
    finish();
}

static void scribble(uint16_t domain, struct de_vm_event *event)
{
    (void)domain;
    after_take = NULL;
    event->gfn = 0xffffffff;
}

static void scribble_version(uint16_t domain, struct de_vm_event *event)
{
    (void)domain;
    after_take = NULL;
    event->version = 99;
}

/* The ring is the guest's to scribble on: its vCPU asks again, and nothing else happens. */
static void test_bad_events(void)
{
    start(16);
    uint16_t domain = make_domain(1, 95);
    uint32_t object = put_filled(store, 95);
    after_take = scribble;
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 95);
    after_take = scribble_version;
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 95);
    CHECK_EQ(statistics().bad_events, 2);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

static void test_load_without_memory(void)
{
    start(3);
    uint16_t domain = make_domain(2, 110);
    uint32_t object = put_filled(store, 110);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    uint16_t other = make_domain(2, 120);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    de_pager_serve(pager);
    de_pager_serve(pager);
    CHECK(statistics().load_no_memory >= 2);
    CHECK_EQ(state(domain, 0), DE_PAGE_EVICTED);
    CHECK_EQ(de_pager_restore(pager, domain), DE_NO_MEMORY);
    CHECK(!atomic_load(&access.done));
    /* Evict elsewhere, and it goes on. */
    uint32_t another = put_filled(store, 120);
    CHECK_EQ(evict(other, 0, another), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, another), DE_OK);
    de_pager_serve(pager);
    CHECK_EQ(access_end(&access), 0);
    uint8_t expected[DE_PAGE_SIZE];
    fill(expected, 110);
    CHECK(memcmp(access.page, expected, DE_PAGE_SIZE) == 0);
    CHECK_EQ(statistics().loads, 1);
    finish();
}

/* What is held for a domain goes with it: the server must not go on looking for it. */
static void test_domain_goes_while_held(void)
{
    start(8);
    uint16_t domain = make_domain(1, 125);
    uint32_t object = put_filled(store, 125);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    atomic_store(&load_error, -ENOMEM);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    while (statistics().load_no_memory < 3)
        pause_briefly();
    CHECK(atomic_load(&last_timeout_ns) < UINT64_MAX);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    while (atomic_load(&last_timeout_ns) < UINT64_MAX)
        pause_briefly();
    de_pager_stop(pager);
    finish();
}

/* Change one byte of a raw payload in the store's memory. */
static void damage(uint32_t key)
{
    uint8_t page[DE_PAGE_SIZE];
    fill(page, key);
    struct stat file;
    CHECK_EQ(fstat(de_store_fd(store), &file), 0);
    size_t bytes = (size_t)file.st_size;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, de_store_fd(store), 0);
    CHECK(memory != MAP_FAILED);
    uint8_t *found =
        memmem(memory, bytes < 16 * DE_STORE_CHUNK ? bytes : 16 * DE_STORE_CHUNK, page, DE_PAGE_SIZE);
    CHECK(found != NULL);
    found[1000] ^= 1;
    CHECK_EQ(munmap(memory, bytes), 0);
}

static void test_corrupt_object(void)
{
    start(16);
    uint16_t bad = make_domain(2, 130);
    uint16_t good = make_domain(2, 140);
    uint32_t object = put_filled(store, 130);
    CHECK_EQ(evict(bad, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    object = put_filled(store, 140);
    CHECK_EQ(evict(good, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    damage(130);
    char text[200];
    CHECK_EQ(de_pager_failure(pager, bad, text, sizeof text), DE_OK);
    CHECK_EQ(text[0], 0);
    struct access access = {.write = false};
    access_begin(&access, bad, 0);
    wait_for_events(bad, 1);
    de_pager_serve(pager);
    CHECK_EQ(statistics().corrupt, 1);
    CHECK_EQ(de_pager_failure(pager, bad, text, sizeof text), DE_OK);
    CHECK(strstr(text, "corrupt") && strstr(text, "paused"));
    CHECK(!atomic_load(&access.done));
    /* It is paused whole: its other page is out of reach, too, and proposals for it are refused. */
    struct access other_page = {.write = false};
    access_begin(&other_page, bad, 1);
    pause_briefly();
    CHECK(!atomic_load(&other_page.done));
    CHECK_EQ(watch(bad, 1), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(de_pager_restore(pager, bad), DE_CORRUPT);
    CHECK_EQ(de_pager_remove_domain(pager, bad), DE_BUSY);
    check_page(good, 0, 140);
    CHECK_EQ(de_machine_domain_destroy(machine, bad), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    CHECK_EQ(access_end(&other_page), -ESHUTDOWN);
    CHECK_EQ(de_pager_remove_domain(pager, bad), DE_OK);
    finish();
}

/* An object that does not rebuild is found out when it is proposed. */
static void test_corrupt_proposal(void)
{
    start(4);
    uint16_t domain = make_domain(1, 135);
    uint32_t object = put_filled(store, 135);
    damage(135);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_OBJECT);
    check_page(domain, 0, 135);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

static void write_to_partner(void)
{
    before_share = NULL;
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, 2, &vcpu), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 0, 0, "x", 1), 0);
    de_vcpu_free(vcpu);
}

static void test_share(void)
{
    start(32);
    uint16_t a = make_domain(4, 150);
    uint16_t b = make_domain(4, 150);
    CHECK_EQ(b, 2);
    CHECK_EQ(share(a, 0, 99, 0), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(share(99, 0, a, 0), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(share(a, 0, a, 0), DE_PROPOSAL_INVALID);
    CHECK_EQ(share(a, 0, b, 4), DE_PROPOSAL_INVALID);
    before_share = write_to_partner;
    CHECK_EQ(share(a, 0, b, 0), DE_PROPOSAL_STALE);
    CHECK_EQ(share(a, 1, b, 2), DE_PROPOSAL_DIFFERS);
    CHECK_EQ(share(a, 1, b, 1), DE_PROPOSAL_DONE);
    CHECK_EQ(statistics().shares, 1);
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.used, 7);
    check_page(a, 1, 151);
    check_page(b, 1, 151);
    uint8_t *page;
    int32_t error;
    uint32_t gfn = 3;
    CHECK_EQ(de_machine_map(machine, b, false, &gfn, 1, &page, &error), 1);
    CHECK_EQ(share(a, 3, b, 3), DE_PROPOSAL_MAPPED);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    /* Shared is not evictable; watched is not sharable; evicted is nothing. */
    uint32_t object = put_filled(store, 151);
    CHECK_EQ(evict(a, 1, object), DE_PROPOSAL_BUSY);
    CHECK_EQ(make_private(a, 1), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(a, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(share(a, 1, b, 1), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(make_private(a, 1), DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(make_private(99, 1), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(watch(b, 3), DE_PROPOSAL_DONE);
    CHECK_EQ(share(a, 3, b, 3), DE_PROPOSAL_BUSY);
    check_page(a, 1, 151);
    check_page(b, 1, 151);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* A page that shares with one domain may come to share with another one instead: its old partners stay where
 * they are. (If they came along, the host would stop.) */
static void test_share_with_a_third(void)
{
    start(16);
    uint16_t domains[3];
    for (int i = 0; i < 3; i++)
        domains[i] = make_domain(2, 300);
    CHECK_EQ(share(domains[0], 0, domains[1], 0), DE_PROPOSAL_DONE);
    CHECK_EQ(share(domains[2], 0, domains[1], 0), DE_PROPOSAL_DONE);
    CHECK_EQ(share(domains[0], 0, domains[2], 0), DE_PROPOSAL_DONE);
    CHECK_EQ(share(domains[0], 0, domains[1], 0), DE_PROPOSAL_DONE);
    CHECK_EQ(share(domains[0], 0, domains[1], 0), DE_PROPOSAL_DONE);
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.used, 4);
    for (int i = 0; i < 3; i++)
        check_page(domains[i], 0, 300);
    finish();
}

static void check_refusal(const char *part)
{
    char text[300];
    de_pager_refusal(pager, text, sizeof text);
    CHECK(strstr(text, part));
    de_pager_refusal(pager, text, sizeof text);
    CHECK_EQ(text[0], 0);
}

/* Whoever runs the host reads what was refused, why, and what to do. */
static void test_refusals_in_words(void)
{
    static const struct {
        int error, status;
        const char *text;
    } refusals[] = {
        {-ENODEV, DE_SYSTEM, "domain 1: paging could not be turned on: it has no nested paging"},
        {-EMLINK, DE_SYSTEM, "passed through"},
        {-EXDEV, DE_SYSTEM, "as much memory as maxmem"},
        {-EOPNOTSUPP, DE_SYSTEM, "PV dom0"},
        {-EBUSY, DE_BUSY, "a pager already: end that first"},
        {-ENOMEM, DE_SYSTEM, "Cannot allocate memory"},
    };
    start(8);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, 4, &domain), 0);
    CHECK_EQ(domain, 1);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        enable_error = refusals[i].error;
        CHECK_EQ(de_pager_add_domain(pager, domain, 4), refusals[i].status);
        check_refusal(refusals[i].text);
    }
    enable_error = 0;
    CHECK_EQ(de_pager_add_domain(pager, 99, 4), DE_NOT_FOUND);
    check_refusal("domain 99: there is none");
    CHECK_EQ(de_machine_populate(machine, domain, NULL, NULL, 4, NULL), 4);
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_OK);
    check_refusal("");
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_BUSY);
    check_refusal("it has this pager already");
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_BUSY);
    check_refusal("bring them back first");
    uint32_t object = put_filled(store, 320);
    uint8_t page[DE_PAGE_SIZE];
    struct de_vcpu *vcpu;
    fill(page, 320);
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 1, 0, page, DE_PAGE_SIZE), 0);
    de_vcpu_free(vcpu);
    CHECK_EQ(evict(domain, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    uint16_t hog;
    CHECK_EQ(de_machine_domain_create(machine, 8, &hog), 0);
    CHECK(de_machine_populate(machine, hog, NULL, NULL, 8, NULL) > 0);
    CHECK_EQ(de_pager_restore(pager, domain), DE_NO_MEMORY);
    check_refusal("no frame free: make room");
    finish();
}

#ifndef THROUGH_CLIENT
/* As the machine lets backends and the hypervisor touch them: pages come in without a vCPU that waits. */
static void test_touches_of_the_hypervisor(void)
{
    start(16);
    uint16_t domain = make_domain(4, 310), other = make_domain(4, 310);
    uint8_t *page, expected[DE_PAGE_SIZE];
    uint32_t object = put_filled(store, 310);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_DONE);
    for (uint32_t gfn = 0; gfn < 2; gfn++) {
        CHECK_EQ(de_machine_grant_map(machine, domain, true, gfn, &page), -EAGAIN);
        CHECK_EQ(de_pager_serve(pager), 1);
        CHECK_EQ(state(domain, gfn), DE_PAGE_RESIDENT);
        CHECK_EQ(de_machine_grant_map(machine, domain, true, gfn, &page), 0);
        fill(expected, 310 + gfn);
        CHECK_EQ(memcmp(page, expected, DE_PAGE_SIZE), 0);
        CHECK_EQ(evict(domain, gfn, object), DE_PROPOSAL_BUSY);
        de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    }
    CHECK_EQ(de_machine_register_page(machine, domain, 2), 0);
    CHECK_EQ(watch(domain, 2), DE_PROPOSAL_BUSY);
    CHECK_EQ(share(other, 2, domain, 2), DE_PROPOSAL_MAPPED);
    check_page(domain, 2, 312);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}
#endif

static void test_share_limit_and_memory(void)
{
    start(DE_SHARE_MAX_GFNS + 2);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, DE_SHARE_MAX_GFNS + 2, &domain), 0);
    CHECK_EQ(de_machine_populate(machine, domain, NULL, NULL, DE_SHARE_MAX_GFNS + 1, NULL),
             DE_SHARE_MAX_GFNS + 1);
    CHECK_EQ(de_pager_add_domain(pager, domain, DE_SHARE_MAX_GFNS + 2), DE_OK);
    for (uint32_t gfn = 1; gfn < DE_SHARE_MAX_GFNS; gfn++)
        CHECK_EQ(share(domain, 0, domain, gfn), DE_PROPOSAL_DONE);
    CHECK_EQ(share(domain, 0, domain, DE_SHARE_MAX_GFNS), DE_PROPOSAL_FULL);
    uint16_t other;
    CHECK_EQ(de_machine_domain_create(machine, DE_SHARE_MAX_GFNS, &other), 0);
    CHECK_EQ(de_machine_populate(machine, other, NULL, NULL, DE_SHARE_MAX_GFNS, NULL), DE_SHARE_MAX_GFNS);
    CHECK_EQ(make_private(domain, 0), DE_PROPOSAL_NO_MEMORY);
    /* What is behind a pair that is refused for that is not tried: a page with itself would be INVALID. */
    const uint16_t domains[] = {other, other};
    const uint32_t sources[] = {0, 2}, clients[] = {1, 2};
    int32_t results[2];
    CHECK_EQ(de_pager_add_domain(pager, other, DE_SHARE_MAX_GFNS), DE_OK);
    CHECK_EQ(share(other, 2, other, 2), DE_PROPOSAL_INVALID);
    de_pager_share(pager, domains, sources, domains, clients, 2, results);
    CHECK_EQ(results[0], DE_PROPOSAL_NO_MEMORY);
    CHECK_EQ(results[1], DE_PROPOSAL_NO_MEMORY);
    finish();
}

static void test_restore_and_remove(void)
{
    start(16);
    uint16_t domain = make_domain(4, 170);
    uint32_t object = put_filled(store, 171);
    CHECK_EQ(evict(domain, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(watch(domain, 2), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_BUSY);
    atomic_store(&load_error, -ENOMEM);
    CHECK_EQ(de_pager_restore(pager, domain), DE_NO_MEMORY);
    CHECK_EQ(state(domain, 1), DE_PAGE_EVICTED);
    atomic_store(&load_error, 0);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    for (uint32_t gfn = 0; gfn < 4; gfn++) {
        CHECK_EQ(state(domain, gfn), DE_PAGE_RESIDENT);
        CHECK_EQ(de_machine_p2m_type(machine, domain, gfn), DE_P2M_RAM_RW);
    }
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, 4), DE_OK);
    for (uint32_t gfn = 0; gfn < 4; gfn++)
        check_page(domain, gfn, 170 + gfn);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* What a domain needs that is to do without a pager: no page out, none nominated. */
static void check_restored(uint16_t domain, uint32_t gfns)
{
    struct de_domain_accounting accounting;
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    CHECK_EQ(de_machine_domain_account(machine, domain, &accounting), 0);
    CHECK_EQ(accounting.paged + accounting.nominated, 0);
    for (uint32_t gfn = 0; gfn < gfns; gfn++)
        CHECK_EQ(state(domain, gfn), DE_PAGE_RESIDENT);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
}

static void watch_again(uint16_t domain, uint32_t gfn, int result)
{
    after_load = NULL;
    CHECK_EQ(result, 0);
    CHECK_EQ(watch(domain, gfn), DE_PROPOSAL_DONE);
}

/* A page is nominated anew when a server has just made it ram for a touch, and is about to note that. */
static void test_watched_again_at_a_touch(void)
{
    start(16);
    uint16_t domain = make_domain(1, 400);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    uint32_t before = generation(domain, 0);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    CHECK_EQ(de_machine_domain_pause(machine, domain), 0);
    after_load = watch_again;
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK(after_load == NULL);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_PAGING_OUT);
    CHECK_EQ(state(domain, 0), DE_PAGE_WATCHED);
    CHECK(generation(domain, 0) != before);
    check_restored(domain, 1);
    CHECK_EQ(de_machine_domain_unpause(machine, domain), 0);
    CHECK_EQ(access_end(&access), 0);
    finish();
}

/* A watched page is given back; its gfn's new page is nominated before the pager hears of that. */
static void test_watched_again_before_a_drop(void)
{
    start(16);
    uint16_t domain = make_domain(2, 410);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), 0);
    CHECK_EQ(de_machine_guest_obtain(vcpu, 0), 0);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_PAGING_OUT);
    CHECK_EQ(state(domain, 0), DE_PAGE_WATCHED);
    /* And one that is a hole, of which the pager has not heard either. */
    CHECK_EQ(watch(domain, 1), DE_PROPOSAL_DONE);
    CHECK_EQ(de_machine_guest_release(vcpu, 1), 0);
    check_restored(domain, 2);
    uint8_t byte = 1;
    CHECK_EQ(de_machine_guest_read(vcpu, 0, 0, &byte, 1), 0);
    CHECK_EQ(byte, 0);
    de_vcpu_free(vcpu);
    finish();
}

/* A load that fails in a way Xen does not know: the domain is halted rather than given a wrong page. */
static void test_load_refused(void)
{
    start(16);
    uint16_t domain = make_domain(1, 180);
    uint32_t object = put_filled(store, 180);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    atomic_store(&load_error, -EFAULT);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    de_pager_serve(pager);
    char text[200];
    CHECK_EQ(de_pager_failure(pager, domain, text, sizeof text), DE_OK);
    CHECK(strstr(text, "refused"));
    CHECK_EQ(state(domain, 0), DE_PAGE_EVICTED);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    finish();
}

/* A page that is out without our knowing can't be brought back; saying so beats an endless fault. */
static void test_page_of_nobody(void)
{
    start(16);
    uint16_t domain = make_domain(1, 185);
    CHECK_EQ(real.operations->paging_nominate(real.context, domain, 0), 0);
    CHECK_EQ(real.operations->paging_evict(real.context, domain, 0), 0);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    de_pager_serve(pager);
    char text[200];
    CHECK_EQ(de_pager_failure(pager, domain, text, sizeof text), DE_OK);
    CHECK(strstr(text, "not by this pager"));
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    finish();
}

static void test_latency(void)
{
    struct de_latency latency = {.counts = {0}};
    CHECK_EQ(de_latency_quantile(&latency, 0.5), 0);
    start(4);
    uint16_t domain = make_domain(1, 1);
    uint32_t object = put_filled(store, 1);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
        check_page(domain, 0, 1);
        de_pager_retire(pager, 1);
    }
    latency = statistics().rebuild;
    uint64_t samples = 0;
    for (size_t i = 0; i < DE_LATENCY_BUCKETS; i++)
        samples += latency.counts[i];
    CHECK_EQ(samples, 20);
    uint64_t p50 = de_latency_quantile(&latency, 0.5);
    CHECK(p50 > 100 && p50 < 1000000000);
    CHECK(de_latency_quantile(&latency, 0.0) <= p50 && p50 <= de_latency_quantile(&latency, 1.0));
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

/* A random walk over everything that can be done to two domains, against arrays that say what each page must
 * hold. */
enum { WALK_DOMAINS = 2, WALK_GFNS = 24, WALK_STEPS = 20000, WALK_CONTENTS = 5 };

struct walk {
    uint64_t random;
    uint16_t domains[WALK_DOMAINS];
    struct de_vcpu *vcpus[WALK_DOMAINS];
    uint8_t expected[WALK_DOMAINS][WALK_GFNS][DE_PAGE_SIZE];
    bool hole[WALK_DOMAINS][WALK_GFNS];
};

static uint32_t pick(struct walk *walk, uint32_t bound)
{
    walk->random = walk->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(walk->random >> 33) % bound;
}

static void walk_guest(struct walk *walk, uint32_t d, uint32_t gfn)
{
    uint8_t page[DE_PAGE_SIZE];
    int missing = walk->hole[d][gfn] ? -EFAULT : 0;
    if (pick(walk, 2)) {
        CHECK_EQ(de_machine_guest_read(walk->vcpus[d], gfn, 0, page, DE_PAGE_SIZE), missing);
        CHECK(missing || memcmp(page, walk->expected[d][gfn], DE_PAGE_SIZE) == 0);
        return;
    }
    /* Few different contents, so that there is something to share. */
    fill(page, pick(walk, WALK_CONTENTS));
    CHECK_EQ(de_machine_guest_write(walk->vcpus[d], gfn, 0, page, DE_PAGE_SIZE), missing);
    if (!missing)
        memcpy(walk->expected[d][gfn], page, DE_PAGE_SIZE);
}

static void walk_balloon(struct walk *walk, uint32_t d, uint32_t gfn)
{
    if (walk->hole[d][gfn]) {
        int error = de_machine_guest_obtain(walk->vcpus[d], gfn);
        CHECK(error == 0 || error == -ENOMEM);
        if (error)
            return;
        memset(walk->expected[d][gfn], 0, DE_PAGE_SIZE);
    } else {
        CHECK_EQ(de_machine_guest_release(walk->vcpus[d], gfn), 0);
    }
    walk->hole[d][gfn] = !walk->hole[d][gfn];
}

static void walk_evict(struct walk *walk, uint32_t d, uint32_t gfn)
{
    /* Now and then an object with other content: it must be refused. */
    bool lie = pick(walk, 10) == 0;
    uint8_t page[DE_PAGE_SIZE];
    memcpy(page, walk->expected[d][gfn], DE_PAGE_SIZE);
    page[17] ^= lie;
    uint32_t object = put_page(store, page);
    int result = evict(walk->domains[d], gfn, object);
    CHECK(!(lie && result == DE_PROPOSAL_DONE));
    CHECK(!(walk->hole[d][gfn] && result == DE_PROPOSAL_DONE));
    CHECK(result != DE_PROPOSAL_FAILED && result != DE_PROPOSAL_NO_OBJECT);
    CHECK_EQ(de_store_release(store, object), DE_OK);
}

static void walk_map(struct walk *walk, uint32_t d, uint32_t gfn)
{
    bool writable = pick(walk, 2);
    uint8_t *page;
    int32_t error;
    if (de_machine_map(machine, walk->domains[d], writable, &gfn, 1, &page, &error) == 1) {
        CHECK(memcmp(page, walk->expected[d][gfn], DE_PAGE_SIZE) == 0);
        if (writable)
            page[5] = walk->expected[d][gfn][5] = (uint8_t)pick(walk, 256);
        de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    } else {
        CHECK(error == -ENOENT || error == -ENOMEM || (error == -EINVAL && walk->hole[d][gfn]));
    }
}

static void walk_step(struct walk *walk)
{
    uint32_t d = pick(walk, WALK_DOMAINS);
    uint32_t gfn = pick(walk, WALK_GFNS);
    uint32_t other = pick(walk, WALK_DOMAINS);
    switch (pick(walk, 10)) {
    case 0:
        walk_balloon(walk, d, gfn);
        return;
    case 1:
        watch(walk->domains[d], gfn);
        return;
    case 2:
    case 3:
        walk_evict(walk, d, gfn);
        return;
    case 4:
        walk_map(walk, d, gfn);
        return;
    case 5:
        make_private(walk->domains[d], gfn);
        return;
    case 6:
        CHECK(share(walk->domains[d], gfn, walk->domains[other], pick(walk, WALK_GFNS)) !=
              DE_PROPOSAL_FAILED);
        return;
    default:
        walk_guest(walk, d, gfn);
    }
}

static void test_random_walk(uint64_t seed)
{
    static struct walk walk;
    memset(&walk, 0, sizeof walk);
    walk.random = seed;
    /* Two frames short of nothing: a COW break always finds one. */
    start(WALK_DOMAINS * WALK_GFNS + 2);
    for (uint32_t d = 0; d < WALK_DOMAINS; d++) {
        walk.domains[d] = make_domain(WALK_GFNS, 1000 * d);
        CHECK_EQ(de_vcpu_create(machine, walk.domains[d], &walk.vcpus[d]), 0);
        for (uint32_t gfn = 0; gfn < WALK_GFNS; gfn++)
            fill(walk.expected[d][gfn], 1000 * d + gfn);
    }
    CHECK_EQ(de_pager_start(pager), DE_OK);
    CHECK_EQ(de_pager_start(pager), DE_BUSY);
    for (int i = 0; i < WALK_STEPS; i++)
        walk_step(&walk);
    struct de_pager_statistics now = statistics();
    CHECK(now.evictions > WALK_STEPS / 100 && now.loads > 100 && now.touches > 100 && now.shares > 10 &&
          now.drops > 10);
    CHECK_EQ(now.corrupt + now.bad_events, 0);
    for (uint32_t d = 0; d < WALK_DOMAINS; d++)
        de_vcpu_free(walk.vcpus[d]);
    de_pager_stop(pager);
    de_pager_serve(pager);
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.paged, statistics().evicted);
    finish();
}

/* Guests, the pager's threads and an evictor all at once; every byte that a guest reads is checked. */
enum { GUESTS = 4, GUEST_GFNS = 96, GUEST_OPERATIONS = 4000, GUEST_LOADS = 400 };

struct evictor {
    uint16_t domains[GUESTS];
    atomic_bool stop;
};

static uint32_t put_encoded(struct de_compress_context *lz4, const uint8_t *page)
{
    uint8_t bytes[DE_PAGE_SIZE];
    size_t n = de_compress_page(lz4, page, bytes, DE_PAGE_SIZE - 1);
    struct de_object object = {
        .encoding = n ? DE_ENCODING_LZ4 : DE_ENCODING_RAW,
        .checksum = de_page_checksum(page),
        .payload = n ? bytes : page,
        .payload_bytes = n ? (uint32_t)n : DE_PAGE_SIZE,
    };
    uint32_t id;
    CHECK_EQ(de_store_put(store, &object, &id), DE_OK);
    return id;
}

/* Propose what a page held a moment ago: guests write meanwhile, and the pager must notice. */
static void propose_one(const struct evictor *evictor, struct de_compress_context *lz4, uint32_t random)
{
    uint16_t domain = evictor->domains[random % GUESTS];
    uint32_t gfn = (random >> 8) % GUEST_GFNS;
    if (random >> 30 == 0) {
        share(domain, gfn, evictor->domains[(random >> 4) % GUESTS], gfn);
        return;
    }
    if (random >> 30 == 1) {
        make_private(domain, gfn);
        return;
    }
    if (state(domain, gfn) == DE_PAGE_EVICTED || watch(domain, gfn))
        return;
    uint8_t *page;
    int32_t error;
    uint8_t copy[DE_PAGE_SIZE];
    if (de_machine_map(machine, domain, false, &gfn, 1, &page, &error) != 1)
        return;
    memcpy(copy, page, DE_PAGE_SIZE);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    uint32_t object = put_encoded(lz4, copy);
    evict(domain, gfn, object);
    CHECK_EQ(de_store_release(store, object), DE_OK);
}

static void *evictor_thread(void *argument)
{
    struct evictor *evictor = argument;
    struct de_compress_context *lz4;
    CHECK_EQ(de_compress_create(DE_COMPRESS_LZ4, 1, &lz4), DE_OK);
    uint64_t random = 99;
    while (!atomic_load(&evictor->stop)) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        propose_one(evictor, lz4, (uint32_t)(random >> 32));
    }
    de_compress_free(lz4);
    return NULL;
}

static void test_guests_pager_and_evictor(void)
{
    static uint8_t image[GUEST_GFNS][DE_PAGE_SIZE];
    const uint8_t *content[GUEST_GFNS];
    struct evictor evictor = {.stop = false};
    struct de_guest *guests[GUESTS];
    start(GUESTS * GUEST_GFNS + 16);
    for (uint32_t gfn = 0; gfn < GUEST_GFNS; gfn++) {
        fill(image[gfn], gfn);
        memset(image[gfn] + 1000, 0, gfn % 2 ? 3000 : 0);
        content[gfn] = image[gfn];
    }
    for (int i = 0; i < GUESTS; i++) {
        CHECK_EQ(de_machine_domain_create(machine, GUEST_GFNS, &evictor.domains[i]), 0);
        CHECK_EQ(de_machine_populate(machine, evictor.domains[i], NULL, content, GUEST_GFNS, NULL),
                 GUEST_GFNS);
        CHECK_EQ(de_pager_add_domain(pager, evictor.domains[i], GUEST_GFNS), DE_OK);
    }
    CHECK_EQ(de_pager_start(pager), DE_OK);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, evictor_thread, &evictor), 0);
    for (int i = 0; i < GUESTS; i++) {
        struct de_guest_options options = {.seed = 7 + (uint64_t)i,
                                           .operations = UINT64_MAX,
                                           .write_fraction = 0.1,
                                           .gfns = GUEST_GFNS,
                                           .content = content};
        CHECK_EQ(de_guest_start(machine, evictor.domains[i], &options, &guests[i]), 0);
    }
    /* As long as it takes on a busy machine, but no less than this. */
    for (int i = 0; i < GUESTS; i++)
        while (de_guest_progress(guests[i]) < GUEST_OPERATIONS || statistics().loads < GUEST_LOADS ||
               statistics().evictions < GUEST_LOADS)
            pause_briefly();
    uint64_t faults = 0;
    for (int i = 0; i < GUESTS; i++) {
        struct de_guest_result result;
        de_guest_stop(guests[i]);
        de_guest_join(guests[i], &result, NULL);
        CHECK_EQ(result.status, 0);
        CHECK_EQ(result.wrong_bytes, 0);
        CHECK(result.reads + result.writes >= GUEST_OPERATIONS);
        faults += result.faults;
    }
    atomic_store(&evictor.stop, true);
    pthread_join(thread, NULL);
    de_pager_stop(pager);
    CHECK(faults >= GUEST_LOADS / 2);
    CHECK(statistics().evictions >= GUEST_LOADS);
    CHECK_EQ(statistics().corrupt + statistics().bad_events, 0);
    finish();
}

/* Domains come and go while others are paged. */
static void test_domains_under_load(void)
{
    start(256);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    for (uint32_t round = 0; round < 20; round++) {
        uint16_t domain = make_domain(16, round);
        uint32_t objects[16];
        for (uint32_t gfn = 0; gfn < 16; gfn++) {
            objects[gfn] = put_filled(store, round + gfn);
            CHECK_EQ(evict(domain, gfn, objects[gfn]), DE_PROPOSAL_DONE);
            CHECK_EQ(de_store_release(store, objects[gfn]), DE_OK);
        }
        struct access accesses[3] = {{.write = false}, {.write = false}, {.write = false}};
        for (uint32_t i = 0; i < 3; i++)
            access_begin(&accesses[i], domain, i);
        CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
        for (uint32_t i = 0; i < 3; i++) {
            int result = access_end(&accesses[i]);
            CHECK(result == 0 || result == -ESHUTDOWN);
        }
        CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    }
    de_pager_stop(pager);
    finish();
}

/* A guest is stopped for some pages at a time; one that stays in its kernel is left alone for this time. */
static void test_stands_still_while_nominated(void)
{
    enum { PAGES = 150 };
    uint16_t domains[2 * PAGES];
    uint32_t gfns[2 * PAGES];
    int32_t results[2 * PAGES];
    start(2 * PAGES);
    uint16_t both[] = {make_domain(PAGES, 0), make_domain(PAGES, PAGES)};
    for (uint32_t i = 0; i < 2 * PAGES; i++) {
        domains[i] = both[i / PAGES];
        gfns[i] = i % PAGES;
    }
    pauses = 0;
    pause_error = -EAGAIN;
    de_pager_watch(pager, domains, gfns, 2 * PAGES, results);
    CHECK_EQ(pauses, 2);
    for (uint32_t i = 0; i < 2 * PAGES; i++) {
        CHECK_EQ(results[i], DE_PROPOSAL_IN_KERNEL);
        CHECK_EQ(state(domains[i], gfns[i]), DE_PAGE_RESIDENT);
    }
    uint32_t object = put_filled(store, 0);
    CHECK_EQ(evict(both[0], 0, object), DE_PROPOSAL_IN_KERNEL);
    pauses = 0;
    pause_error = 0;
    de_pager_watch(pager, domains, gfns, 2 * PAGES, results);
    CHECK(pauses > 2 && pauses < PAGES / 10);
    for (uint32_t i = 0; i < 2 * PAGES; i++)
        CHECK_EQ(results[i], DE_PROPOSAL_DONE);
    /* Nominated at a time before: nothing has to stop for that. */
    pauses = 0;
    CHECK_EQ(evict(both[0], 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(pauses, 0);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish();
}

int main(void)
{
    test_stands_still_while_nominated();
    test_domains();
    test_domains_with_nothing_out_are_left_at_the_end();
    test_id_of_another();
    test_evict_and_fault();
    test_one_object_for_two_pages();
    test_evict_refused();
    test_watch_and_touch();
    test_touch_before_evict(touch_unserved, DE_PAGE_WATCHED);
    test_touch_before_evict(touch_served, DE_PAGE_RESIDENT);
    test_fault_after_evict();
    test_stale_event_while_evicting();
    test_proposals_while_loading();
    test_evicted_since_looked_at();
    test_dom0_request();
    test_duplicate_faults();
    test_drop();
    test_stale_drop();
    test_bad_events();
    test_load_without_memory();
    test_domain_goes_while_held();
    test_corrupt_object();
    test_corrupt_proposal();
    test_share();
    test_share_with_a_third();
    test_refusals_in_words();
#ifndef THROUGH_CLIENT
    test_touches_of_the_hypervisor();
#endif
    test_share_limit_and_memory();
    test_restore_and_remove();
    test_watched_again_at_a_touch();
    test_watched_again_before_a_drop();
    test_load_refused();
    test_page_of_nobody();
    test_latency();
    for (uint64_t seed = 1; seed <= 4; seed++)
        test_random_walk(seed);
    test_guests_pager_and_evictor();
    test_domains_under_load();
    return 0;
}
