/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pager's side of a vm_event ring, against Xen's side as its headers' macros make it, and against a guest
 * that scribbles on it. */
#include "../../../native/xen/ring.h"

#include "../../../native/xen/library.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <xen/vm_event.h>

static _Alignas(4096) uint8_t page[4096];
static vm_event_front_ring_t front;

static void begin(struct xen_ring *ring)
{
    memset(page, 0xa5, sizeof page);
    xen_ring_start(ring, page);
    FRONT_RING_INIT(&front, (vm_event_sring_t *)(void *)page, sizeof page);
}

static void put_request(uint32_t vcpu, uint64_t gfn)
{
    vm_event_request_t request = {
        .version = VM_EVENT_INTERFACE_VERSION,
        .flags = VM_EVENT_FLAG_VCPU_PAUSED,
        .reason = VM_EVENT_REASON_MEM_PAGING,
        .vcpu_id = vcpu,
        .u.mem_paging = {.gfn = gfn, .p2mt = 10, .flags = MEM_PAGING_EVICT_FAIL},
    };
    memcpy(RING_GET_REQUEST(&front, front.req_prod_pvt), &request, sizeof request);
    front.req_prod_pvt++;
    RING_PUSH_REQUESTS(&front);
}

static bool get_response(vm_event_response_t *response)
{
    if (!RING_HAS_UNCONSUMED_RESPONSES(&front))
        return false;
    memcpy(response, RING_GET_RESPONSE(&front, front.rsp_cons), sizeof *response);
    front.rsp_cons++;
    return true;
}

static void test_layout(void)
{
    struct xen_ring ring;
    begin(&ring);
    CHECK(RING_SIZE(&front) == DE_RING_SLOTS);
    CHECK(RING_FREE_REQUESTS(&front) == DE_RING_SLOTS);
    CHECK(!xen_ring_ready(&ring));
}

/* Thrice around, in and out. */
static void test_round_trip(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    vm_event_response_t response;
    begin(&ring);
    for (uint32_t i = 0; i < 3 * DE_RING_SLOTS; i++) {
        put_request(i % 4, 1000 + i);
        CHECK(xen_ring_ready(&ring));
        CHECK(xen_ring_take(&ring, &event));
        CHECK(!xen_ring_take(&ring, &event));
        CHECK(event.version == DE_VM_EVENT_VERSION && event.vcpu_id == i % 4 && event.gfn == 1000 + i);
        CHECK(event.flags == DE_VM_EVENT_VCPU_PAUSED && event.reason == DE_VM_EVENT_REASON_PAGING);
        CHECK(event.p2m_type == 10 && event.paging_flags == DE_PAGING_EVICT_FAIL);
        CHECK(!get_response(&response));
        CHECK(xen_ring_answer(&ring, &event));
        CHECK(!xen_ring_answer(&ring, &event));
        CHECK(get_response(&response));
        CHECK(response.version == VM_EVENT_INTERFACE_VERSION && response.vcpu_id == i % 4);
        CHECK(response.flags == VM_EVENT_FLAG_VCPU_PAUSED && response.reason == VM_EVENT_REASON_MEM_PAGING);
        CHECK(response.u.mem_paging.gfn == 1000 + i);
    }
}

/* Whatever a request asks for, an answer never makes Xen do more than to let the vCPU go on. */
static void test_answer_flags(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    vm_event_response_t response;
    begin(&ring);
    put_request(0, 5);
    CHECK(xen_ring_take(&ring, &event));
    event.flags = UINT32_MAX;
    event.paging_flags = UINT32_MAX;
    CHECK(xen_ring_answer(&ring, &event));
    CHECK(get_response(&response));
    CHECK(response.flags == VM_EVENT_FLAG_VCPU_PAUSED);
    CHECK(response.u.mem_paging.flags == MEM_PAGING_DROP_PAGE);
    CHECK(response.altp2m_idx == 0);
}

static void test_large_gfn(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    begin(&ring);
    put_request(0, UINT64_C(1) << 32 | 5);
    CHECK(xen_ring_take(&ring, &event));
    CHECK(event.gfn == UINT32_MAX);
}

static void test_full(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    begin(&ring);
    for (uint32_t i = 0; i < DE_RING_SLOTS; i++)
        put_request(i, i);
    CHECK(RING_FREE_REQUESTS(&front) == 0);
    for (uint32_t i = 0; i < DE_RING_SLOTS; i++)
        CHECK(xen_ring_take(&ring, &event) && event.gfn == i);
    CHECK(!xen_ring_take(&ring, &event));
    CHECK(ring.scribbled == 0);
}

/* Eight are in the ring, three are taken, two answered, when the pager dies. */
static void test_resume(void)
{
    struct xen_ring ring, next;
    struct de_vm_event event;
    vm_event_response_t response;
    begin(&ring);
    for (uint32_t i = 0; i < DE_RING_SLOTS; i++)
        put_request(i, 100 + i);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(xen_ring_take(&ring, &event));
    event.gfn = 100;
    CHECK(xen_ring_answer(&ring, &event) && xen_ring_answer(&ring, &event));
    xen_ring_resume(&next, page);
    CHECK(next.answered == 2 && next.taken == 2);
    for (uint32_t i = 2; i < DE_RING_SLOTS; i++)
        CHECK(xen_ring_take(&next, &event) && event.gfn == 100 + i);
    CHECK(!xen_ring_take(&next, &event));
    xen_ring_rewind(&next);
    CHECK(xen_ring_take(&next, &event) && event.gfn == 102);
    CHECK(xen_ring_answer(&next, &event));
    for (unsigned i = 0; i < 3; i++)
        CHECK(get_response(&response));
    CHECK(!get_response(&response));
}

/* A count that Xen can't have written is not believed, and the next one that it writes is. */
static void test_scribbled_count(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    vm_event_sring_t *shared = (vm_event_sring_t *)(void *)page;
    begin(&ring);
    put_request(0, 1);
    CHECK(xen_ring_take(&ring, &event) && xen_ring_answer(&ring, &event));
    const uint32_t wrong[] = {0, 1 + DE_RING_SLOTS + 1, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        shared->req_prod = wrong[i];
        CHECK(!xen_ring_take(&ring, &event) && !xen_ring_ready(&ring));
        CHECK(ring.scribbled == i + 1);
    }
    put_request(2, 7);
    CHECK(xen_ring_take(&ring, &event) && event.gfn == 7 && event.vcpu_id == 2);
    /* What is taken is not taken back. */
    shared->req_prod = 1;
    CHECK(!xen_ring_take(&ring, &event));
    CHECK(xen_ring_answer(&ring, &event));
    CHECK(shared->rsp_prod == 2);
}

/* What waits behind an event for the vCPU that it paused can't be the guest's own doing. */
static void test_touched_by_xen(void)
{
    struct xen_ring ring;
    struct de_vm_event event;
    uint32_t found[DE_RING_SLOTS];
    begin(&ring);
    put_request(0, 10);
    put_request(1, 20);
    put_request(0, 11);
    put_request(0, 12);
    CHECK(xen_ring_take(&ring, &event));
    CHECK(xen_ring_touched_by_xen(&ring, &event, found) == 2 && found[0] == 11 && found[1] == 12);
    CHECK(xen_ring_take(&ring, &event));
    CHECK(xen_ring_touched_by_xen(&ring, &event, found) == 0);
    event.vcpu_id = 0;
    event.flags = 0;
    CHECK(xen_ring_touched_by_xen(&ring, &event, found) == 0);
}

int main(void)
{
    test_layout();
    test_round_trip();
    test_answer_flags();
    test_large_gfn();
    test_full();
    test_resume();
    test_scribbled_count();
    test_touched_by_xen();
    return 0;
}
