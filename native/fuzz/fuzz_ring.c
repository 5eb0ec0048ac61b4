/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libFuzzer target of the paging ring, whose page a guest may write to at any time. The input drives both: it
 * takes, answers, rewinds, lets a successor take over, and in between writes anything anywhere in the page.
 * Whatever is there, nothing outside the page is touched, a ring never has more than its slots taken and
 * unanswered, and no look takes more than one slot.
 */
#include "../xen/ring.h"
#include "input.h"

#include <stdlib.h>
#include <string.h>

static void scribble(struct input *input, uint8_t *page)
{
    uint32_t place = take(input, 2) % DE_PAGE_SIZE, bytes = take(input, 1);
    for (uint32_t i = 0; i < bytes && place + i < DE_PAGE_SIZE; i++)
        page[place + i] = (uint8_t)take(input, 1);
}

/* A small change to one of the four counts, which is what looks most like the truth. */
static void nudge(struct input *input, uint8_t *page)
{
    uint32_t *count = (uint32_t *)(void *)page + take(input, 1) % 4;
    *count += (uint32_t)(int8_t)take(input, 1);
}

static void answer(struct input *input, struct xen_ring *ring)
{
    struct de_vm_event event = {.version = take(input, 4),
                                .flags = take(input, 4),
                                .reason = take(input, 1),
                                .vcpu_id = take(input, 4),
                                .gfn = take(input, 4),
                                .paging_flags = take(input, 4)};
    bool some = ring->taken != ring->answered;
    uint32_t before = ring->answered;
    require(xen_ring_answer(ring, &event) == some);
    require(ring->answered == before + some);
}

static void look(struct xen_ring *ring)
{
    struct de_vm_event untrusted_event;
    uint32_t before = ring->taken;
    bool ready = xen_ring_ready(ring);
    bool taken = xen_ring_take(ring, &untrusted_event);
    require(taken == ready && ring->taken == before + taken);
    uint32_t untrusted_gfns[DE_RING_SLOTS];
    require(!taken || xen_ring_touched_by_xen(ring, &untrusted_event, untrusted_gfns) < DE_RING_SLOTS);
}

static void step(struct input *input, struct xen_ring *ring, uint8_t *page)
{
    switch (take(input, 1) % 8) {
    case 0:
    case 1:
        scribble(input, page);
        break;
    case 2:
    case 3:
        nudge(input, page);
        break;
    case 4:
        answer(input, ring);
        break;
    case 5:
        xen_ring_rewind(ring);
        break;
    case 6:
        xen_ring_resume(ring, page);
        break;
    default:
        look(ring);
    }
    require(ring->taken - ring->answered <= DE_RING_SLOTS);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct input input = {.bytes = bytes, .count = count};
    struct xen_ring ring;
    uint8_t *page = aligned_alloc(DE_PAGE_SIZE, DE_PAGE_SIZE);
    require(page != NULL);
    memset(page, 0, DE_PAGE_SIZE);
    if (take(&input, 1) & 1)
        xen_ring_start(&ring, page);
    else
        xen_ring_resume(&ring, page);
    while (input.count)
        step(&input, &ring, page);
    free(page);
    return 0;
}
