/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file models.h
 * The code tables of the store's MODEL objects, made once when the object comes, so that the fault path only
 * looks them up. Adding and removing are for the holder of the store's lock; finding is for any reader that
 * has entered.
 */
#ifndef DIFFENGINE_STORE_MODELS_H
#define DIFFENGINE_STORE_MODELS_H

#include <diffengine/dense.h>
#include <stdatomic.h>

/** A trust group has one model, and a second one while it changes over. */
#define DE_STORE_MAX_MODELS 256u

struct de_model_entry {
    _Atomic uint32_t id; /**< DE_NONE: free */
    struct de_dense_model *_Atomic model;
};

struct de_models {
    _Atomic uint32_t used; /**< entries ever used: finders look no further */
    struct de_model_entry entries[DE_STORE_MAX_MODELS];
};

void de_models_init(struct de_models *models);
void de_models_free(struct de_models *models);

/** Keep @p model under @p id; ownership passes. @return DE_OK or DE_FULL. */
int de_models_add(struct de_models *models, uint32_t id, struct de_dense_model *model);

/** Free the model of @p id, if it is one, when no reader can see it any more. */
void de_models_remove(struct de_models *models, uint32_t id);

/** The model of @p id, or NULL. */
const struct de_dense_model *de_models_find(const struct de_models *models, uint32_t id);

/** Memory of all models. */
uint64_t de_models_bytes(const struct de_models *models);

#endif
