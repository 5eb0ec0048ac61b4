/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file xen.h
 * Xen as hypervisor.h's operations table: for a pager in a PV dom0 of the supported series. Xen's libraries
 * are opened when the program runs.
 */
#ifndef DIFFENGINE_XEN_H
#define DIFFENGINE_XEN_H

#include <diffengine/hypervisor.h>

struct de_xen;

#define DE_XEN_MAX_HIDDEN 64u

struct de_xen_options {
    /** The pager's own, where the rings' ports are kept for a successor. Its lock must be had before a ring
     * is taken over (de_pager_open() sees to that). */
    const char *state_directory;
    /** Nominate pages of guests with several vCPUs, too, which can bring the host down
     * (native/xen/nominate.c). */
    bool several_vcpus;
    /** Domains whose ring page is taken out of their physmap: they can't write to it, and no pager can take
     * over. */
    struct de_uuid hidden[DE_XEN_MAX_HIDDEN];
    size_t hidden_count;
};

/**
 * @param options Copied.
 * @param[out] error One sentence, with failure: what is missing, and what to do.
 * @return 0, or: -ENOENT, -ENOSYS (libraries), -EOPNOTSUPP (another version), -ENOMEM, or what opening Xen's
 * devices or the directory gave.
 */
int de_xen_open(const struct de_xen_options *options, struct de_xen **xen, char *error, size_t capacity);
/** Lets go of the rings, which stay as they are for a successor. No thread may be in an operation. */
void de_xen_close(struct de_xen *xen);
/** Valid as long as @p xen. */
struct de_hypervisor de_xen_hypervisor(struct de_xen *xen);

#endif
