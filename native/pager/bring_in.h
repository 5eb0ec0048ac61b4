/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file bring_in.h
 * What a device model asks for: a thread per domain that has one loads pages that it is about to map. So a
 * device model that asks without end costs its own domain, and no guest's fault waits for it. Another one
 * reads what is in swap, so that a page in memory waits for no disk.
 */
#ifndef DIFFENGINE_PAGER_BRING_IN_H
#define DIFFENGINE_PAGER_BRING_IN_H

#include "internal.h"

struct bring_in;

/** DE_OK, DE_NO_MEMORY or DE_SYSTEM. The domain, with its holds, outlives it. */
int bring_in_create(struct de_pager *pager, struct pager_domain *domain, struct bring_in **bring_in);
/** Its thread is stopped. */
void bring_in_free(struct bring_in *bring_in);
/** 0 or an errno value. */
int bring_in_start(struct bring_in *bring_in);
/** End its thread, if it has one, and wait for that; what is asked for then stays so until it is started
 * again. */
void bring_in_stop(struct bring_in *bring_in);
/** Carry out what is asked for now, without a thread. @return how many requests were answered. */
size_t bring_in_serve(struct bring_in *bring_in);

#endif
