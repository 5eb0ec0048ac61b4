/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where steps come from: the scenario, or a stream of random numbers of the actor's own. */
#include "world.h"

/** The operator's weights are per so many of its ticks: most of the time nothing happens. */
#define OPERATOR_TICKS 1000u

static bool mine(const struct actor *actor, const struct de_simulation_step *step)
{
    const struct de_simulation_options *options = &actor->world->options;
    if (step->action < actor->first_action || step->action > actor->last_action)
        return false;
    return !actor->guest ||
           (step->domain % options->domains == actor->place && step->vcpu % options->vcpus == actor->vcpu);
}

static bool from_scenario(struct actor *actor, struct de_simulation_step *step)
{
    const struct de_simulation_options *options = &actor->world->options;
    while (actor->cursor < options->step_count) {
        *step = options->steps[actor->cursor++];
        if (mine(actor, step))
            return true;
    }
    return false;
}

static uint8_t draw_action(struct actor *actor)
{
    const uint32_t *weights = actor->world->options.weights;
    uint32_t total = actor->first_action == DE_SIMULATE_HOG ? OPERATOR_TICKS : 0;
    uint32_t sum = 0;
    for (uint8_t action = actor->first_action; action <= actor->last_action; action++)
        sum += weights[action];
    if (total < sum)
        total = sum;
    uint32_t drawn = total ? random_below(&actor->random, total) : 0;
    for (uint8_t action = actor->first_action; action <= actor->last_action; action++) {
        if (drawn < weights[action])
            return action;
        drawn -= weights[action];
    }
    return DE_SIMULATE_ACTIONS;
}

/* A guest is at home in a quarter of its pages. */
static uint32_t draw_gfn(struct actor *actor)
{
    uint32_t gfns = actor->world->options.gfns;
    if (actor->guest && random_below(&actor->random, 8))
        gfns = (gfns + 3) / 4;
    return random_below(&actor->random, gfns);
}

bool actor_next(struct actor *actor, struct de_simulation_step *step)
{
    const struct de_simulation_options *options = &actor->world->options;
    if (options->steps)
        return from_scenario(actor, step);
    if (actor->guest && actor->world->result.operations >= options->operations)
        return false;
    *step = (struct de_simulation_step){
        .action = draw_action(actor),
        .domain = actor->guest ? actor->place : (uint8_t)random_below(&actor->random, options->domains),
        .other_domain = (uint8_t)random_below(&actor->random, options->domains),
        .vcpu = actor->vcpu,
        .gfn = (uint16_t)draw_gfn(actor),
        .other_gfn = (uint16_t)draw_gfn(actor),
        .argument = (uint32_t)random_next(&actor->random),
    };
    return true;
}

static struct actor actor_create(struct world *world, uint64_t number, uint8_t first, uint8_t last)
{
    return (struct actor){
        .world = world,
        .random = {.state = simulation_mix(world->options.seed ^ simulation_mix(number))},
        .first_action = first,
        .last_action = last,
    };
}

void actors_create(struct world *world)
{
    uint64_t number = 1;
    for (uint32_t place = 0; place < world->options.domains; place++) {
        for (uint32_t vcpu = 0; vcpu < world->options.vcpus; vcpu++) {
            struct actor *actor = &world->guests[place * DE_SIMULATION_MAX_VCPUS + vcpu];
            *actor = actor_create(world, number++, DE_SIMULATE_READ, DE_SIMULATE_HYPERCALL);
            actor->guest = true;
            actor->place = (uint8_t)place;
            actor->vcpu = (uint8_t)vcpu;
        }
    }
    world->daemon = actor_create(world, number++, DE_SIMULATE_WATCH, DE_SIMULATE_RELEASE_DOMAIN);
    world->host = actor_create(world, number++, DE_SIMULATE_HOLD, DE_SIMULATE_NOMINATE);
    world->operator= actor_create(world, number++, DE_SIMULATE_HOG, DE_SIMULATE_CLAIM);
    world->disturbance.state = simulation_mix(world->options.seed ^ simulation_mix(number));
}
