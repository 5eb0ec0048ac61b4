/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file library.h
 * Xen's libraries, found when the program runs: one build runs with and without Xen. The headers are needed
 * to build, for the types alone; nothing is linked.
 */
#ifndef DIFFENGINE_XEN_LIBRARY_H
#define DIFFENGINE_XEN_LIBRARY_H

#ifndef __XEN_TOOLS__
#define __XEN_TOOLS__ 1
#endif
#define XC_WANT_COMPAT_DEVICEMODEL_API 1
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>

/** The functions used, by library: everything that this host's libraries must have. */
#define XEN_CTRL_FUNCTIONS(F)                                                                                \
    F(xc_interface_open)                                                                                     \
    F(xc_interface_close)                                                                                    \
    F(xc_version)                                                                                            \
    F(xc_physinfo)                                                                                           \
    F(xc_vm_event_get_version)                                                                               \
    F(xc_domain_getinfolist)                                                                                 \
    F(xc_domain_create)                                                                                      \
    F(xc_domain_destroy)                                                                                     \
    F(xc_domain_setmaxmem)                                                                                   \
    F(xc_set_paging_mempool_size)                                                                            \
    F(xc_domain_pause)                                                                                       \
    F(xc_domain_unpause)                                                                                     \
    F(xc_vcpu_getinfo)                                                                                       \
    F(xc_domain_populate_physmap_exact)                                                                      \
    F(xc_domain_decrease_reservation_exact)                                                                  \
    F(xc_domain_hvm_getcontext_partial)                                                                      \
    F(xc_hvm_param_get)                                                                                      \
    F(xc_hvm_set_mem_type)                                                                                   \
    F(xc_hvm_modified_memory)                                                                                \
    F(xc_mem_paging_enable)                                                                                  \
    F(xc_mem_paging_disable)                                                                                 \
    F(xc_mem_paging_resume)                                                                                  \
    F(xc_mem_paging_nominate)                                                                                \
    F(xc_mem_paging_evict)                                                                                   \
    F(xc_mem_paging_prep)                                                                                    \
    F(xc_mem_paging_load)                                                                                    \
    F(xc_memshr_nominate_gfn)                                                                                \
    F(xc_memshr_share_gfns)                                                                                  \
    F(xc_memshr_ring_enable)                                                                                 \
    F(xc_memshr_ring_disable)
#define XEN_FOREIGN_MEMORY_FUNCTIONS(F)                                                                      \
    F(xenforeignmemory_open)                                                                                 \
    F(xenforeignmemory_close)                                                                                \
    F(xenforeignmemory_map)                                                                                  \
    F(xenforeignmemory_unmap)
#define XEN_EVENT_CHANNEL_FUNCTIONS(F)                                                                       \
    F(xenevtchn_open)                                                                                        \
    F(xenevtchn_close)                                                                                       \
    F(xenevtchn_fd)                                                                                          \
    F(xenevtchn_bind_interdomain)                                                                            \
    F(xenevtchn_unbind)                                                                                      \
    F(xenevtchn_pending)                                                                                     \
    F(xenevtchn_unmask)                                                                                      \
    F(xenevtchn_notify)

#define XEN_LIBRARIES 3u

struct xen_library {
    void *loaded[XEN_LIBRARIES];
#define XEN_MEMBER(name) __typeof__(&name) name;
    XEN_CTRL_FUNCTIONS(XEN_MEMBER)
    XEN_FOREIGN_MEMORY_FUNCTIONS(XEN_MEMBER)
    XEN_EVENT_CHANNEL_FUNCTIONS(XEN_MEMBER)
#undef XEN_MEMBER
};

/**
 * Load the libraries and find every function. @param directory Where they lie; NULL: where the system has
 * them.
 * @param[out] error One sentence: what is missing, and what to install.
 * @return 0, -ENOENT (a library is missing), -ENOSYS (a function is). Nothing is left loaded then.
 */
int xen_library_open(struct xen_library *library, const char *directory, char *error, size_t capacity);
void xen_library_close(struct xen_library *library);

/**
 * Whether this build knows the Xen that runs: the version whose libraries are loaded, with the events' layout
 * that the ring's code has.
 * @return 0, or -EOPNOTSUPP with a sentence in @p error.
 */
int xen_library_check(const struct xen_library *library, xc_interface *xc, char *error, size_t capacity);

#endif
