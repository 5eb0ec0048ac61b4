/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file fiber.h
 * Stacks that one thread switches between. Nothing here knows of time or of who runs next.
 *
 * AddressSanitizer is told of every switch; ThreadSanitizer is not supported (there is only one thread).
 */
#ifndef DIFFENGINE_SIMULATION_FIBER_H
#define DIFFENGINE_SIMULATION_FIBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIBER_STACK_BYTES ((size_t)128 << 10)

/** Where a flow of control stands that does not run now. */
struct fiber_context {
    void *stack_pointer; /**< x86-64 */
    void *machine_state; /**< elsewhere: a ucontext_t */
    uint8_t *stack;      /**< lowest address; NULL: the thread's own */
    void *fake_stack;    /**< AddressSanitizer's, as are these two, of the thread's own stack */
    const void *own_stack;
    size_t own_bytes;
};

/** @return false: no memory. @p entry never returns. */
bool fiber_create(struct fiber_context *context, void (*entry)(void));
/** Make an old stack run @p entry from its start; what was on it is lost. */
void fiber_restart(struct fiber_context *context, void (*entry)(void));
void fiber_destroy(struct fiber_context *context);

/** Leave @p from and go on where @p to stands. @p final: @p from never runs again as it is. */
void fiber_switch(struct fiber_context *from, struct fiber_context *to, bool final);
/** The first thing that an entry function must call. */
void fiber_entered(void);

#endif
