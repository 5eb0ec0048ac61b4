/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The paper's workload generator (section 5.2): allocate, read, write, free. */
#include "program_internal.h"

#include <errno.h>
#include <string.h>

static int write_bytes(struct de_program *program, uint32_t page, uint32_t offset, const uint8_t *bytes,
                       uint32_t len)
{
    return de_machine_guest_write(program->vcpu, program_gfn(program, page), offset, bytes, len);
}

static int allocate(struct de_program *program, uint32_t page)
{
    uint8_t bytes[DE_PAGE_SIZE];
    generate_page(&program->generator, page, bytes);
    int error = write_bytes(program, page, 0, bytes, DE_PAGE_SIZE);
    if (error == -EFAULT) {
        /* A hole: the guest gets a page from the host first. */
        error = de_machine_guest_obtain(program->vcpu, program_gfn(program, page));
        if (!error)
            error = write_bytes(program, page, 0, bytes, DE_PAGE_SIZE);
    }
    return error;
}

/* The page is resident after its bytes are changed, so that to check the rest of it moves nothing. */
static int change(struct de_program *program, uint32_t page)
{
    uint8_t expected[DE_PAGE_SIZE];
    generate_page(&program->generator, page, expected);
    for (uint32_t i = 0; i < GENERATOR_WRITES; i++) {
        /* Alike in every page: identical pages stay identical. */
        uint8_t *byte = &expected[generator_offset(i)];
        *byte ^= 0xff;
        int error = write_bytes(program, page, generator_offset(i), byte, 1);
        if (error)
            return error;
    }
    uint8_t found[DE_PAGE_SIZE];
    int error = de_machine_guest_read(program->vcpu, program_gfn(program, page), 0, found, DE_PAGE_SIZE);
    if (!error)
        program_count(&program->wrong_bytes, count_wrong(found, expected));
    return error;
}

static int free_page(struct de_program *program, uint32_t page)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    switch (program->options.free_as) {
    case DE_FREE_ZERO:
        return write_bytes(program, page, 0, zero, DE_PAGE_SIZE);
    case DE_FREE_RELEASE:
        return de_machine_guest_release(program->vcpu, program_gfn(program, page));
    default:
        return 0;
    }
}

static int run_operation(struct de_program *program, enum generator_phase phase, uint32_t page)
{
    uint8_t expected[DE_PAGE_SIZE];
    int error = 0;
    switch (phase) {
    case PHASE_READ:
        generate_page(&program->generator, page, expected);
        return program_read_page(program, page, expected);
    case PHASE_FREE:
        error = free_page(program, page);
        break;
    default:
        error = phase == PHASE_ALLOCATE ? allocate(program, page) : change(program, page);
    }
    if (error)
        return error;
    bool released = phase == PHASE_FREE && program->options.free_as == DE_FREE_RELEASE;
    bool kept = phase == PHASE_FREE && program->options.free_as == DE_FREE_KEEP;
    if (!kept)
        program_count(released ? &program->releases : &program->writes, 1);
    return 0;
}

int generator_run(struct de_program *program)
{
    for (uint32_t phase = PHASE_ALLOCATE; phase < PHASE_DONE; phase++) {
        uint64_t begin_ns = program->start_ns + phase * program->options.phase_ns;
        int error = program_sleep_until(program, begin_ns);
        atomic_store_explicit(&program->phase, phase, memory_order_relaxed);
        program->paced = 0;
        program->paced_since_ns = block_now_ns();
        for (uint32_t page = 0; page < program->options.gfns && !error; page++) {
            error = program_sleep_until(program, program_next_ns(program));
            if (!error)
                error = run_operation(program, (enum generator_phase)phase, page);
            program_paced(program);
        }
        if (error)
            return error;
    }
    atomic_store_explicit(&program->phase, PHASE_DONE, memory_order_relaxed);
    return program_sleep_until(program, BLOCK_FOREVER);
}
