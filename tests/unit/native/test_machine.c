/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The embedded machine against Xen's behaviour: each error, each transition, and what must hold under
 * threads. */
#include "check.h"

#include <diffengine/program.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_STEP_NS 200000

static struct de_machine *machine;
static struct de_hypervisor hypervisor;

#define HV(operation, ...) hypervisor.operations->operation(hypervisor.context, ##__VA_ARGS__)

static void start(uint32_t frames)
{
    CHECK_EQ(de_machine_create(frames, &machine), 0);
    hypervisor = de_machine_hypervisor(machine);
}

static struct de_machine_accounting account(void)
{
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(accounting.used + accounting.free, accounting.frames);
    return accounting;
}

static struct de_domain_accounting account_domain(uint16_t domain)
{
    struct de_domain_accounting accounting;
    CHECK_EQ(de_machine_domain_account(machine, domain, &accounting), 0);
    CHECK_EQ(accounting.holes + accounting.private_gfns + accounting.shared_gfns + accounting.paged,
             accounting.gfns);
    return accounting;
}

/* All frames are free again: nothing leaked. */
static void finish(void)
{
    for (uint16_t id = 1; id < 64; id++)
        de_machine_domain_destroy(machine, id);
    struct de_machine_accounting left = account();
    CHECK_EQ(left.used, 0);
    CHECK_EQ(left.claimed, 0);
    CHECK_EQ(left.mapped, 0);
    CHECK_EQ(left.shared_frames, 0);
    CHECK_EQ(left.sharing_saved, 0);
    CHECK_EQ(left.paged, 0);
    CHECK_EQ(left.metadata_bytes, 0);
    struct stat file;
    CHECK_EQ(fstat(de_machine_fd(machine), &file), 0);
    CHECK_EQ(file.st_blocks, 0);
    de_machine_free(machine);
}

/* A domain whose gfn i is filled with byte fill + i. */
static uint16_t make_domain(uint32_t gfns, uint8_t first)
{
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, gfns, &domain), 0);
    for (uint32_t gfn = 0; gfn < gfns; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        const uint8_t *pages[] = {page};
        int32_t error;
        memset(page, first + (int)gfn, sizeof page);
        CHECK_EQ(de_machine_populate(machine, domain, &gfn, pages, 1, &error), 1);
        CHECK_EQ(error, 0);
    }
    return domain;
}

static int map_one(uint16_t domain, bool writable, uint32_t gfn, uint8_t **page)
{
    int32_t error = 1;
    int mapped = de_machine_map(machine, domain, writable, &gfn, 1, page, &error);
    CHECK_EQ(mapped, error == 0);
    CHECK((*page != NULL) == (error == 0));
    return error;
}

static void unmap_one(const uint8_t *page)
{
    de_machine_unmap(machine, &page, 1);
}

static uint8_t first_byte(uint16_t domain, uint32_t gfn)
{
    uint8_t *page;
    CHECK_EQ(map_one(domain, false, gfn, &page), 0);
    uint8_t byte = page[0];
    CHECK_EQ(page[DE_PAGE_SIZE - 1], byte);
    unmap_one(page);
    return byte;
}

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = WAIT_STEP_NS}, NULL);
}

/* One access on a thread of its own, so that it may block. */
struct access {
    struct de_vcpu *vcpu;
    uint32_t gfn;
    bool write;
    uint8_t value;
    int result;
    atomic_bool done;
    pthread_t thread;
};

static void *access_thread(void *argument)
{
    struct access *access = argument;
    access->result = access->write ? de_machine_guest_write(access->vcpu, access->gfn, 0, &access->value, 1)
                                   : de_machine_guest_read(access->vcpu, access->gfn, 0, &access->value, 1);
    atomic_store(&access->done, true);
    return NULL;
}

static void access_start(struct access *access)
{
    atomic_store(&access->done, false);
    CHECK_EQ(pthread_create(&access->thread, NULL, access_thread, access), 0);
}

static int access_join(struct access *access)
{
    pthread_join(access->thread, NULL);
    return access->result;
}

/* The next event of a domain, waiting for it. */
static struct de_vm_event next_event(uint16_t domain)
{
    struct de_vm_event event;
    int taken;
    while ((taken = HV(ring_take, domain, &event)) == 0)
        pause_briefly();
    CHECK_EQ(taken, 1);
    CHECK_EQ(event.version, DE_VM_EVENT_VERSION);
    CHECK_EQ(event.reason, DE_VM_EVENT_REASON_PAGING);
    return event;
}

static void no_event(uint16_t domain)
{
    struct de_vm_event event;
    CHECK_EQ(HV(ring_take, domain, &event), 0);
}

static void evict(uint16_t domain, uint32_t gfn)
{
    CHECK_EQ(HV(paging_nominate, domain, gfn), 0);
    CHECK_EQ(HV(paging_evict, domain, gfn), 0);
}

static void share_two(uint16_t a, uint32_t gfn_a, uint16_t b, uint32_t gfn_b)
{
    uint64_t handle_a, handle_b;
    CHECK_EQ(HV(share_nominate, a, gfn_a, &handle_a), 0);
    CHECK_EQ(HV(share_nominate, b, gfn_b, &handle_b), 0);
    CHECK_EQ(HV(share, a, gfn_a, handle_a, b, gfn_b, handle_b), 0);
}

static void test_arguments(void)
{
    struct de_machine *none;
    CHECK_EQ(de_machine_create(0, &none), -EINVAL);
    start(8);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, 0, &domain), -EINVAL);
    domain = make_domain(4, 1);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, 99, &vcpu), -ESRCH);
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    uint8_t bytes[DE_PAGE_SIZE];
    CHECK_EQ(de_machine_guest_read(vcpu, 0, DE_PAGE_SIZE - 7, bytes, 8), -EINVAL);
    CHECK_EQ(de_machine_guest_read(vcpu, 0, UINT32_MAX, bytes, 2), -EINVAL);
    CHECK_EQ(de_machine_guest_read(vcpu, 4, 0, bytes, 8), -EFAULT);
    CHECK_EQ(de_machine_guest_read(vcpu, 3, DE_PAGE_SIZE - 8, bytes, 8), 0);
    CHECK_EQ(bytes[7], 4);
    uint64_t handle;
    struct de_vm_event event = {.version = DE_VM_EVENT_VERSION};
    CHECK_EQ(HV(paging_nominate, 99, 0), -ESRCH);
    CHECK_EQ(HV(paging_evict, 99, 0), -ESRCH);
    CHECK_EQ(HV(paging_load, 99, 0, bytes), -ESRCH);
    CHECK_EQ(HV(share_nominate, 99, 0, &handle), -ESRCH);
    CHECK_EQ(HV(share, 99, 0, 1, domain, 0, 1), -ESRCH);
    CHECK_EQ(HV(ring_take, 99, &event), -ESRCH);
    CHECK_EQ(HV(ring_take, domain, &event), -EINVAL);
    CHECK_EQ(HV(ring_answer, domain, &event), -EINVAL);
    CHECK_EQ(HV(paging_enable, 99), -ESRCH);
    CHECK_EQ(HV(pause, 99), -ESRCH);
    CHECK_EQ(HV(unpause, domain), -EINVAL);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 4), -EINVAL);
    CHECK_EQ(HV(paging_nominate, domain, 0), -ENODEV);
    CHECK_EQ(HV(paging_touch, domain, 0), -ENODEV);
    CHECK_EQ(HV(paging_evict, domain, 0), -ENODEV);
    CHECK_EQ(HV(paging_load, domain, 0, bytes), -ENODEV);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 4), -EBUSY);
    CHECK_EQ(HV(paging_touch, domain, 4), -EINVAL);
    CHECK_EQ(HV(paging_load, domain, 4, bytes), -ENOENT);
    CHECK_EQ(HV(share_nominate, domain, 4, &handle), -EINVAL);
    de_vcpu_free(vcpu);
    finish();
}

static void test_populate_and_frames(void)
{
    start(4);
    uint16_t domain = make_domain(3, 10);
    int32_t errors[3];
    uint32_t gfns[] = {0, 7, 3};
    CHECK_EQ(de_machine_populate(machine, domain, gfns, NULL, 2, errors), 0);
    CHECK_EQ(errors[0], -EEXIST);
    CHECK_EQ(errors[1], -EINVAL);
    uint16_t other;
    CHECK_EQ(de_machine_domain_create(machine, 3, &other), 0);
    CHECK_EQ(de_machine_populate(machine, other, NULL, NULL, 3, errors), 1);
    CHECK_EQ(errors[0], 0);
    CHECK_EQ(errors[1], -ENOMEM);
    CHECK_EQ(errors[2], -ENOMEM);
    CHECK_EQ(first_byte(other, 0), 0);
    struct stat file;
    CHECK_EQ(fstat(de_machine_fd(machine), &file), 0);
    CHECK_EQ(file.st_blocks * 512, 4 * DE_PAGE_SIZE);
    /* A destroyed domain's frames are holes in the file, except the one that dom0 still has. */
    uint8_t *page;
    CHECK_EQ(map_one(domain, false, 1, &page), 0);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), -ESRCH);
    CHECK_EQ(account().free, 2);
    CHECK_EQ(page[5], 11);
    CHECK_EQ(fstat(de_machine_fd(machine), &file), 0);
    CHECK_EQ(file.st_blocks * 512, 2 * DE_PAGE_SIZE);
    unmap_one(page);
    CHECK_EQ(account().free, 3);
    finish();
}

static void test_claims(void)
{
    start(8);
    uint16_t a = make_domain(2, 1);
    uint16_t b;
    CHECK_EQ(de_machine_domain_create(machine, 8, &b), 0);
    CHECK_EQ(de_machine_claim(machine, 99, 1), -ESRCH);
    CHECK_EQ(de_machine_claim(machine, a, 2), -EINVAL);
    CHECK_EQ(de_machine_claim(machine, a, 9), -ENOMEM);
    CHECK_EQ(de_machine_claim(machine, a, 4), 0);
    CHECK_EQ(de_machine_claim(machine, a, 5), -EINVAL);
    CHECK_EQ(account().claimed, 2);
    int32_t errors[8];
    CHECK_EQ(de_machine_claim(machine, b, 5), -ENOMEM);
    CHECK_EQ(de_machine_populate(machine, b, NULL, NULL, 8, errors), 4);
    CHECK_EQ(errors[4], -ENOMEM);
    CHECK_EQ(account().free, 2);
    /* What the claimant gives up goes back into its claim, and nobody else gets it. */
    CHECK_EQ(HV(paging_enable, a), 0);
    evict(a, 0);
    CHECK_EQ(account_domain(a).claimed, 3);
    CHECK_EQ(de_machine_populate(machine, b, NULL, NULL, 8, NULL), 0);
    /* Its own claim is what the claimant draws on: here for a load. */
    CHECK_EQ(HV(paging_load, a, 0, (const uint8_t[DE_PAGE_SIZE]){1}), 0);
    CHECK_EQ(account_domain(a).claimed, 2);
    CHECK_EQ(de_machine_claim(machine, a, 0), 0);
    CHECK_EQ(account().claimed, 0);
    evict(a, 0);
    CHECK_EQ(account().claimed, 0);
    CHECK_EQ(de_machine_populate(machine, b, NULL, NULL, 8, NULL), 3);
    finish();
}

/* A copy on write comes out of the writer's claim, however little is left for others. */
static void test_claims_and_sharing(void)
{
    start(6);
    uint16_t a = make_domain(2, 1);
    uint16_t b = make_domain(2, 1);
    share_two(a, 0, b, 0);
    share_two(a, 1, b, 1);
    CHECK_EQ(de_machine_claim(machine, b, 2), 0);
    uint16_t other;
    CHECK_EQ(de_machine_domain_create(machine, 4, &other), 0);
    CHECK_EQ(de_machine_populate(machine, other, NULL, NULL, 4, NULL), 2);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, b, &vcpu), 0);
    for (uint32_t gfn = 0; gfn < 2; gfn++)
        CHECK_EQ(de_machine_guest_write(vcpu, gfn, 0, "x", 1), 0);
    CHECK_EQ(account_domain(b).claimed, 0);
    CHECK_EQ(account().free, 0);
    de_vcpu_free(vcpu);
    finish();
}

static uint8_t dirty_bits(uint16_t domain, bool clean)
{
    uint8_t bits = 0xff;
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, clean, 0, 8, &bits), 0);
    return bits;
}

static void test_log_dirty(void)
{
    start(16);
    uint16_t domain = make_domain(8, 1);
    uint8_t bits[2];
    CHECK_EQ(de_machine_log_dirty_enable(machine, 99), -ESRCH);
    CHECK_EQ(de_machine_log_dirty_disable(machine, 99), -ESRCH);
    CHECK_EQ(de_machine_log_dirty_read(machine, 99, true, 0, 8, bits), -ESRCH);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 0, 9, bits), -EINVAL);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 3, 5, bits), -EINVAL);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 0, 3, bits), -EINVAL);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 8, 0, bits), 0);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    uint8_t byte;
    CHECK_EQ(dirty_bits(domain, true), 0);
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), -EINVAL);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 2), DE_P2M_LOGDIRTY);
    CHECK_EQ(account_domain(domain).private_gfns, 8);
    /* A read is none; dom0's write is not seen. */
    CHECK_EQ(de_machine_guest_read(vcpu, 1, 0, &byte, 1), 0);
    uint8_t *page;
    CHECK_EQ(map_one(domain, true, 3, &page), 0);
    page[0] = 9;
    unmap_one(page);
    CHECK_EQ(de_machine_guest_write(vcpu, 2, 0, "x", 1), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 2, 1, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, false), 1u << 2);
    CHECK_EQ(dirty_bits(domain, true), 1u << 2);
    CHECK_EQ(dirty_bits(domain, true), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 2, 0, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, false), 1u << 2);
    CHECK_EQ(de_machine_log_dirty_disable(machine, domain), 0);
    CHECK_EQ(de_machine_log_dirty_disable(machine, domain), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 2), DE_P2M_RAM_RW);
    CHECK_EQ(de_machine_guest_write(vcpu, 2, 0, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, true), 0);
    /* Whoever turns it on next begins with no bit. */
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    CHECK_EQ(dirty_bits(domain, true), 0);
    de_vcpu_free(vcpu);
    finish();
}

/* Watched, evicted, loaded, shared and copied pages among those that are logged. */
static void test_log_dirty_beside(void)
{
    start(17);
    uint16_t domain = make_domain(8, 1);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    /* A load brings no news. */
    evict(domain, 0);
    CHECK_EQ(HV(paging_load, domain, 0, (const uint8_t[DE_PAGE_SIZE]){1}), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_LOGDIRTY);
    CHECK_EQ(dirty_bits(domain, true), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 0, 0, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, true), 1);
    /* What is out keeps its bit, and a clean leaves its type alone. */
    CHECK_EQ(de_machine_guest_write(vcpu, 1, 0, "x", 1), 0);
    evict(domain, 1);
    CHECK_EQ(dirty_bits(domain, true), 1u << 1);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 1), DE_P2M_PAGED);
    CHECK_EQ(HV(paging_load, domain, 1, (const uint8_t[DE_PAGE_SIZE]){1}), 0);
    /* A copy on write, and a page made private in place, were written. */
    uint16_t other = make_domain(8, 1);
    share_two(domain, 2, other, 2);
    share_two(domain, 3, other, 3);
    CHECK_EQ(dirty_bits(domain, true), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 2), DE_P2M_SHARED);
    CHECK_EQ(de_machine_guest_write(vcpu, 2, 0, "x", 1), 0);
    CHECK_EQ(HV(unshare, other, 3), 0);
    CHECK_EQ(HV(unshare, domain, 3), 0);
    CHECK_EQ(dirty_bits(domain, true), 1u << 2 | 1u << 3);
    CHECK_EQ(dirty_bits(other, true), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 2), DE_P2M_LOGDIRTY);
    /* A hole that is filled is not noted, nor the first writes to it. */
    CHECK_EQ(de_machine_guest_release(vcpu, 5), 0);
    CHECK_EQ(de_machine_guest_obtain(vcpu, 5), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 5, 0, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, true), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 5, 0, "x", 1), 0);
    CHECK_EQ(dirty_bits(domain, true), 1u << 5);
    CHECK_EQ(HV(paging_disable, domain), 0);
    de_vcpu_free(vcpu);
    finish();
}

/* A host gives the id of a domain that is gone to another; the UUID tells them apart. */
static void test_identity(void)
{
    start(8);
    struct de_uuid first, second, given = {{0xde, 0x01}}, found;
    uint16_t a = make_domain(2, 1), b = make_domain(2, 3);
    CHECK_EQ(HV(domain_uuid, a, &first), 0);
    CHECK_EQ(HV(domain_uuid, b, &second), 0);
    CHECK(memcmp(&first, &second, sizeof first) != 0);
    CHECK_EQ(HV(domain_uuid, 99, &found), -ESRCH);
    uint16_t next = (uint16_t)(b + 1);
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &given, &a), -EEXIST);
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &given, &next), -EINVAL);
    CHECK_EQ(HV(paging_enable, a), 0);
    CHECK_EQ(de_machine_domain_destroy(machine, a), 0);
    CHECK_EQ(HV(domain_uuid, a, &found), -ESRCH);
    CHECK_EQ(de_machine_domain_create_as(machine, 0, &given, &a), -EINVAL);
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &given, &a), 0);
    CHECK_EQ(HV(domain_uuid, a, &found), 0);
    CHECK(memcmp(&found, &given, sizeof found) == 0);
    CHECK_EQ(account_domain(a).holes, 2);
    uint32_t answered;
    CHECK_EQ(HV(paging_take_over, a, &answered), -EINVAL);
    uint16_t fresh = 0;
    CHECK_EQ(de_machine_domain_create_as(machine, 2, &given, &fresh), 0);
    CHECK_EQ(fresh, next);
    finish();
}

/* A page nominated again after a write has another handle: the one from before the write stays stale. */
static void test_handle_from_before_a_write(void)
{
    start(8);
    uint16_t a = make_domain(2, 5), b = make_domain(2, 5);
    uint64_t before, again, other;
    uint8_t byte = 99;
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, a, &vcpu), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &before), 0);
    CHECK_EQ(HV(share_nominate, b, 0, &other), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 0, 0, &byte, 1), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &again), 0);
    CHECK(again != before);
    CHECK_EQ(HV(share, a, 0, before, b, 0, other), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share, b, 0, other, a, 0, before), DE_SHARE_CLIENT_STALE);
    CHECK_EQ(first_byte(b, 0), 5);
    de_vcpu_free(vcpu);
    finish();
}

static void test_paging_states(void)
{
    start(8);
    uint16_t domain = make_domain(4, 20);
    uint8_t page[DE_PAGE_SIZE];
    memset(page, 77, sizeof page);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_enable, domain), -EBUSY);
    CHECK_EQ(HV(paging_evict, domain, 0), -EBUSY);
    CHECK_EQ(HV(paging_load, domain, 0, page), -ENOENT);
    CHECK_EQ(HV(paging_nominate, domain, 0), 0);
    CHECK_EQ(HV(paging_nominate, domain, 0), -EBUSY);
    CHECK_EQ(HV(paging_load, domain, 0, page), -ENOENT);
    CHECK_EQ(account_domain(domain).nominated, 1);
    /* Mapping a nominated page raises no event; it can't be evicted meanwhile, and can afterwards. */
    uint8_t *mapped;
    CHECK_EQ(map_one(domain, false, 0, &mapped), 0);
    no_event(domain);
    CHECK_EQ(HV(paging_evict, domain, 0), -EBUSY);
    unmap_one(mapped);
    CHECK_EQ(HV(paging_evict, domain, 0), 0);
    CHECK_EQ(account().free, 5);
    CHECK_EQ(account_domain(domain).paged, 1);
    CHECK_EQ(HV(paging_evict, domain, 0), -EBUSY);
    CHECK_EQ(HV(paging_nominate, domain, 0), -EBUSY);
    CHECK_EQ(HV(paging_load, domain, 0, NULL), -EINVAL);
    CHECK_EQ(HV(paging_load, domain, 0, page), 0);
    CHECK_EQ(HV(paging_load, domain, 0, page), -ENOENT);
    CHECK_EQ(first_byte(domain, 0), 77);
    /* A mapping pins against nominating. */
    CHECK_EQ(map_one(domain, true, 1, &mapped), 0);
    CHECK_EQ(HV(paging_nominate, domain, 1), -EBUSY);
    unmap_one(mapped);
    CHECK_EQ(HV(paging_nominate, domain, 1), 0);
    CHECK_EQ(HV(paging_disable, domain), 0);
    finish();
}

/* A tool's touch: a nominated page is on its way in, mapped or not, and no vCPU waits for it. */
static void test_touch_by_dom0(void)
{
    start(16);
    uint16_t domain = make_domain(DE_RING_SLOTS + 2, 20), other = make_domain(1, 20);
    uint64_t handle, others;
    uint8_t *mapped, bits;
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 0), 0);
    CHECK_EQ(map_one(domain, true, 0, &mapped), 0);
    CHECK_EQ(HV(paging_touch, domain, 0), -EAGAIN);
    CHECK_EQ(HV(paging_touch, domain, 0), -EAGAIN);
    CHECK_EQ(HV(paging_evict, domain, 0), -EBUSY);
    CHECK_EQ(HV(paging_load, domain, 0, NULL), 0);
    unmap_one(mapped);
    CHECK_EQ(first_byte(domain, 0), 20);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.gfn, 0);
    CHECK_EQ(event.flags, 0);
    CHECK_EQ(event.paging_flags, DE_PAGING_EVICT_FAIL);
    no_event(domain);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    /* A full ring leaves it nominated. */
    for (uint32_t gfn = 1; gfn <= DE_RING_SLOTS + 1; gfn++) {
        CHECK_EQ(HV(paging_nominate, domain, gfn), 0);
        CHECK_EQ(HV(paging_touch, domain, gfn), -EAGAIN);
    }
    CHECK_EQ(account_domain(domain).nominated, 1);
    CHECK_EQ(HV(paging_load, domain, DE_RING_SLOTS + 1, NULL), -ENOENT);
    /* Ram is as if it had been written. */
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    CHECK_EQ(HV(paging_touch, domain, 0), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_RAM_RW);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 0, 8, &bits), 0);
    CHECK_EQ(bits & 1, 1);
    CHECK_EQ(HV(share_nominate, domain, 0, &handle), 0);
    CHECK_EQ(HV(share_nominate, other, 0, &others), 0);
    CHECK_EQ(HV(share, domain, 0, handle, other, 0, others), 0);
    CHECK_EQ(HV(paging_touch, domain, 0), 0);
    CHECK_EQ(de_machine_p2m_type(machine, other, 0), DE_P2M_SHARED);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_RAM_RW);
    CHECK_EQ(first_byte(domain, 0), 20);
    finish();
}

/* Seen on a real Xen: dom0 writes between nominate and evict, the evict succeeds, the write is lost. */
static void test_write_through_mapping_is_lost(void)
{
    start(4);
    uint16_t domain = make_domain(1, 1);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 0), 0);
    uint8_t *page;
    CHECK_EQ(map_one(domain, true, 0, &page), 0);
    page[0] = 99;
    unmap_one(page);
    CHECK_EQ(HV(paging_evict, domain, 0), 0);
    finish();
}

static void test_map_of_paged_page(void)
{
    start(8);
    uint16_t domain = make_domain(8, 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    uint8_t *pages[3];
    int32_t errors[3];
    evict(domain, 1);
    uint32_t gfns[] = {1, 11, 0};
    CHECK_EQ(de_machine_map(machine, domain, false, gfns, 3, pages, errors), 1);
    CHECK_EQ(errors[0], -ENOENT);
    CHECK_EQ(errors[1], -EINVAL);
    CHECK_EQ(errors[2], 0);
    de_machine_unmap(machine, (const uint8_t *const *)pages, 3);
    /* One populate request, no vCPU paused; a second map asks no more. */
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.flags, 0);
    CHECK_EQ(event.gfn, 1);
    CHECK_EQ(event.p2m_type, DE_P2M_PAGED);
    CHECK_EQ(map_one(domain, false, 1, &pages[0]), -ENOENT);
    no_event(domain);
    /* The answer alone does nothing: the page stays paging_in until a load. */
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 1), DE_P2M_PAGING_IN);
    CHECK_EQ(HV(paging_nominate, domain, 1), -EBUSY);
    uint8_t content[DE_PAGE_SIZE] = {5};
    CHECK_EQ(HV(paging_load, domain, 1, content), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 1), DE_P2M_RAM_RW);
    CHECK_EQ(HV(ring_answer, domain, &event), -EINVAL);
    CHECK_EQ(de_machine_map(machine, 99, false, gfns, 3, pages, errors), -ESRCH);
    finish();
}

/* dom0's ninth request finds the ring full: it is not queued, and nothing blocks. */
static void test_full_ring_and_dom0(void)
{
    start(16);
    uint16_t domain = make_domain(9, 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    uint8_t *page;
    for (uint32_t gfn = 0; gfn < 9; gfn++) {
        evict(domain, gfn);
        CHECK_EQ(map_one(domain, false, gfn, &page), -ENOENT);
    }
    CHECK_EQ(de_machine_p2m_type(machine, domain, 7), DE_P2M_PAGING_IN);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 8), DE_P2M_PAGED);
    struct de_vm_event event;
    for (uint32_t gfn = 0; gfn < 8; gfn++)
        CHECK_EQ(next_event(domain).gfn, gfn);
    no_event(domain);
    /* Taken is not free: a slot stays in use until its answer. */
    CHECK_EQ(map_one(domain, false, 8, &page), -ENOENT);
    no_event(domain);
    event = (struct de_vm_event){.version = DE_VM_EVENT_VERSION};
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(map_one(domain, false, 8, &page), -ENOENT);
    CHECK_EQ(next_event(domain).gfn, 8);
    finish();
}

static void test_fault(void)
{
    start(8);
    uint16_t domain = make_domain(2, 30);
    struct access access = {.gfn = 0};
    CHECK_EQ(de_vcpu_create(machine, domain, &access.vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    evict(domain, 0);
    access_start(&access);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.flags, DE_VM_EVENT_VCPU_PAUSED);
    CHECK_EQ(event.paging_flags, 0);
    CHECK_EQ(event.gfn, 0);
    /* An answer of a wrong version is dropped: the guest hangs on. */
    struct de_vm_event bad = event;
    bad.version = 0;
    CHECK_EQ(HV(ring_answer, domain, &bad), 0);
    CHECK_EQ(account_domain(domain).answers_dropped, 1);
    pause_briefly();
    CHECK(!atomic_load(&access.done));
    CHECK_EQ(HV(ring_answer, domain, &event), -EINVAL);
    de_vcpu_kick(access.vcpu);
    CHECK_EQ(access_join(&access), -EINTR);
    de_vcpu_free(access.vcpu);

    /* Answered without a load, the vCPU asks again: a duplicate. */
    CHECK_EQ(de_vcpu_create(machine, domain, &access.vcpu), 0);
    uint64_t samples[4] = {0};
    de_vcpu_sample(access.vcpu, samples, 4);
    access_start(&access);
    event = next_event(domain);
    CHECK_EQ(event.p2m_type, DE_P2M_PAGING_IN);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    event = next_event(domain);
    uint8_t content[DE_PAGE_SIZE] = {123};
    CHECK_EQ(HV(paging_load, domain, 0, content), 0);
    CHECK(!atomic_load(&access.done));
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(access_join(&access), 0);
    CHECK_EQ(access.value, 123);
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(access.vcpu, &statistics);
    CHECK_EQ(statistics.faults, 1);
    CHECK(samples[0] > 0 && samples[0] == statistics.stall_ns);
    de_vcpu_free(access.vcpu);
    finish();
}

static void test_touch_of_nominated_page(void)
{
    start(8);
    uint16_t domain = make_domain(2, 40);
    struct access access = {.gfn = 1, .write = true, .value = 9};
    CHECK_EQ(de_vcpu_create(machine, domain, &access.vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 1), 0);
    access_start(&access);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.paging_flags, DE_PAGING_EVICT_FAIL);
    CHECK_EQ(event.flags, DE_VM_EVENT_VCPU_PAUSED);
    CHECK_EQ(HV(paging_evict, domain, 1), -EBUSY);
    CHECK_EQ(HV(paging_nominate, domain, 1), -EBUSY);
    /* The frame is there, so it maps without an event; the answer alone makes it ram again, with its content.
     */
    CHECK_EQ(first_byte(domain, 1), 41);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(access_join(&access), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 1), DE_P2M_RAM_RW);
    /* A load of such a page keeps the content, too. */
    CHECK_EQ(HV(paging_nominate, domain, 1), 0);
    access_start(&access);
    event = next_event(domain);
    CHECK_EQ(HV(paging_load, domain, 1, (const uint8_t[DE_PAGE_SIZE]){0}), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(access_join(&access), 0);
    uint8_t byte;
    CHECK_EQ(de_machine_guest_read(access.vcpu, 1, 1, &byte, 1), 0);
    CHECK_EQ(byte, 41);
    de_vcpu_free(access.vcpu);
    finish();
}

/* An answer without the paused flag, such as dom0's requests get, lets no vCPU go on, whatever vCPU it names.
 */
static void test_answer_of_dom0_request_pauses_on(void)
{
    start(8);
    uint16_t domain = make_domain(2, 0);
    struct access access = {.gfn = 0};
    CHECK_EQ(de_vcpu_create(machine, domain, &access.vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    evict(domain, 0);
    evict(domain, 1);
    access_start(&access);
    struct de_vm_event of_vcpu = next_event(domain);
    uint8_t *page;
    CHECK_EQ(map_one(domain, false, 1, &page), -ENOENT);
    struct de_vm_event of_dom0 = next_event(domain);
    CHECK_EQ(of_dom0.vcpu_id, of_vcpu.vcpu_id);
    CHECK_EQ(HV(ring_answer, domain, &of_dom0), 0);
    /* Had it gone on, it would have asked again. */
    for (int i = 0; i < 5; i++)
        pause_briefly();
    no_event(domain);
    CHECK_EQ(HV(paging_load, domain, 0, (const uint8_t[DE_PAGE_SIZE]){44}), 0);
    CHECK(!atomic_load(&access.done));
    /* An answer naming a vCPU that is not there frees its slot, and that is all. */
    of_vcpu.vcpu_id = 77;
    CHECK_EQ(HV(ring_answer, domain, &of_vcpu), -EINVAL);
    CHECK(!atomic_load(&access.done));
    de_vcpu_kick(access.vcpu);
    CHECK_EQ(access_join(&access), -EINTR);
    de_vcpu_free(access.vcpu);
    finish();
}

static void test_full_ring_and_vcpus(void)
{
    enum { VCPUS = 10 };
    start(32);
    uint16_t domain = make_domain(VCPUS, 0);
    struct access accesses[VCPUS];
    CHECK_EQ(HV(paging_enable, domain), 0);
    for (uint32_t i = 0; i < VCPUS; i++) {
        evict(domain, i);
        accesses[i] = (struct access){.gfn = i};
        CHECK_EQ(de_vcpu_create(machine, domain, &accesses[i].vcpu), 0);
        access_start(&accesses[i]);
    }
    while (account_domain(domain).slot_waits < VCPUS - DE_RING_SLOTS)
        pause_briefly();
    CHECK_EQ(account_domain(domain).paging_events, DE_RING_SLOTS);
    CHECK_EQ(HV(paging_disable, domain), -EBUSY);
    for (uint32_t i = 0; i < VCPUS; i++) {
        struct de_vm_event event = next_event(domain);
        uint8_t content[DE_PAGE_SIZE] = {(uint8_t)(100 + event.gfn)};
        CHECK_EQ(HV(paging_load, domain, event.gfn, content), 0);
        CHECK_EQ(HV(ring_answer, domain, &event), 0);
    }
    for (uint32_t i = 0; i < VCPUS; i++) {
        CHECK_EQ(access_join(&accesses[i]), 0);
        CHECK_EQ(accesses[i].value, 100 + i);
        de_vcpu_free(accesses[i].vcpu);
    }
    CHECK_EQ(HV(paging_disable, domain), 0);
    finish();
}

static void test_no_ring_crashes(void)
{
    start(8);
    uint16_t domain = make_domain(2, 0);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    evict(domain, 0);
    CHECK_EQ(HV(paging_disable, domain), 0);
    char text[64];
    CHECK_EQ(de_machine_domain_crash_reason(machine, domain, text, sizeof text), 0);
    CHECK_EQ(text[0], 0);
    uint8_t byte;
    CHECK_EQ(de_machine_guest_read(vcpu, 0, 0, &byte, 1), -ESHUTDOWN);
    CHECK_EQ(de_machine_guest_read(vcpu, 1, 0, &byte, 1), -ESHUTDOWN);
    CHECK_EQ(de_machine_domain_crash_reason(machine, domain, text, sizeof text), 0);
    CHECK(strstr(text, "no pager"));
    de_vcpu_free(vcpu);
    /* Even a paused domain, when dom0 maps the page. */
    uint16_t paused = make_domain(1, 0);
    CHECK_EQ(HV(paging_enable, paused), 0);
    evict(paused, 0);
    CHECK_EQ(HV(paging_disable, paused), 0);
    CHECK_EQ(HV(pause, paused), 0);
    uint8_t *page;
    CHECK_EQ(map_one(paused, false, 0, &page), -ENOENT);
    CHECK_EQ(de_machine_domain_crash_reason(machine, paused, text, sizeof text), 0);
    CHECK(strstr(text, "no pager"));
    CHECK_EQ(de_machine_domain_crash_reason(machine, 99, text, sizeof text), -ESRCH);
    finish();
}

static void test_load_without_memory(void)
{
    start(2);
    uint16_t a = make_domain(2, 0);
    CHECK_EQ(HV(paging_enable, a), 0);
    evict(a, 0);
    uint16_t b = make_domain(1, 0);
    CHECK_EQ(HV(paging_load, a, 0, (const uint8_t[DE_PAGE_SIZE]){0}), -ENOMEM);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_PAGED);
    CHECK_EQ(de_machine_domain_destroy(machine, b), 0);
    CHECK_EQ(HV(paging_load, a, 0, (const uint8_t[DE_PAGE_SIZE]){0}), 0);
    finish();
}

static void test_drop(void)
{
    start(8);
    uint16_t domain = make_domain(4, 50);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), 0);
    no_event(domain);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), -EFAULT);
    CHECK_EQ(de_machine_guest_release(vcpu, 4), -EFAULT);
    uint8_t byte;
    CHECK_EQ(de_machine_guest_read(vcpu, 0, 0, &byte, 1), -EFAULT);
    CHECK_EQ(HV(paging_nominate, domain, 0), -EBUSY);
    uint64_t handle;
    CHECK_EQ(HV(share_nominate, domain, 0, &handle), -EINVAL);
    CHECK_EQ(de_machine_guest_obtain(vcpu, 0), 0);
    CHECK_EQ(de_machine_guest_obtain(vcpu, 0), -EEXIST);
    CHECK_EQ(de_machine_guest_obtain(vcpu, 9), -EFAULT);
    CHECK_EQ(de_machine_guest_read(vcpu, 0, 0, &byte, 1), 0);
    CHECK_EQ(byte, 0);

    evict(domain, 1);
    CHECK_EQ(de_machine_guest_release(vcpu, 1), 0);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.paging_flags, DE_PAGING_DROP_PAGE);
    CHECK_EQ(event.flags, 0);
    CHECK_EQ(event.gfn, 1);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(HV(paging_load, domain, 1, (const uint8_t[DE_PAGE_SIZE]){0}), -ENOENT);
    CHECK_EQ(account_domain(domain).paged, 0);

    CHECK_EQ(HV(paging_nominate, domain, 2), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 2), 0);
    event = next_event(domain);
    CHECK_EQ(event.paging_flags, DE_PAGING_DROP_PAGE | DE_PAGING_EVICT_FAIL);
    CHECK_EQ(HV(paging_evict, domain, 2), -EBUSY);
    CHECK_EQ(account().used, 2);
    de_vcpu_free(vcpu);
    finish();
}

static void test_sharing(void)
{
    start(16);
    uint16_t a = make_domain(3, 7);
    uint16_t b = make_domain(3, 7);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, a, &vcpu), 0);
    uint64_t handle_a, handle_b, again;
    CHECK_EQ(HV(share_nominate, a, 0, &handle_a), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &again), 0);
    CHECK_EQ(handle_a, again);
    CHECK_EQ(HV(share_nominate, b, 0, &handle_b), 0);
    CHECK(handle_a != handle_b);
    CHECK_EQ(account().shared_frames, 2);
    CHECK_EQ(HV(share, a, 0, handle_a + 100, b, 0, handle_b), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share, a, 0, handle_a, b, 0, handle_b + 100), DE_SHARE_CLIENT_STALE);
    CHECK_EQ(HV(share, a, 1, handle_a, b, 0, handle_b), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share, a, 9, handle_a, b, 0, handle_b), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share, a, 0, handle_a, b, 0, handle_b), 0);
    CHECK_EQ(HV(share, a, 0, handle_a, b, 0, handle_a), 0);
    CHECK_EQ(HV(share, a, 0, handle_a, b, 0, handle_b), DE_SHARE_CLIENT_STALE);
    struct de_machine_accounting now = account();
    CHECK_EQ(now.used, 5);
    CHECK_EQ(now.shared_frames, 1);
    CHECK_EQ(now.sharing_saved, 1);
    CHECK(now.metadata_bytes > 0);
    /* Reads change nothing; a write gives a copy, and the partner keeps its word. */
    uint8_t byte = 0;
    CHECK_EQ(de_machine_guest_read(vcpu, 0, 0, &byte, 1), 0);
    CHECK_EQ(byte, 7);
    CHECK_EQ(account().used, 5);
    byte = 200;
    CHECK_EQ(de_machine_guest_write(vcpu, 0, 0, &byte, 1), 0);
    CHECK_EQ(account().used, 6);
    CHECK_EQ(account_domain(a).cow_breaks, 1);
    CHECK_EQ(first_byte(b, 0), 7);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_RAM_RW);
    CHECK_EQ(de_machine_p2m_type(machine, b, 0), DE_P2M_SHARED);
    /* A candidate that is written becomes private in place, and its handle stale. */
    CHECK_EQ(HV(share_nominate, a, 1, &handle_a), 0);
    CHECK_EQ(de_machine_guest_write(vcpu, 1, 0, &byte, 1), 0);
    CHECK_EQ(account().used, 6);
    CHECK_EQ(HV(share_nominate, b, 1, &handle_b), 0);
    CHECK_EQ(HV(share, a, 1, handle_a, b, 1, handle_b), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share_nominate, a, 1, &again), 0);
    CHECK(again != handle_a);
    CHECK_EQ(HV(share, a, 1, handle_a, b, 1, handle_b), DE_SHARE_SOURCE_STALE);
    CHECK_EQ(HV(share, b, 1, handle_b, a, 1, handle_a), DE_SHARE_CLIENT_STALE);
    de_vcpu_free(vcpu);
    finish();
}

static void test_sharing_and_mappings(void)
{
    start(8);
    uint16_t a = make_domain(2, 1);
    uint16_t b = make_domain(2, 1);
    uint64_t handle;
    uint8_t *page;
    CHECK_EQ(map_one(a, false, 0, &page), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &handle), -E2BIG);
    unmap_one(page);
    share_two(a, 0, b, 0);
    CHECK_EQ(map_one(a, false, 0, &page), 0);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_SHARED);
    unmap_one(page);
    /* A read-write map unshares. */
    CHECK_EQ(account().used, 3);
    CHECK_EQ(map_one(a, true, 0, &page), 0);
    CHECK_EQ(account().used, 4);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_RAM_RW);
    page[0] = 99;
    unmap_one(page);
    CHECK_EQ(first_byte(b, 0), 1);
    /* A client's frame that dom0 has mapped outlives the merge. */
    uint64_t source, client;
    CHECK_EQ(HV(share_nominate, a, 1, &source), 0);
    CHECK_EQ(HV(share_nominate, b, 1, &client), 0);
    CHECK_EQ(map_one(b, false, 1, &page), 0);
    CHECK_EQ(HV(share, a, 1, source, b, 1, client), 0);
    CHECK_EQ(account().used, 4);
    CHECK_EQ(page[0], 2);
    unmap_one(page);
    CHECK_EQ(account().used, 3);
    finish();
}

static void test_sharing_and_paging(void)
{
    start(8);
    uint16_t a = make_domain(3, 1);
    uint16_t b = make_domain(3, 1);
    uint64_t handle;
    CHECK_EQ(HV(paging_enable, a), 0);
    share_two(a, 0, b, 0);
    CHECK_EQ(HV(paging_nominate, a, 0), -EBUSY);
    CHECK_EQ(HV(paging_evict, a, 0), -EBUSY);
    CHECK_EQ(HV(paging_load, a, 0, NULL), -ENOENT);
    CHECK_EQ(HV(paging_nominate, a, 1), 0);
    CHECK_EQ(HV(share_nominate, a, 1, &handle), -EINVAL);
    CHECK_EQ(HV(paging_evict, a, 1), 0);
    CHECK_EQ(HV(share_nominate, a, 1, &handle), -EINVAL);
    /* A sharer that goes leaves the other one's page as it is. */
    CHECK_EQ(de_machine_domain_destroy(machine, a), 0);
    CHECK_EQ(first_byte(b, 0), 1);
    CHECK_EQ(account().sharing_saved, 0);
    CHECK_EQ(account().shared_frames, 1);
    finish();
}

static void test_share_limit(void)
{
    uint32_t count = DE_SHARE_MAX_GFNS + 1;
    start(count + 1);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, count, &domain), 0);
    CHECK_EQ(de_machine_populate(machine, domain, NULL, NULL, count, NULL), count);
    for (uint32_t gfn = 1; gfn < DE_SHARE_MAX_GFNS; gfn++)
        share_two(domain, 0, domain, gfn);
    CHECK_EQ(account().used, 2);
    CHECK_EQ(account().sharing_saved, DE_SHARE_MAX_GFNS - 1);
    uint64_t source, client;
    CHECK_EQ(HV(share_nominate, domain, 0, &source), 0);
    CHECK_EQ(HV(share_nominate, domain, count - 1, &client), 0);
    CHECK_EQ(HV(share, domain, 0, source, domain, count - 1, client), -ENOSPC);
    CHECK_EQ(account().used, 2);
    finish();
}

/* Xen takes what it notes of a shared page from frames that nobody has a claim to. */
static void test_sharing_without_memory(void)
{
    start(4);
    uint16_t a = make_domain(2, 1), b = make_domain(1, 1);
    uint64_t handle, again;
    CHECK_EQ(de_machine_claim(machine, b, 2), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &handle), -ENOMEM);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_RAM_RW);
    CHECK_EQ(de_machine_claim(machine, b, 0), 0);
    CHECK_EQ(HV(share_nominate, a, 0, &handle), 0);
    uint16_t other = make_domain(1, 2);
    CHECK_EQ(HV(share_nominate, a, 1, &again), -ENOMEM);
    CHECK_EQ(HV(share_nominate, a, 0, &again), 0);
    CHECK_EQ(again, handle);
    CHECK_EQ(de_machine_domain_destroy(machine, other), 0);
    CHECK_EQ(HV(share_nominate, a, 1, &again), 0);
    finish();
}

static void test_cow_without_memory(void)
{
    start(3);
    uint16_t a = make_domain(1, 1);
    uint16_t b = make_domain(1, 1);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, a, &vcpu), 0);
    share_two(a, 0, b, 0);
    uint16_t other = make_domain(2, 1);
    CHECK_EQ(account().free, 0);
    uint8_t *page;
    CHECK_EQ(map_one(b, true, 0, &page), -ENOMEM);
    CHECK_EQ(de_machine_p2m_type(machine, b, 0), DE_P2M_SHARED);
    uint8_t byte = 5;
    CHECK_EQ(de_machine_guest_write(vcpu, 0, 0, &byte, 1), -ESHUTDOWN);
    char text[128];
    CHECK_EQ(de_machine_domain_crash_reason(machine, a, text, sizeof text), 0);
    CHECK(strstr(text, "no free frame"));
    CHECK_EQ(first_byte(b, 0), 1);
    CHECK_EQ(de_machine_domain_destroy(machine, other), 0);
    de_vcpu_free(vcpu);
    finish();
}

static void test_pause_and_destroy(void)
{
    start(8);
    uint16_t domain = make_domain(2, 60);
    struct access access = {.gfn = 0};
    CHECK_EQ(de_vcpu_create(machine, domain, &access.vcpu), 0);
    CHECK_EQ(HV(pause, domain), 0);
    CHECK_EQ(HV(pause, domain), 0);
    access_start(&access);
    CHECK_EQ(HV(unpause, domain), 0);
    pause_briefly();
    CHECK(!atomic_load(&access.done));
    CHECK_EQ(HV(unpause, domain), 0);
    CHECK_EQ(access_join(&access), 0);
    CHECK_EQ(access.value, 60);
    /* Destroyed while a vCPU waits for the pager. */
    CHECK_EQ(HV(paging_enable, domain), 0);
    evict(domain, 0);
    access_start(&access);
    next_event(domain);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(access_join(&access), -ESHUTDOWN);
    uint8_t byte;
    CHECK_EQ(de_machine_guest_read(access.vcpu, 1, 0, &byte, 1), -ESHUTDOWN);
    CHECK_EQ(de_machine_guest_obtain(access.vcpu, 0), -ESHUTDOWN);
    CHECK_EQ(account().used, 0);
    de_vcpu_free(access.vcpu);
    finish();
}

static void test_wait(void)
{
    start(8);
    uint16_t a = make_domain(1, 0);
    uint16_t b = make_domain(1, 0);
    uint16_t ready[4];
    CHECK_EQ(HV(paging_enable, a), 0);
    CHECK_EQ(HV(paging_enable, b), 0);
    CHECK_EQ(HV(wait, 0, ready, 4), 0);
    CHECK_EQ(HV(wait, 1000, ready, 4), 0);
    evict(a, 0);
    evict(b, 0);
    uint8_t *page;
    CHECK_EQ(map_one(b, false, 0, &page), -ENOENT);
    CHECK_EQ(map_one(a, false, 0, &page), -ENOENT);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 1), 1);
    CHECK_EQ(ready[0], b);
    CHECK_EQ(HV(wait, 0, ready, 4), 1);
    CHECK_EQ(ready[0], a);
    HV(interrupt);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 0);
    /* A domain that is gone is not announced. */
    uint16_t c = make_domain(1, 0);
    CHECK_EQ(HV(paging_enable, c), 0);
    evict(c, 0);
    CHECK_EQ(map_one(c, false, 0, &page), -ENOENT);
    CHECK_EQ(de_machine_domain_destroy(machine, c), 0);
    CHECK_EQ(HV(wait, 0, ready, 4), 0);
    finish();
}

/* A pager that dies with one event answered, one taken and one not even seen: the next one gets the last two.
 */
static void test_take_over(void)
{
    start(16);
    uint16_t domain = make_domain(3, 80);
    uint32_t answered;
    CHECK_EQ(HV(paging_take_over, 99, &answered), -ESRCH);
    CHECK_EQ(HV(paging_take_over, domain, &answered), -EINVAL);
    CHECK_EQ(HV(paging_enable, domain), 0);
    struct access accesses[3];
    for (uint32_t i = 0; i < 3; i++) {
        evict(domain, i);
        accesses[i] = (struct access){.gfn = i};
        CHECK_EQ(de_vcpu_create(machine, domain, &accesses[i].vcpu), 0);
        access_start(&accesses[i]);
        while (account_domain(domain).paging_events < i + 1)
            pause_briefly();
    }
    uint8_t content[DE_PAGE_SIZE] = {90};
    uint16_t ready[4];
    CHECK_EQ(HV(wait, 0, ready, 4), 1);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.gfn, 0);
    CHECK_EQ(HV(paging_load, domain, 0, content), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    CHECK_EQ(next_event(domain).gfn, 1);
    CHECK_EQ(HV(wait, 0, ready, 4), 0);

    CHECK_EQ(HV(paging_take_over, domain, &answered), 0);
    CHECK_EQ(answered, 1);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 1);
    CHECK_EQ(ready[0], domain);
    for (uint32_t gfn = 1; gfn < 3; gfn++) {
        event = next_event(domain);
        CHECK_EQ(event.gfn, gfn);
        content[0]++;
        CHECK_EQ(HV(paging_load, domain, gfn, content), 0);
        CHECK_EQ(HV(ring_answer, domain, &event), 0);
    }
    no_event(domain);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(access_join(&accesses[i]), 0);
        CHECK_EQ(accesses[i].value, 90 + i);
        de_vcpu_free(accesses[i].vcpu);
    }
    finish();
}

/* A serving thread that keeps evicted pages' bytes itself: a pager of 20 lines. */
struct keeper {
    uint16_t domain;
    uint8_t (*copies)[DE_PAGE_SIZE];
    atomic_bool stop;
};

static void *keeper_thread(void *argument)
{
    struct keeper *keeper = argument;
    uint16_t ready[8];
    struct de_vm_event event;
    while (!atomic_load(&keeper->stop)) {
        HV(wait, 1000000, ready, 8);
        while (HV(ring_take, keeper->domain, &event) == 1) {
            int error = HV(paging_load, keeper->domain, event.gfn, keeper->copies[event.gfn]);
            CHECK(error == 0 || error == -ENOENT);
            /* EINVAL: a guest was stopped while it waited, and its vCPU is gone. */
            int answered = HV(ring_answer, keeper->domain, &event);
            CHECK(answered == 0 || answered == -EINVAL);
        }
    }
    return NULL;
}

static void evict_by_copy(struct keeper *keeper, uint32_t gfn)
{
    uint8_t *page;
    if (HV(paging_nominate, keeper->domain, gfn) || map_one(keeper->domain, false, gfn, &page))
        return;
    /* Only if nobody touched it: the server may be reading the copy of an earlier eviction until the page is
     * ram. */
    memcpy(keeper->copies[gfn], page, DE_PAGE_SIZE);
    unmap_one(page);
    HV(paging_evict, keeper->domain, gfn);
}

#ifdef THROUGH_CLIENT
typedef uint32_t guest_handle;

static void guest_start(uint16_t domain, const struct de_program_options *options, guest_handle *guest)
{
    uint32_t contents;
    CHECK_EQ(de_client_contents_add_pages(machine, options->content, options->gfns, &contents), 0);
    CHECK_EQ(de_client_program_start(machine, domain, options, contents, guest), 0);
    CHECK_EQ(de_client_contents_remove(machine, contents), 0);
}

static uint64_t guest_progress(guest_handle guest)
{
    struct de_program_result result;
    CHECK_EQ(de_client_program_read(machine, guest, &result), 0);
    return result.reads + result.writes;
}

static struct de_program_result guest_stop(guest_handle guest, uint64_t *samples, size_t capacity)
{
    struct de_program_result result;
    CHECK_EQ(de_client_program_stop(machine, guest, &result, samples, capacity), 0);
    CHECK_EQ(de_client_program_stop(machine, guest, &result, samples, capacity), -ENOENT);
    return result;
}
#else
typedef struct de_program *guest_handle;

static void guest_start(uint16_t domain, const struct de_program_options *options, guest_handle *guest)
{
    CHECK_EQ(de_program_start(machine, domain, options, guest), 0);
}

static uint64_t guest_progress(guest_handle guest)
{
    struct de_program_result result;
    de_program_read(guest, &result);
    return result.reads + result.writes;
}

static struct de_program_result guest_stop(guest_handle guest, uint64_t *samples, size_t capacity)
{
    struct de_program_result result;
    de_program_stop(guest);
    de_program_join(guest, &result, samples);
    CHECK(result.samples <= capacity);
    return result;
}
#endif

/* Guests on two vCPUs, an evictor that shares, breaks and evicts at random, and the server: every byte must
 * be right. */
static void test_guests_under_threads(void)
{
    enum { GFNS = 64, OPERATIONS = 30000, EVENTS = 200 };
    static uint8_t image[GFNS][DE_PAGE_SIZE];
    static uint8_t copies[GFNS][DE_PAGE_SIZE];
    const uint8_t *content[GFNS];
    start(GFNS + 8);
    uint16_t domain;
    CHECK_EQ(de_machine_domain_create(machine, GFNS, &domain), 0);
    for (int i = 0; i < GFNS; i++) {
        memset(image[i], i / 4, DE_PAGE_SIZE);
        content[i] = image[i];
    }
    CHECK_EQ(de_machine_populate(machine, domain, NULL, content, GFNS, NULL), GFNS);
    CHECK_EQ(HV(paging_enable, domain), 0);
    struct keeper keeper = {.domain = domain, .copies = copies};
    pthread_t server;
    CHECK_EQ(pthread_create(&server, NULL, keeper_thread, &keeper), 0);
    static const uint32_t hot[] = {0};
    guest_handle guests[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct de_program_options options = {.kind = DE_PROGRAM_WORKING_SET,
                                             .seed = i + 1,
                                             .first_gfn = i * GFNS / 2,
                                             .gfns = GFNS / 2,
                                             .content = content + i * GFNS / 2,
                                             .sample_capacity = 16,
                                             .hot = hot,
                                             .hot_count = 1,
                                             .excursion_fraction = 1,
                                             .write_fraction = 0.3};
        guest_start(domain, &options, &guests[i]);
    }
    uint32_t random = 1;
    while (guest_progress(guests[0]) < OPERATIONS || guest_progress(guests[1]) < OPERATIONS ||
           account_domain(domain).paging_events < EVENTS) {
        random = random * 1664525 + 1013904223;
        uint32_t gfn = (random >> 8) % GFNS;
        if (random >> 31) {
            evict_by_copy(&keeper, gfn);
        } else if ((random >> 30) & 1) {
            uint64_t a, b;
            uint32_t other = (gfn + 1) % GFNS;
            uint8_t *pages[2];
            if (HV(share_nominate, domain, gfn, &a) || HV(share_nominate, domain, other, &b))
                continue;
            if (!map_one(domain, false, gfn, &pages[0]) && !map_one(domain, false, other, &pages[1])) {
                bool equal = memcmp(pages[0], pages[1], DE_PAGE_SIZE) == 0;
                de_machine_unmap(machine, (const uint8_t *const *)pages, 2);
                if (equal)
                    HV(share, domain, gfn, a, domain, other, b);
            } else {
                unmap_one(pages[0]);
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        uint64_t samples[16];
        struct de_program_result result = guest_stop(guests[i], samples, 16);
        CHECK_EQ(result.status, 0);
        CHECK_EQ(result.wrong_bytes, 0);
        CHECK(result.reads + result.writes >= OPERATIONS);
        CHECK(result.reads > result.writes && result.writes > OPERATIONS / 5);
        CHECK(result.faults > 0);
        CHECK_EQ(result.samples, result.faults < 16 ? result.faults : 16);
    }
    atomic_store(&keeper.stop, true);
    HV(interrupt);
    pthread_join(server, NULL);
    finish();
}

#ifndef THROUGH_CLIENT
static void panics(void (*what)(void), const char *text)
{
    char said[300] = "";
    int standard_error[2], status;
    CHECK_EQ(pipe(standard_error), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(standard_error[1], STDERR_FILENO);
        what();
        _exit(0);
    }
    close(standard_error[1]);
    size_t length = 0;
    for (ssize_t got = 1; got > 0 && length < sizeof said - 1; length += (size_t)got) {
        got = read(standard_error[0], said + length, sizeof said - 1 - length);
        CHECK(got >= 0);
    }
    close(standard_error[0]);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(strstr(said, text));
}

static void share_away_from_a_third(void)
{
    share_two(3, 0, 2, 0);
}

/* Xen moves all that share the client's frame; one of a domain that is not party to the call stops the host.
 */
static void test_sharer_of_a_third_domain(void)
{
    start(12);
    uint16_t a = make_domain(2, 1), b = make_domain(2, 1), c = make_domain(2, 1);
    share_two(a, 0, b, 0);
    panics(share_away_from_a_third, "mm locking order violation");
    /* As a source it may have any sharers; as a client after it was made private. */
    share_two(a, 0, c, 0);
    CHECK_EQ(HV(unshare, b, 0), 0);
    share_two(c, 0, b, 0);
    share_two(a, 1, b, 1);
    CHECK_EQ(HV(unshare, b, 1), 0);
    share_two(c, 1, b, 1);
    CHECK_EQ(account().sharing_saved, 3);
    finish();
}

/* A backend's grants: asked for without a paused vCPU, and as soon as the page is nominated. */
static void test_grant_map(void)
{
    start(12);
    uint16_t domain = make_domain(4, 50), other = make_domain(1, 50);
    uint8_t *page;
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(de_machine_grant_map(machine, 99, true, 0, &page), -ESRCH);
    CHECK_EQ(de_machine_grant_map(machine, domain, true, 4, &page), -EINVAL);
    evict(domain, 1);
    CHECK_EQ(HV(paging_nominate, domain, 2), 0);
    for (uint32_t gfn = 1; gfn <= 2; gfn++) {
        CHECK_EQ(de_machine_grant_map(machine, domain, false, gfn, &page), -EAGAIN);
        struct de_vm_event event = next_event(domain);
        CHECK_EQ(event.gfn, gfn);
        CHECK_EQ(event.flags, 0);
        CHECK_EQ(event.paging_flags, gfn == 2 ? DE_PAGING_EVICT_FAIL : 0);
        CHECK_EQ(de_machine_p2m_type(machine, domain, gfn), DE_P2M_PAGING_IN);
        /* On its way in: tried again, and nothing new in the ring. */
        CHECK_EQ(de_machine_grant_map(machine, domain, false, gfn, &page), -EAGAIN);
        no_event(domain);
        CHECK_EQ(HV(paging_load, domain, gfn, (const uint8_t[DE_PAGE_SIZE]){99}), 0);
        CHECK_EQ(HV(ring_answer, domain, &event), 0);
        CHECK_EQ(de_machine_grant_map(machine, domain, false, gfn, &page), 0);
        CHECK_EQ(page[0], gfn == 2 ? 52 : 99);
        CHECK_EQ(HV(paging_nominate, domain, gfn), -EBUSY);
        unmap_one(page);
    }
    share_two(domain, 0, other, 0);
    CHECK_EQ(de_machine_grant_map(machine, domain, false, 0, &page), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_SHARED);
    unmap_one(page);
    CHECK_EQ(de_machine_grant_map(machine, domain, true, 0, &page), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_RAM_RW);
    unmap_one(page);
    finish();
}

static void test_grant_map_without_memory(void)
{
    start(3);
    uint16_t a = make_domain(1, 1), b = make_domain(1, 1), full;
    uint8_t *page;
    share_two(a, 0, b, 0);
    full = make_domain(2, 9);
    CHECK_EQ(de_machine_grant_map(machine, a, true, 0, &page), -EAGAIN);
    CHECK_EQ(de_machine_domain_destroy(machine, full), 0);
    CHECK_EQ(de_machine_grant_map(machine, a, true, 0, &page), 0);
    unmap_one(page);
    finish();
}

static void test_registered_pages(void)
{
    start(8);
    uint16_t a = make_domain(2, 1), b = make_domain(2, 1);
    uint64_t handle;
    CHECK_EQ(HV(paging_enable, a), 0);
    share_two(b, 0, a, 0);
    CHECK_EQ(de_machine_register_page(machine, 99, 0), -ESRCH);
    CHECK_EQ(de_machine_register_page(machine, a, 2), -EINVAL);
    CHECK_EQ(de_machine_register_page(machine, a, 0), 0);
    CHECK_EQ(de_machine_p2m_type(machine, a, 0), DE_P2M_RAM_RW);
    CHECK_EQ(HV(paging_nominate, a, 0), -EBUSY);
    CHECK_EQ(HV(share_nominate, a, 0, &handle), -E2BIG);
    evict(a, 1);
    CHECK_EQ(de_machine_register_page(machine, a, 1), -EINVAL);
    finish();
}

struct hypercall {
    struct de_vcpu *vcpu;
    uint32_t gfn;
    int result;
    pthread_t thread;
};

static void *hypercall_thread(void *argument)
{
    struct hypercall *hypercall = argument;
    uint8_t byte = 77;
    hypercall->result = de_machine_guest_hypercall(hypercall->vcpu, hypercall->gfn, 0, &byte, 1, true);
    return NULL;
}

/* The hypercall fails, and the vCPU finds its page there when it goes on. */
static void test_hypercall_on_page_that_is_out(void)
{
    start(8);
    uint16_t domain = make_domain(3, 60), other = make_domain(1, 60);
    struct hypercall hypercall = {.gfn = 1};
    uint8_t byte = 0;
    CHECK_EQ(de_vcpu_create(machine, domain, &hypercall.vcpu), 0);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(de_machine_guest_hypercall(hypercall.vcpu, 3, 0, &byte, 1, false), -EFAULT);
    CHECK_EQ(de_machine_guest_hypercall(hypercall.vcpu, 2, DE_PAGE_SIZE, &byte, 1, false), -EINVAL);
    CHECK_EQ(de_machine_guest_hypercall(hypercall.vcpu, 2, 5, &byte, 1, false), 0);
    CHECK_EQ(byte, 62);
    /* Reading through a hypercall makes a copy, too. */
    share_two(domain, 0, other, 0);
    CHECK_EQ(de_machine_guest_hypercall(hypercall.vcpu, 0, 0, &byte, 1, false), 0);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 0), DE_P2M_RAM_RW);
    evict(domain, 1);
    CHECK_EQ(pthread_create(&hypercall.thread, NULL, hypercall_thread, &hypercall), 0);
    struct de_vm_event event = next_event(domain);
    CHECK_EQ(event.flags, DE_VM_EVENT_VCPU_PAUSED);
    CHECK_EQ(HV(paging_load, domain, 1, (const uint8_t[DE_PAGE_SIZE]){5}), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    pthread_join(hypercall.thread, NULL);
    CHECK_EQ(hypercall.result, -EFAULT);
    CHECK_EQ(first_byte(domain, 2), 62);
    CHECK_EQ(de_machine_guest_read(hypercall.vcpu, 1, 0, &byte, 1), 0);
    CHECK_EQ(byte, 5);
    hypercall_thread(&hypercall);
    CHECK_EQ(hypercall.result, 0);
    CHECK_EQ(de_machine_guest_read(hypercall.vcpu, 1, 0, &byte, 1), 0);
    CHECK_EQ(byte, 77);
    /* A write by the hypervisor is noted each time, and the page goes on being one that is not written. */
    uint8_t bits;
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    hypercall_thread(&hypercall);
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, false, 0, 3, &bits), 0);
    CHECK_EQ(bits, 2);
    CHECK_EQ(de_machine_p2m_type(machine, domain, 1), DE_P2M_LOGDIRTY);
    de_vcpu_free(hypercall.vcpu);
    finish();
}

enum { LOGGED_GFNS = 64 };

struct look {
    uint8_t bits[LOGGED_GFNS / 8];
    uint8_t pages[LOGGED_GFNS][DE_PAGE_SIZE];
};

static void look(uint16_t domain, struct look *look)
{
    CHECK_EQ(de_machine_log_dirty_read(machine, domain, true, 0, LOGGED_GFNS, look->bits), 0);
    for (uint32_t gfn = 0; gfn < LOGGED_GFNS; gfn++) {
        uint8_t *page;
        CHECK_EQ(map_one(domain, false, gfn, &page), 0);
        memcpy(look->pages[gfn], page, DE_PAGE_SIZE);
        unmap_one(page);
    }
}

/* Cleans in the middle of writes lose none: a page that differs from one look to the next was found dirty by
 * this one's clean, or will be by that of the next. */
static void test_log_dirty_under_threads(void)
{
    static struct look looks[3];
    start(LOGGED_GFNS);
    uint16_t domain = make_domain(LOGGED_GFNS, 0);
    static uint8_t contents[LOGGED_GFNS][DE_PAGE_SIZE];
    const uint8_t *content[LOGGED_GFNS];
    for (int gfn = 0; gfn < LOGGED_GFNS; gfn++)
        content[gfn] = memset(contents[gfn], gfn, DE_PAGE_SIZE);
    CHECK_EQ(de_machine_log_dirty_enable(machine, domain), 0);
    struct de_guest_options options = {
        .seed = 5, .operations = 40000, .write_fraction = 0.3, .gfns = LOGGED_GFNS, .content = content};
    struct de_guest *guest;
    CHECK_EQ(de_guest_start(machine, domain, &options, &guest), 0);
    uint64_t differed = 0;
    for (unsigned round = 0, ends = 0; ends < 3; round++) {
        ends += de_guest_progress(guest) == options.operations;
        struct look *new = &looks[round % 3], *middle = &looks[(round + 2) % 3],
                    *old = &looks[(round + 1) % 3];
        look(domain, new);
        for (uint32_t gfn = 0; round >= 2 && gfn < LOGGED_GFNS; gfn++) {
            bool dirty = (middle->bits[gfn / 8] | new->bits[gfn / 8]) >> gfn % 8 & 1;
            bool differs = memcmp(old->pages[gfn], middle->pages[gfn], DE_PAGE_SIZE) != 0;
            CHECK(dirty || !differs);
            differed += differs;
        }
    }
    struct de_guest_result result;
    de_guest_join(guest, &result, NULL);
    CHECK_EQ(result.wrong_bytes, 0);
    CHECK(differed > 0);
    finish();
}

/* The checker must be able to fail: another content than the guest expects is counted byte by byte. */
static void test_guest_counts_wrong_bytes(void)
{
    start(4);
    uint16_t domain = make_domain(1, 5);
    uint8_t expected[DE_PAGE_SIZE];
    memset(expected, 5, sizeof expected);
    expected[100] = 6;
    expected[4095] = 6;
    const uint8_t *content[] = {expected};
    struct de_guest *guest;
    struct de_guest_options options = {.seed = 1, .operations = 3, .gfns = 2, .content = content};
    CHECK_EQ(de_guest_start(machine, domain, &(struct de_guest_options){.gfns = 0}, &guest), -EINVAL);
    CHECK_EQ(
        de_guest_start(machine, domain, &(struct de_guest_options){.gfns = 1, .write_fraction = 1.5}, &guest),
        -EINVAL);
    options.gfns = 1;
    CHECK_EQ(de_guest_start(machine, 99, &options, &guest), -ESRCH);
    options.first_gfn = 1;
    CHECK_EQ(de_guest_start(machine, domain, &options, &guest), -EINVAL);
    options.first_gfn = 0;
    CHECK_EQ(de_guest_start(machine, domain, &options, &guest), 0);
    struct de_guest_result result;
    de_guest_join(guest, &result, NULL);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.reads, 3);
    CHECK_EQ(result.wrong_bytes, 6);
    /* Stopped out of a wait that would never end. */
    CHECK_EQ(HV(pause, domain), 0);
    CHECK_EQ(de_guest_start(machine, domain, &options, &guest), 0);
    pause_briefly();
    de_guest_stop(guest);
    /* Whoever waits for its operations must see the end although they were not done. */
    for (int waits = 0; de_guest_progress(guest) < options.operations; waits++) {
        CHECK(waits < 1000);
        pause_briefly();
    }
    de_guest_join(guest, &result, NULL);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.reads, 0);
    finish();
}

#endif

int main(void)
{
    test_arguments();
    test_populate_and_frames();
    test_claims();
    test_identity();
    test_handle_from_before_a_write();
    test_claims_and_sharing();
    test_log_dirty();
    test_log_dirty_beside();
    test_paging_states();
    test_touch_by_dom0();
    test_write_through_mapping_is_lost();
    test_map_of_paged_page();
    test_full_ring_and_dom0();
    test_fault();
    test_touch_of_nominated_page();
    test_answer_of_dom0_request_pauses_on();
    test_full_ring_and_vcpus();
    test_no_ring_crashes();
    test_load_without_memory();
    test_drop();
    test_sharing();
    test_sharing_and_mappings();
    test_sharing_and_paging();
    test_share_limit();
    test_sharing_without_memory();
    test_cow_without_memory();
    test_pause_and_destroy();
    test_wait();
    test_take_over();
    test_guests_under_threads();
#ifndef THROUGH_CLIENT
    test_sharer_of_a_third_domain();
    test_grant_map();
    test_grant_map_without_memory();
    test_registered_pages();
    test_hypercall_on_page_that_is_out();
    test_log_dirty_under_threads();
    test_guest_counts_wrong_bytes();
#endif
    return 0;
}
