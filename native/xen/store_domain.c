/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The store domain: HVM with nested paging, so that gfns are ours to choose; without a vCPU. No toolstack
 * knows it.
 *
 * A window is one mapping of /dev/xen/privcmd. Its first call must cover it whole; later ones may add pages
 * that were not there. The kernel of dom0 unmaps it as a whole only (madvise and parts: EINVAL).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/sys/privcmd.h>

/** Of one call: what the kernel takes in one go. */
#define WINDOW_MOST 512u
#define LIST_BATCH 256u
/** Tables of the p2m: 8 bytes per gfn, in pages of 512, and what leads to them. They are never given back, so
 * it begins small. */
#define POOL_BYTES ((uint64_t)1 << 20)
#define POOL_BYTES_PER_GFN 9u

static int find(void *context, const struct de_uuid *uuid, uint16_t *domain)
{
    struct de_xen *xen = context;
    xc_domaininfo_t list[LIST_BATCH];
    for (uint32_t first = 1; first < DOMID_FIRST_RESERVED;) {
        int count = XEN_CALL(xen, xc_domain_getinfolist, first, LIST_BATCH, list);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++)
            if (!(list[i].flags & XEN_DOMINF_dying) && !memcmp(list[i].handle, uuid->bytes, DE_UUID_BYTES)) {
                *domain = list[i].domain;
                return 0;
            }
        first = count == LIST_BATCH ? list[count - 1].domain + 1u : DOMID_FIRST_RESERVED;
    }
    return -ESRCH;
}

static int destroy(void *context, uint16_t domain)
{
    return XEN_CALL((struct de_xen *)context, xc_domain_destroy, domain);
}

static int create(struct de_xen *xen, const struct de_uuid *uuid, uint64_t frames, uint32_t *domain)
{
    struct xen_domctl_createdomain configuration = {
        .flags = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap,
        .max_vcpus = 1,
        .max_evtchn_port = 1,
        .max_grant_frames = 1,
        .grant_opts = XEN_DOMCTL_GRANT_version(1),
        .arch = {.emulation_flags = XEN_X86_EMU_LAPIC},
    };
    memcpy(configuration.handle, uuid->bytes, sizeof configuration.handle);
    int error = XEN_CALL(xen, xc_domain_create, domain, &configuration);
    if (error)
        return error;
    error = XEN_CALL(xen, xc_set_paging_mempool_size, *domain, POOL_BYTES);
    if (!error) {
        xen->store_pool_bytes = POOL_BYTES;
        error = XEN_CALL(xen, xc_domain_setmaxmem, *domain, frames * (DE_PAGE_SIZE / 1024) + 1024);
    }
    if (error)
        XEN_CALL(xen, xc_domain_destroy, *domain);
    return error;
}

static int create_domain(void *context, const struct de_uuid *uuid, uint64_t gfns, uint64_t frames,
                         uint16_t *id)
{
    struct de_xen *xen = context;
    uint32_t domain = 0;
    if (gfns > INT32_MAX)
        return -EINVAL;
    int error = find(xen, uuid, id);
    if (error != -ESRCH)
        return error;
    error = create(xen, uuid, frames, &domain);
    *id = (uint16_t)domain;
    return error;
}

/* Room for the tables that lead to a gfn, before there is one in Xen's pool too few. */
static int make_tables(struct de_xen *xen, uint16_t domain, uint32_t gfn)
{
    uint64_t bytes = POOL_BYTES + (uint64_t)(gfn / WINDOW_MOST + 1) * WINDOW_MOST * POOL_BYTES_PER_GFN;
    bytes = (bytes + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE * DE_PAGE_SIZE;
    if (bytes <= xen->store_pool_bytes)
        return 0;
    int error = XEN_CALL(xen, xc_set_paging_mempool_size, domain, bytes);
    if (!error)
        xen->store_pool_bytes = bytes;
    return error;
}

static int populate(void *context, uint16_t domain, uint32_t gfn)
{
    struct de_xen *xen = context;
    xen_pfn_t frame = gfn;
    int error = make_tables(xen, domain, gfn);
    if (!error)
        error = XEN_CALL(xen, xc_domain_populate_physmap_exact, domain, 1, 0, 0, &frame);
    /* libxc says so if Xen gave fewer than asked for. */
    return error == -EBUSY ? -ENOMEM : error;
}

static int depopulate(void *context, uint16_t domain, const uint32_t *gfns, size_t count)
{
    struct de_xen *xen = context;
    xen_pfn_t frames[WINDOW_MOST];
    int error = 0;
    for (size_t done = 0; done < count && !error; done += WINDOW_MOST) {
        size_t now = count - done < WINDOW_MOST ? count - done : WINDOW_MOST;
        for (size_t i = 0; i < now; i++)
            frames[i] = gfns[done + i];
        error = XEN_CALL(xen, xc_domain_decrease_reservation_exact, domain, now, 0, frames);
    }
    return error;
}

/* @param[out] errors Per gfn. @return 0, also if some have no frame. */
static int map_batch(struct de_xen *xen, uint16_t domain, uint32_t first, size_t count, uint8_t *address,
                     int *errors)
{
    xen_pfn_t frames[WINDOW_MOST];
    for (size_t i = 0; i < count; i++)
        frames[i] = first + i;
    struct privcmd_mmapbatch_v2 batch = {
        .num = (unsigned)count,
        .dom = domain,
        .addr = (uintptr_t)address,
        .arr = frames,
        .err = errors,
    };
    return ioctl(xen->privcmd, IOCTL_PRIVCMD_MMAPBATCH_V2, &batch) && errno != ENOENT ? -errno : 0;
}

/* At once, so that no other thread's mapping gets in between. */
static int unmap(void *context, uint8_t *address, size_t count)
{
    (void)context;
    void *reserved = mmap(address, count * DE_PAGE_SIZE, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return reserved == MAP_FAILED ? -errno : 0;
}

static int map_range(void *context, uint16_t domain, uint32_t first, size_t count, uint8_t *address,
                     bool *present)
{
    struct de_xen *xen = context;
    int errors[WINDOW_MOST] = {0};
    if (count > WINDOW_MOST)
        return -EINVAL;
    if (mmap(address, count * DE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, xen->privcmd,
             0) == MAP_FAILED)
        return -errno;
    int error = map_batch(xen, domain, first, count, address, errors);
    for (size_t i = 0; i < count; i++)
        present[i] = !errors[i];
    if (error)
        unmap(xen, address, count);
    return error;
}

static int map_added(void *context, uint16_t domain, uint32_t gfn, uint8_t *address)
{
    int error = 0;
    int result = map_batch(context, domain, gfn, 1, address, &error);
    return result ? result : error;
}

const struct de_store_domain_operations xen_store_domain_operations = {
    .create = create_domain,
    .find = find,
    .destroy = destroy,
    .populate = populate,
    .depopulate = depopulate,
    .map = map_range,
    .map_added = map_added,
    .unmap = unmap,
};
