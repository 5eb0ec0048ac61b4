/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Libraries with the names of Xen's that do nothing: to test how they are found, and what is said if one does
 * not fit. Which functions there are, and what versions are told, is set when this is compiled. */
#ifndef XEN_VERSION
#define XEN_VERSION (4 << 16 | 17)
#endif
#ifndef EVENTS_VERSION
#define EVENTS_VERSION 7
#endif

#define F(name)                                                                                              \
    int name(void);                                                                                          \
    int name(void)                                                                                           \
    {                                                                                                        \
        return 0;                                                                                            \
    }

int xc_version(void);
int xc_version(void)
{
    return XEN_VERSION;
}
int xc_vm_event_get_version(void);
int xc_vm_event_get_version(void)
{
    return EVENTS_VERSION;
}
F(xc_interface_open)
F(xc_interface_close)
F(xc_physinfo)
F(xc_domain_getinfolist)
F(xc_domain_create)
F(xc_domain_destroy)
F(xc_domain_setmaxmem)
F(xc_set_paging_mempool_size)
F(xc_domain_pause)
F(xc_domain_unpause)
F(xc_vcpu_getinfo)
F(xc_domain_populate_physmap_exact)
F(xc_domain_decrease_reservation_exact)
F(xc_domain_hvm_getcontext_partial)
F(xc_hvm_param_get)
F(xc_hvm_set_mem_type)
F(xc_hvm_modified_memory)
F(xc_mem_paging_enable)
F(xc_mem_paging_disable)
F(xc_mem_paging_resume)
F(xc_mem_paging_nominate)
F(xc_mem_paging_evict)
F(xc_mem_paging_prep)
#ifndef WITHOUT_LOAD
F(xc_mem_paging_load)
#endif
F(xc_memshr_nominate_gfn)
F(xc_memshr_share_gfns)
F(xc_memshr_ring_enable)
F(xc_memshr_ring_disable)
F(xenforeignmemory_open)
F(xenforeignmemory_close)
F(xenforeignmemory_map)
F(xenforeignmemory_unmap)
F(xenevtchn_open)
F(xenevtchn_close)
F(xenevtchn_fd)
F(xenevtchn_bind_interdomain)
F(xenevtchn_unbind)
F(xenevtchn_pending)
F(xenevtchn_unmask)
F(xenevtchn_notify)
