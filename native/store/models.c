/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "models.h"
#include <diffengine/status.h>

void de_models_init(struct de_models *models)
{
    atomic_init(&models->used, 0);
    for (uint32_t i = 0; i < DE_STORE_MAX_MODELS; i++) {
        atomic_init(&models->entries[i].id, DE_NONE);
        atomic_init(&models->entries[i].model, NULL);
    }
}

void de_models_free(struct de_models *models)
{
    for (uint32_t i = 0; i < DE_STORE_MAX_MODELS; i++)
        de_dense_model_free(atomic_load(&models->entries[i].model));
}

int de_models_add(struct de_models *models, uint32_t id, struct de_dense_model *model)
{
    for (uint32_t i = 0; i < DE_STORE_MAX_MODELS; i++) {
        if (atomic_load(&models->entries[i].id) != DE_NONE)
            continue;
        atomic_store(&models->entries[i].model, model);
        atomic_store(&models->entries[i].id, id);
        if (i >= atomic_load(&models->used))
            atomic_store(&models->used, i + 1);
        return DE_OK;
    }
    return DE_FULL;
}

static const struct de_model_entry *entry_of(const struct de_models *models, uint32_t id)
{
    uint32_t used = atomic_load_explicit(&models->used, memory_order_acquire);
    for (uint32_t i = 0; i < used; i++)
        if (atomic_load_explicit(&models->entries[i].id, memory_order_acquire) == id)
            return &models->entries[i];
    return NULL;
}

void de_models_remove(struct de_models *models, uint32_t id)
{
    struct de_model_entry *entry = (struct de_model_entry *)entry_of(models, id);
    if (!entry)
        return;
    atomic_store(&entry->id, DE_NONE);
    de_dense_model_free(atomic_exchange(&entry->model, NULL));
}

const struct de_dense_model *de_models_find(const struct de_models *models, uint32_t id)
{
    const struct de_model_entry *entry = entry_of(models, id);
    return entry ? atomic_load_explicit(&entry->model, memory_order_acquire) : NULL;
}

uint64_t de_models_bytes(const struct de_models *models)
{
    uint64_t bytes = 0;
    uint32_t used = atomic_load(&models->used);
    for (uint32_t i = 0; i < used; i++) {
        const struct de_dense_model *model = atomic_load(&models->entries[i].model);
        bytes += model ? de_dense_model_bytes(model) : 0;
    }
    return bytes;
}
