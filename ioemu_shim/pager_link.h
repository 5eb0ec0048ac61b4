/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file pager_link.h
 * The pager, as the shim sees it: a connection until the hold table is there, the table from then on.
 * The caller's lock guards all of it, except where it says otherwise.
 */
#ifndef DIFFENGINE_IOEMU_PAGER_LINK_H
#define DIFFENGINE_IOEMU_PAGER_LINK_H

#include <diffengine/holds.h>

enum link_state {
    LINK_NONE,     /**< no pager, or one that speaks another version */
    LINK_WAITING,  /**< it will send the table */
    LINK_RECEIVED, /**< the table is here, not attached: link_attach() */
    LINK_ATTACHED,
};

/** Connect, while the process may still do so. */
void link_connect(void);
/** Go on: say hello for the domain, look for the table. Does not wait, but for the first answer (a second at
 * most). */
enum link_state link_continue(uint32_t domain);
/** LINK_RECEIVED: from now on the pager evicts, but nothing that is held. All mappings must be known to the
 * caller, who takes their holds at once, before anything is unmapped. @return whether it worked. */
bool link_attach(void);
/** NULL unless attached; then for ever the same. Any thread, no lock. */
struct de_holds *link_holds(void);

#endif
