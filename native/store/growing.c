/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "growing.h"
#include <diffengine/status.h>
#include <sys/mman.h>

#define STEP_BYTES ((size_t)65536)

int de_growing_create(struct de_growing *array, size_t element_bytes, uint64_t limit)
{
    size_t bytes = (element_bytes * limit + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
    void *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return DE_NO_MEMORY;
    *array = (struct de_growing){.base = base, .element_bytes = element_bytes, .reserved_bytes = bytes};
    return DE_OK;
}

void de_growing_free(struct de_growing *array)
{
    if (array->base)
        munmap(array->base, array->reserved_bytes);
    array->base = NULL;
}

int de_growing_reach(struct de_growing *array, uint64_t count)
{
    if (count * array->element_bytes <= array->usable_bytes)
        return DE_OK;
    if (count * array->element_bytes > array->reserved_bytes)
        return DE_FULL;
    size_t bytes = array->usable_bytes ? array->usable_bytes : STEP_BYTES;
    while (bytes < count * array->element_bytes)
        bytes *= 2;
    if (bytes > array->reserved_bytes)
        bytes = array->reserved_bytes;
    if (mprotect(array->base, bytes, PROT_READ | PROT_WRITE))
        return DE_NO_MEMORY;
    array->usable_bytes = bytes;
    return DE_OK;
}
