/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is computed between two points: it happens at once, and then takes its time. */
#include "replacements.h"

#include <diffengine/machine.h>

static void work(uint64_t ns)
{
    struct scheduler *scheduler = scheduler_of_thread();
    if (scheduler && scheduler->current && scheduler->models_work)
        scheduler_work(scheduler, ns);
}

int simulation_decompress_page(struct de_compress_context *context, const uint8_t *payload, size_t bytes,
                               uint8_t *page)
{
    int status = de_decompress_page(context, payload, bytes, page);
    work(SIMULATION_DECOMPRESS_NS);
    return status;
}

int simulation_patch_decode(const uint8_t *patch, size_t bytes, const uint8_t *reference, uint8_t *page)
{
    int status = de_patch_decode(patch, bytes, reference, page);
    work(SIMULATION_PATCH_NS);
    return status;
}

int simulation_dense_decode(const struct de_dense_model *model, const uint8_t *payload, size_t bytes,
                            bool has_reference, struct de_dense_window *window)
{
    int status = de_dense_decode(model, payload, bytes, has_reference, window);
    work(SIMULATION_DENSE_NS);
    return status;
}

int simulation_guest_read(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer, uint32_t len)
{
    work(SIMULATION_GUEST_NS);
    return de_machine_guest_read(vcpu, gfn, offset, buffer, len);
}

int simulation_guest_write(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                           uint32_t len)
{
    work(SIMULATION_GUEST_NS);
    return de_machine_guest_write(vcpu, gfn, offset, buffer, len);
}
