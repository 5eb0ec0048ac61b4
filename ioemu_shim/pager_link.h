/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file pager_link.h
 * The pager, as the shim sees it: a connection until the hold table is there, the table from then on, until
 * that ends (the domain was released, or its pager ended in good order); then a connection again, if possible
 * the same one, as a process that gave up its privileges can make no other. The caller's lock guards all of
 * it, except where it says otherwise.
 */
#ifndef DIFFENGINE_IOEMU_PAGER_LINK_H
#define DIFFENGINE_IOEMU_PAGER_LINK_H

#include <diffengine/holds.h>

enum link_state {
    LINK_NONE,     /**< no pager, or one that speaks another version */
    LINK_WAITING,  /**< it will send the table */
    LINK_RECEIVED, /**< a table is here, not attached: link_attach() */
    LINK_ATTACHED,
};

/** Connect, while the process may still do so. */
void link_connect(void);
/** Go on: say hello for the domain, look for the table. Does not wait, but for the first answer (a second at
 * most). */
enum link_state link_continue(uint32_t domain);
/** LINK_RECEIVED: from now on the pager evicts, but nothing that is held. All mappings must be known to the
 * caller, who takes their holds at once, before anything is unmapped. The table before, if there was one, is
 * gone with all its holds. @return whether it worked; if not, all is as before. */
bool link_attach(void);
/** NULL until attached; then the table that was attached last, even if it ended. Any thread, no lock: but
 * nobody may use it while another one is attached. */
struct de_holds *link_holds(void);

#endif
