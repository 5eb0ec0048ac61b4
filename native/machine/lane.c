/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A lane's hand-over between two processes. */
#define _GNU_SOURCE
#include "protocol.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000u
/** A yield that lasts longer than this was somebody's turn; then there is no spinning for a while. */
#define CROWDED_NS 200000u
#define CROWDED_FOR_NS 100000000u

static _Atomic(uint32_t) *sleeps(struct lane *lane, enum lane_side side)
{
    return side == LANE_CLIENT ? &lane->client_sleeps : &lane->machine_sleeps;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/*
 * The other side may need this very processor: with a pause instruction in place of the yield a call took 43
 * us on two busy cores, this way 1.5 us (and 1.9 us without any spinning). Where others want the processor a
 * yield may last as long as all of their turns; who sleeps gets on as soon as he is woken.
 */
static bool spin(const struct lane *lane, uint32_t state, uint64_t spin_ns)
{
    static _Thread_local uint64_t crowded_until_ns;
    uint64_t start_ns = now_ns(), last_ns = start_ns;
    if (start_ns < crowded_until_ns)
        return false;
    for (;;) {
        if (atomic_load_explicit(&lane->state, memory_order_acquire) != state)
            return true;
        if (last_ns - start_ns >= spin_ns)
            return false;
        sched_yield();
        uint64_t yielded_ns = now_ns();
        if (yielded_ns - last_ns > CROWDED_NS)
            crowded_until_ns = yielded_ns + CROWDED_FOR_NS;
        last_ns = yielded_ns;
    }
}

bool lane_await(struct lane *lane, uint32_t state, enum lane_side side, uint64_t spin_ns,
                uint64_t deadline_ns)
{
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                      .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    if (spin_ns && spin(lane, state, spin_ns))
        return true;
    atomic_store(sleeps(lane, side), side);
    if (atomic_load(&lane->state) == state)
        syscall(SYS_futex, &lane->state, FUTEX_WAIT_BITSET, state,
                deadline_ns == LANE_FOREVER ? NULL : &deadline, NULL, side);
    atomic_store(sleeps(lane, side), 0);
    return atomic_load(&lane->state) != state;
}

void lane_hand_over(struct lane *lane, uint32_t state, enum lane_side other)
{
    atomic_store(&lane->state, state);
    uint32_t untrusted_sides = atomic_load(sleeps(lane, other));
    if (untrusted_sides)
        lane_wake(lane, untrusted_sides);
}

void lane_wake(struct lane *lane, uint32_t sides)
{
    syscall(SYS_futex, &lane->state, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL, sides);
}
