/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Other processes of the host: they map guests' pages, read-only for a while, or read-write as a device. */
#include "world.h"

#include <diffengine/status.h>
#include <string.h>

#define HOLD_NS 200000u
#define PATH_BYTES 128u
/** Fewer than so many pages are asked for at a time. */
#define ASKED 20u

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

static void hold(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    struct page_model *page = page_read_begin(place, gfn);
    if (!page)
        return;
    uint8_t *mapped = NULL;
    int32_t error = 0;
    if (de_machine_map(world->machine, place->id, false, &gfn, 1, &mapped, &error) == 1) {
        /* A shared frame may become another page's alone while it is mapped; a private one stays this one's.
         */
        bool private = audit_is_private(world, place, gfn, mapped);
        if (private)
            page_check(place, gfn, mapped, "a process of the host");
        scheduler_sleep(world->scheduler, argument % HOLD_NS);
        if (private)
            page_check(place, gfn, mapped, "a process of the host");
        de_machine_unmap(world->machine, (const uint8_t *const *)&mapped, 1);
    }
    page->readers--;
}

/* A device model takes a hold before it maps; without the pager's table it can't, and the domain is not
 * evicted. */
static bool take_hold(struct world *world, struct place *place, uint32_t gfn)
{
    char path[PATH_BYTES];
    files_holds_path(world, place->id, path, sizeof path);
    if (!place->holds && place->known && de_holds_attach(path, &place->holds) != DE_OK)
        place->holds = NULL;
    return place->holds && de_holds_take(place->holds, gfn) == DE_OK;
}

void host_detach(struct place *place)
{
    de_holds_close(place->holds);
    place->holds = NULL;
}

static void device_write(struct world *world, struct place *place, uint32_t gfn, uint32_t argument)
{
    struct page_model *page = page_write_begin(place, gfn);
    if (!page)
        return;
    uint8_t *mapped = NULL;
    int32_t error = 0;
    bool held = take_hold(world, place, gfn);
    if (de_machine_map(world->machine, place->id, true, &gfn, 1, &mapped, &error) == 1) {
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
        world->result.device_writes++;
    }
    if (held)
        de_holds_drop(place->holds, gfn);
    page->exclusive = false;
}

void *host_run(void *argument)
{
    struct world *world = argument;
    struct de_simulation_step step;
    while (!world->calm && actor_next(&world->host, &step)) {
        struct place *place = &world->places[step.domain % world->options.domains];
        uint32_t gfn = step.gfn % world->options.gfns;
        if (place->id && !place->leaving) {
            place->users++;
            if (step.action == DE_SIMULATE_HOLD && step.argument % 4 == 0)
                ask(world, place, gfn, (step.argument >> 2) % ASKED);
            else if (step.action == DE_SIMULATE_HOLD)
                hold(world, place, gfn, step.argument);
            else if (step.action == DE_SIMULATE_DEVICE_WRITE && place->device)
                device_write(world, place, gfn, step.argument);
            place->users--;
        }
        scheduler_sleep(world->scheduler, step.argument >> 16);
    }
    world->host_done = true;
    return NULL;
}
