/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Other processes of the host: they map guests' pages, read-only for a while, or read-write as a device. */
#include "world.h"

#include <diffengine/status.h>
#include <errno.h>
#include <string.h>

#define HOLD_NS 200000u
#define PATH_BYTES 128u
/** Fewer than so many pages are asked for at a time. */
#define ASKED 20u
/** With frames to be had, nothing that a pager does takes so long. */
#define BRING_IN_MS 50u
#define TIGHT_BRING_IN_MS 5u
#define NOMINATED 200u
#define GRANT_TRIES 20u
#define GRANT_RETRY_NS 20000u

/* Ask for a row of pages without waiting for them: that fills a ring. */
static void ask(struct world *world, struct place *place, uint32_t gfn, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t asked = (gfn + i) % world->options.gfns;
        uint8_t *mapped = NULL;
        int32_t error = 0;
        if (de_machine_map(world->machine, place->id, false, &asked, 1, &mapped, &error) == 1)
            de_machine_unmap(world->machine, (const uint8_t *const *)&mapped, 1);
    }
}

/* Use a read-only mapping for a while. A shared frame may become another page's alone meanwhile; a private
 * one stays this one's. */
static void look(struct world *world, struct place *place, uint32_t gfn, const uint8_t *mapped,
                 uint32_t argument)
{
    bool private = audit_is_private(world, place, gfn, mapped);
    if (private)
        page_check(place, gfn, mapped, "a process of the host");
    scheduler_sleep(world->scheduler, argument % HOLD_NS);
    if (private)
        page_check(place, gfn, mapped, "a process of the host");
    de_machine_unmap(world->machine, &mapped, 1);
}

/* Write through a read-write mapping, some time after it was made. */
static void write_mapped(struct world *world, struct page_model *page, uint8_t *mapped, uint32_t argument)
{
    uint8_t bytes[64];
    uint32_t offset;
    uint32_t length = write_bytes(argument, &offset, bytes);
    scheduler_sleep(world->scheduler, argument % HOLD_NS);
    for (uint32_t i = 0; i < length; i++) {
        mapped[offset + i] = page->bytes[offset + i] = bytes[i];
        simulation_point();
    }
    page->content = CONTENT_OTHER;
    de_machine_unmap(world->machine, (const uint8_t *const *)&mapped, 1);
}

static void hold(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    struct page_model *page = page_read_begin(place, gfn);
    if (!page)
        return;
    uint8_t *mapped = NULL;
    int32_t error = 0;
    if (de_machine_map(world->machine, place->id, false, &gfn, 1, &mapped, &error) == 1)
        look(world, place, gfn, mapped, argument);
    page->readers--;
}

static void attach(struct world *world, struct place *place)
{
    char path[PATH_BYTES];
    /* As a device model that is started anew. */
    if (place->holds && place->attached != place->tables)
        host_detach(place);
    if (place->holds || !place->known)
        return;
    files_holds_path(world, place->id, path, sizeof path);
    unsigned table = place->tables;
    if (de_holds_attach(path, &place->holds) == DE_OK)
        place->attached = table;
    else
        place->holds = NULL;
}

static bool is_served(const struct place *place)
{
    return place->world->pager_ready && place->attached == place->tables && place->paging == PAGED &&
           !place->halted && !place->leaving;
}

/* Held, and not out any more: it is in, and stays in. @return whether that can be relied on. */
static bool bring_in(struct world *world, struct place *place, uint32_t gfn)
{
    uint64_t crashes = world->result.pager_crashes;
    bool served = is_served(place);
    bool out = de_holds_hints(place->holds, gfn) & DE_HOLDS_OUT;
    int status = de_holds_bring_in(place->holds, &gfn, 1, world->tight ? TIGHT_BRING_IN_MS : BRING_IN_MS);
    world->result.brought_in += out && status == DE_OK;
    served = served && is_served(place) && world->result.pager_crashes == crashes;
    if (status == DE_BUSY && served && !world->tight)
        WORLD_FAIL(world, "gfn %#x of domain %u was asked for, and for %u ms nobody heard", gfn, place->id,
                   BRING_IN_MS);
    return status == DE_OK && served;
}

/* Where there is a page that a dead pager may have left locked, a device model comes across it more often
 * than it would. */
static uint32_t choose_page(struct world *world, struct place *place, uint32_t gfn)
{
    for (uint32_t i = 0; !world->pager && i < world->options.gfns; i++) {
        uint32_t candidate = (gfn + i) % world->options.gfns;
        if (audit_page_is_nominated(world, place, candidate))
            return candidate;
    }
    return gfn;
}

/* A device model takes a hold before it maps, and brings in what is out; without the pager's table it can't,
 * and the domain is not evicted from. */
static void device_write(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    struct page_model *page = page_write_begin(place, gfn);
    if (!page)
        return;
    uint8_t *mapped = NULL;
    int32_t error = 0;
    attach(world, place);
    struct de_holds *holds = place->holds;
    bool held = holds && de_holds_take(holds, gfn) == DE_OK;
    bool in = held && argument >> 31 && bring_in(world, place, gfn);
    if (de_machine_map(world->machine, place->id, true, &gfn, 1, &mapped, &error) == 1) {
        write_mapped(world, page, mapped, argument);
        world->result.device_writes++;
    } else if (in && error == -ENOENT && !place->halted && !place->leaving) {
        WORLD_FAIL(world, "gfn %#x of domain %u is held and was brought in, and is out", gfn, place->id);
    }
    if (held)
        de_holds_drop(holds, gfn);
    page->exclusive = false;
}

/* A backend has no hold: the hypervisor refuses it what is nominated or out until the pager has it back. */
static void grant(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    bool writable = argument % 2;
    struct page_model *page = writable ? page_write_begin(place, gfn) : page_read_begin(place, gfn);
    if (!page)
        return;
    uint8_t *mapped = NULL;
    int error = -EAGAIN;
    for (unsigned tries = 0; error == -EAGAIN && tries < GRANT_TRIES && !place->leaving; tries++) {
        if (tries)
            scheduler_sleep(world->scheduler, GRANT_RETRY_NS);
        error = de_machine_grant_map(world->machine, place->id, writable, gfn, &mapped);
    }
    if (!error && writable) {
        write_mapped(world, page, mapped, argument);
        world->result.grant_writes++;
    } else if (!error) {
        look(world, place, gfn, mapped, argument);
    }
    if (writable)
        page->exclusive = false;
    else
        page->readers--;
}

/* Another tool that shares, too: its nominations make pages shared again whose handles went stale. */
static void nominate(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    const struct de_hypervisor *hypervisor = &world->hypervisor;
    for (uint32_t i = 0; i < argument % NOMINATED && !place->leaving; i++) {
        uint64_t handle;
        hypervisor->operations->share_nominate(hypervisor->context, place->id,
                                               (gfn + i) % world->options.gfns, &handle);
    }
}

static void act(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    uint32_t gfn = step->gfn % world->options.gfns;
    switch (step->action) {
    case DE_SIMULATE_HOLD:
        if (step->argument % 4 == 0)
            ask(world, place, gfn, (step->argument >> 2) % ASKED);
        else
            hold(world, place, gfn, step->argument);
        break;
    case DE_SIMULATE_DEVICE_WRITE:
        if (place->device)
            device_write(world, place, choose_page(world, place, gfn), step->argument);
        break;
    case DE_SIMULATE_GRANT:
        grant(world, place, gfn, step->argument);
        break;
    case DE_SIMULATE_NOMINATE:
        nominate(world, place, gfn, step->argument);
        break;
    default:
        break;
    }
}

void host_detach(struct place *place)
{
    de_holds_close(place->holds);
    place->holds = NULL;
}

void *host_run(void *argument)
{
    struct world *world = argument;
    struct de_simulation_step step;
    while (!world->calm && actor_next(&world->host, &step)) {
        struct place *place = &world->places[step.domain % world->options.domains];
        if (place->id && !place->leaving) {
            place->users++;
            act(world, place, &step);
            place->users--;
        }
        scheduler_sleep(world->scheduler, step.argument >> 16);
    }
    world->host_done = true;
    return NULL;
}
