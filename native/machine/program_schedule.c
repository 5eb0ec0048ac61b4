/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When a program's next operation is, and which page it is of. */
#include "program_internal.h"

#include <errno.h>

#define NS_PER_S 1e9
#define NS_PER_MS 1000000u
/* What a guest could not do while it stalled it does afterwards, but not more than this: a guest that was
 * paused for a minute does not then run flat out for another. */
#define MAX_BACKLOG_NS (100 * NS_PER_MS)

int program_sleep_until(struct de_program *program, uint64_t deadline_ns)
{
    pthread_mutex_lock(&program->lock);
    while (!program->stopping && (deadline_ns == BLOCK_FOREVER || block_now_ns() < deadline_ns))
        if (!block_until(&program->wake, &program->lock, deadline_ns))
            break;
    bool stopping = program->stopping;
    pthread_mutex_unlock(&program->lock);
    return stopping ? -EINTR : 0;
}

uint64_t program_next_ns(struct de_program *program)
{
    double per_s = program->options.operations_per_s;
    uint64_t now_ns = block_now_ns();
    if (per_s == 0)
        return now_ns;
    double due = (double)program->paced * NS_PER_S / per_s;
    if (due > 0x1p62)
        return BLOCK_FOREVER;
    uint64_t due_ns = program->paced_since_ns + (uint64_t)due;
    if (due_ns + MAX_BACKLOG_NS < now_ns) {
        program->paced_since_ns += now_ns - due_ns - MAX_BACKLOG_NS;
        return now_ns;
    }
    /* Sleeping a millisecond at a time costs a guest of 10,000 operations a second a tenth of the wake-ups.
     */
    return due_ns > now_ns && due_ns - now_ns < NS_PER_MS ? now_ns + NS_PER_MS : due_ns;
}

void program_paced(struct de_program *program)
{
    program->paced++;
}

uint64_t program_random(struct de_program *program)
{
    return mix(program->random++);
}

double program_chance(struct de_program *program)
{
    return (double)(program_random(program) >> 11) * 0x1p-53;
}

static uint32_t choose_hot(struct de_program *program)
{
    double chance = program_chance(program);
    uint32_t low = 0;
    uint32_t high = program->options.hot_count - 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (program->popularity[middle] > chance)
            high = middle;
        else
            low = middle + 1;
    }
    return program->options.hot[low];
}

uint32_t program_choose(struct de_program *program)
{
    if (program_chance(program) < program->options.excursion_fraction)
        return (uint32_t)(program_random(program) % program->options.gfns);
    return choose_hot(program);
}
