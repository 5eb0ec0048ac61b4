/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Domains that the pager was told to let go of, and is not to become the pager of again: a file `released-N`
 * with the domain's UUID for each, in the state directory, so that a successor keeps to it. */
#ifndef DIFFENGINE_PAGER_RELEASED_H
#define DIFFENGINE_PAGER_RELEASED_H

#include <diffengine/hypervisor.h>
#include <stdbool.h>
#include <stdint.h>

/** Whether this very domain was released; a mark that another one with its id has left does not count. */
bool released_has(int directory, uint16_t domain, const struct de_uuid *uuid);
/** DE_OK or DE_SYSTEM. */
int released_add(int directory, uint16_t domain, const struct de_uuid *uuid);
void released_remove(int directory, uint16_t domain);

#endif
