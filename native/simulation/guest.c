/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A guest's vCPUs: each access is compared with, or changes, what the page must hold. */
#include "world.h"

#include <errno.h>
#include <string.h>

/** A guest rests up to so long after each operation: else the others would not get to do anything to it. */
#define REST_NS 8000u
/** How often an operating system makes a hypercall again that found its argument out. */
#define HYPERCALL_TRIES 8u

static int do_read(struct place *place, struct de_vcpu *vcpu, uint32_t gfn)
{
    struct page_model *page = page_read_begin(place, gfn);
    if (!page)
        return 0;
    uint8_t found[DE_PAGE_SIZE];
    int error = de_machine_guest_read(vcpu, gfn, 0, found, DE_PAGE_SIZE);
    place->world->result.reads++;
    if (!error && page->present)
        page_check(place, gfn, found, "a vCPU");
    if ((error == 0) != page->present && (error == 0 || error == -EFAULT))
        WORLD_FAIL(place->world, "a read of gfn %#x of domain %u gave %d, and it is %s", gfn, place->id,
                   error, page->present ? "there" : "a hole");
    page->readers--;
    return error == -EFAULT ? 0 : error;
}

static int do_write(struct place *place, struct de_vcpu *vcpu, uint32_t gfn,
                    const struct de_simulation_step *step)
{
    struct world *world = place->world;
    struct page_model *page = page_write_begin(place, gfn);
    if (!page)
        return 0;
    uint8_t small[64];
    uint32_t offset = 0;
    uint32_t length = DE_PAGE_SIZE;
    const uint8_t *bytes = world->contents[place_group(place)][step->argument % CONTENTS];
    if (step->action == DE_SIMULATE_WRITE) {
        length = write_bytes(step->argument, &offset, small);
        bytes = small;
    }
    int error = de_machine_guest_write(vcpu, gfn, offset, bytes, length);
    world->result.writes++;
    if (!error) {
        memcpy(page->bytes + offset, bytes, length);
        page->content =
            step->action == DE_SIMULATE_FILL ? (uint8_t)(step->argument % CONTENTS) : CONTENT_OTHER;
    }
    page->exclusive = false;
    return error == -EFAULT ? 0 : error;
}

static int do_release(struct place *place, struct de_vcpu *vcpu, uint32_t gfn)
{
    struct page_model *page = page_write_begin(place, gfn);
    if (!page)
        return 0;
    page->releasing = true;
    int error = de_machine_guest_release(vcpu, gfn);
    page->releasing = false;
    if (!error)
        page->present = false;
    page->exclusive = false;
    return error == -EFAULT ? 0 : error;
}

static int do_obtain(struct place *place, struct de_vcpu *vcpu, uint32_t gfn)
{
    struct page_model *page = page_write_begin(place, gfn);
    if (!page)
        return 0;
    int error = de_machine_guest_obtain(vcpu, gfn);
    if (!error) {
        page->present = true;
        page_fill(place->world, place, page, 0);
    }
    page->exclusive = false;
    return error == -EEXIST || error == -ENOMEM ? 0 : error;
}

static int try_hypercall(struct place *place, struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset,
                         uint8_t *bytes, uint32_t length, bool to_guest)
{
    int error = -EFAULT;
    for (unsigned tries = 0; error == -EFAULT && tries < HYPERCALL_TRIES; tries++) {
        place->world->result.hypercalls_again += tries > 0;
        error = de_machine_guest_hypercall(vcpu, gfn, offset, bytes, length, to_guest);
    }
    place->world->result.hypercalls += error == 0;
    if (!error && !place->pages[gfn].present)
        WORLD_FAIL(place->world, "a hypercall copied gfn %#x of domain %u, and it is a hole", gfn, place->id);
    return error;
}

static int do_hypercall(struct place *place, struct de_vcpu *vcpu, uint32_t gfn,
                        const struct de_simulation_step *step)
{
    bool to_guest = step->argument % 2;
    struct page_model *page = to_guest ? page_write_begin(place, gfn) : page_read_begin(place, gfn);
    if (!page)
        return 0;
    uint8_t bytes[DE_PAGE_SIZE];
    uint32_t offset = 0;
    uint32_t length = to_guest ? write_bytes(step->argument, &offset, bytes) : DE_PAGE_SIZE;
    int error = try_hypercall(place, vcpu, gfn, offset, bytes, length, to_guest);
    if (!error && to_guest) {
        memcpy(page->bytes + offset, bytes, length);
        page->content = CONTENT_OTHER;
    } else if (!error) {
        page_check(place, gfn, bytes, "a hypercall");
    }
    if (to_guest)
        page->exclusive = false;
    else
        page->readers--;
    return error == -EFAULT ? 0 : error;
}

static int do_step(struct place *place, struct de_vcpu *vcpu, const struct de_simulation_step *step)
{
    uint32_t gfn = step->gfn % place->world->options.gfns;
    switch (step->action) {
    case DE_SIMULATE_READ:
        return do_read(place, vcpu, gfn);
    case DE_SIMULATE_WRITE:
    case DE_SIMULATE_FILL:
        return do_write(place, vcpu, gfn, step);
    case DE_SIMULATE_RELEASE:
        return do_release(place, vcpu, gfn);
    case DE_SIMULATE_OBTAIN:
        return do_obtain(place, vcpu, gfn);
    case DE_SIMULATE_HYPERCALL:
        return do_hypercall(place, vcpu, gfn, step);
    default:
        return 0;
    }
}

static void note_result(struct place *place, int error)
{
    struct world *world = place->world;
    world->result.operations++;
    place->operations++;
    scheduler_note(world->scheduler, (uint64_t)(int64_t)error);
    scheduler_progress(world->scheduler);
}

static void add_statistics(struct world *world, struct de_vcpu *vcpu)
{
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(vcpu, &statistics);
    world->result.faults += statistics.faults;
}

static void *run(void *argument)
{
    struct actor *actor = argument;
    struct world *world = actor->world;
    struct place *place = &world->places[actor->place];
    struct de_vcpu *vcpu = NULL;
    int error;
    do /* an allocation may fail */
        error = de_vcpu_create(world->machine, place->id, &vcpu);
    while (error == -ENOMEM && !place->leaving);
    if (!error)
        place->vcpus[actor->vcpu] = vcpu;
    struct de_simulation_step step;
    while (!error && !place->leaving && actor_next(actor, &step)) {
        error = do_step(place, vcpu, &step);
        note_result(place, error);
        scheduler_sleep(world->scheduler, random_below(&actor->random, REST_NS));
    }
    if (error && error != -ESHUTDOWN && !(error == -EINTR && (place->hostile || place->halted)) &&
        error != -ENOMEM && error != -ESRCH)
        WORLD_FAIL(world, "an access of domain %u gave %d", place->id, error);
    place->vcpus[actor->vcpu] = NULL;
    if (vcpu) {
        add_statistics(world, vcpu);
        de_vcpu_free(vcpu);
    }
    place->guests--;
    scheduler_wake(world->scheduler, &place->guests, true);
    return NULL;
}

void guests_start(struct place *place)
{
    struct world *world = place->world;
    for (uint32_t vcpu = 0; vcpu < world->options.vcpus; vcpu++) {
        struct actor *actor = &world->guests[place->number * DE_SIMULATION_MAX_VCPUS + vcpu];
        if (!scheduler_spawn(world->scheduler, PROCESS_MACHINE, "vCPU", run, actor))
            WORLD_FAIL(world, "no room for another vCPU");
        place->guests++;
    }
}

void guest_read_all(struct place *place)
{
    struct de_vcpu *vcpu;
    if (de_vcpu_create(place->world->machine, place->id, &vcpu))
        return;
    int error = 0;
    for (uint32_t gfn = 0; gfn < place->world->options.gfns && !error; gfn++)
        error = do_read(place, vcpu, gfn);
    /* Halted for a corrupt object it never gets there; the operator sees to that. */
    if (error && error != -ESHUTDOWN && error != -EINTR)
        WORLD_FAIL(place->world, "the last read of domain %u gave %d", place->id, error);
    add_statistics(place->world, vcpu);
    de_vcpu_free(vcpu);
}
