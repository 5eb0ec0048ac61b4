/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fiber.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADDRESS_SANITIZER 1
#endif
#endif

#ifdef ADDRESS_SANITIZER
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

/* The thread's own stack; the system takes its time to tell. */
static void find_own_stack(struct fiber_context *context)
{
    pthread_attr_t attributes;
    void *address;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &context->own_bytes);
    pthread_attr_destroy(&attributes);
    context->own_stack = address;
}

static void announce(struct fiber_context *from, struct fiber_context *to, bool final)
{
    if (!to->stack && !to->own_stack)
        find_own_stack(to);
    __sanitizer_start_switch_fiber(final ? NULL : &from->fake_stack, to->stack ? to->stack : to->own_stack,
                                   to->stack ? FIBER_STACK_BYTES : to->own_bytes);
}

static void arrived(const struct fiber_context *context)
{
    __sanitizer_finish_switch_fiber(context ? context->fake_stack : NULL, NULL, NULL);
}

/* A stack that is left for good still has its functions' guard zones. */
static void forget(const struct fiber_context *context)
{
    ASAN_UNPOISON_MEMORY_REGION(context->stack, FIBER_STACK_BYTES);
}
#else
static void announce(struct fiber_context *from, struct fiber_context *to, bool final)
{
    (void)from, (void)to, (void) final;
}

static void arrived(const struct fiber_context *context)
{
    (void)context;
}

static void forget(const struct fiber_context *context)
{
    (void)context;
}
#endif

#ifdef __x86_64__
/* What the System V ABI wants kept over a call: six registers. The rest the compiler has saved already. */
void simulation_switch(void **save, void *load);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden simulation_switch\n"
        ".globl simulation_switch\n"
        ".type simulation_switch, @function\n"
        "simulation_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size simulation_switch, .-simulation_switch\n");

#define SAVED_REGISTERS 6u

static bool prepare(struct fiber_context *context, void (*entry)(void))
{
    /* `entry` finds the stack as a call would leave it: a return address on a 16-byte boundary less 8. */
    void **top = (void **)(context->stack + FIBER_STACK_BYTES);
    void **frame = top - SAVED_REGISTERS - 2;
    for (size_t i = 0; i < SAVED_REGISTERS; i++)
        frame[i] = NULL;
    frame[SAVED_REGISTERS] = (void *)entry;
    frame[SAVED_REGISTERS + 1] = NULL;
    context->stack_pointer = frame;
    return true;
}

static void change(struct fiber_context *from, struct fiber_context *to)
{
    simulation_switch(&from->stack_pointer, to->stack_pointer);
}
#else
static bool prepare(struct fiber_context *context, void (*entry)(void))
{
    if (!context->machine_state)
        context->machine_state = malloc(sizeof(ucontext_t));
    ucontext_t *state = context->machine_state;
    if (!state || getcontext(state))
        return false;
    state->uc_stack.ss_sp = context->stack;
    state->uc_stack.ss_size = FIBER_STACK_BYTES;
    state->uc_link = NULL;
    makecontext(state, entry, 0);
    return true;
}

static void change(struct fiber_context *from, struct fiber_context *to)
{
    if (!from->machine_state)
        from->machine_state = malloc(sizeof(ucontext_t));
    if (!from->machine_state)
        abort();
    swapcontext(from->machine_state, to->machine_state);
}
#endif

bool fiber_create(struct fiber_context *context, void (*entry)(void))
{
    const size_t guard = 4096;
    uint8_t *memory = mmap(NULL, FIBER_STACK_BYTES + guard, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    mprotect(memory, guard, PROT_NONE);
    *context = (struct fiber_context){.stack = memory + guard};
    if (prepare(context, entry))
        return true;
    fiber_destroy(context);
    return false;
}

void fiber_restart(struct fiber_context *context, void (*entry)(void))
{
    forget(context);
    context->fake_stack = NULL;
    prepare(context, entry);
}

void fiber_destroy(struct fiber_context *context)
{
    free(context->machine_state);
    context->machine_state = NULL;
    if (!context->stack)
        return;
    forget(context);
    munmap(context->stack - 4096, FIBER_STACK_BYTES + 4096);
    context->stack = NULL;
}

void fiber_switch(struct fiber_context *from, struct fiber_context *to, bool final)
{
    announce(from, to, final);
    change(from, to);
    arrived(from);
}

void fiber_entered(void)
{
    arrived(NULL);
}
