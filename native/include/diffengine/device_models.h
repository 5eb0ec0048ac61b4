/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file device_models.h
 * How a device model gets its domain's hold table (holds.h) from the pager: over the socket `device-models`
 * in the state directory (SOCK_SEQPACKET). The device model says hello; it is told at once whether the
 * pager speaks its version, and gets the table as soon as the pager has the domain, perhaps much later (a
 * device model starts before its domain is known to anybody). A domain that one came for has a device model
 * (de_pager_set_device_model()). From then on the table is all that both sides need, whoever is the pager.
 * Should it end (de_holds_ended()), the device model says hello once more, for the same domain: over this
 * connection, if it is still there, since it may be allowed no other by then.
 */
#ifndef DIFFENGINE_DEVICE_MODELS_H
#define DIFFENGINE_DEVICE_MODELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DE_DEVICE_MODELS_SOCKET "device-models"
#define DE_DEVICE_MODELS_MAGIC 0x6d644544u
#define DE_DEVICE_MODELS_VERSION 1u

struct de_device_model_hello {
    uint32_t magic;
    uint16_t version;
    uint16_t domain;
};

enum de_device_model_answer_kind {
    DE_DEVICE_MODEL_TABLE = 0,   /**< a descriptor of the table comes along; it is not locked */
    DE_DEVICE_MODEL_WAIT = 1,    /**< the pager speaks this version; the table will come */
    DE_DEVICE_MODEL_VERSION = 2, /**< the pager speaks another version; the connection ends */
};

struct de_device_model_answer {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
};

/* The pager's side. */

struct de_pager;
struct de_device_models;

/** Listen, on a thread of its own. @return DE_OK, DE_NO_MEMORY or DE_SYSTEM. */
int de_device_models_create(const char *directory, struct de_pager *pager, struct de_device_models **models);
/** End the thread and the connections; NULL: nothing. Device models that have their table keep it. Before the
 * pager is freed, which the thread uses. */
void de_device_models_free(struct de_device_models *models);
/** Whether what came is a hello, whatever the version. @param untrusted Nothing of it has been looked at. */
bool de_device_model_hello_check(const void *untrusted, size_t bytes, struct de_device_model_hello *hello);

#endif
