/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mapping guests' frames, in batches. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/*
 * If the last page that the kernel looks at in one go is evicted, libxenforeignmemory spins until somebody
 * brings it back, and a pager that maps would wait for itself. So each batch ends with a number that no
 * domain has. The kernel takes 512 numbers in one go.
 */
#define BATCH 512u
#define GUARDED (BATCH - 1)
#define NOBODYS_GFN ((xen_pfn_t)INT32_MAX)

/** What one call mapped. The kernel does not let parts of it be unmapped, so it goes with its last page. */
struct xen_mapping {
    struct xen_mapping *next;
    const uint8_t *base;
    size_t places; /**< pages that it has room for, with the guard's */
    size_t live;   /**< pages that are not unmapped yet */
};

static void release(struct de_xen *xen, const uint8_t *base, size_t places)
{
    xen->library.xenforeignmemory_unmap(xen->memory, (void *)(uintptr_t)base, places);
}

/* Remember it for as long as it has pages. */
static int keep(struct de_xen *xen, const uint8_t *base, size_t places, size_t live)
{
    struct xen_mapping *mapping = live ? malloc(sizeof *mapping) : NULL;
    if (!mapping) {
        release(xen, base, places);
        return live ? -ENOMEM : 0;
    }
    *mapping = (struct xen_mapping){.base = base, .places = places, .live = live};
    pthread_mutex_lock(&xen->mappings_lock);
    mapping->next = xen->mappings;
    xen->mappings = mapping;
    pthread_mutex_unlock(&xen->mappings_lock);
    return (int)live;
}

static int map_batch(struct de_xen *xen, uint16_t domain, int protection, const uint32_t *gfns, size_t count,
                     const uint8_t **pages, int32_t *errors)
{
    xen_pfn_t frames[BATCH];
    int results[BATCH];
    size_t live = 0;
    for (size_t i = 0; i < count; i++)
        frames[i] = gfns[i];
    frames[count] = NOBODYS_GFN;
    const uint8_t *base =
        xen->library.xenforeignmemory_map(xen->memory, domain, protection, count + 1, frames, results);
    if (!base)
        return -errno;
    for (size_t i = 0; i < count; i++) {
        errors[i] = results[i];
        pages[i] = results[i] ? NULL : base + i * DE_PAGE_SIZE;
        live += !results[i];
    }
    return keep(xen, base, count + 1, live);
}

static int map_all(struct de_xen *xen, uint16_t domain, int protection, const uint32_t *gfns, size_t count,
                   const uint8_t **pages, int32_t *errors)
{
    int mapped = 0;
    bool gone = count > 0;
    for (size_t done = 0; done < count;) {
        size_t now = count - done < GUARDED ? count - done : GUARDED;
        int result = map_batch(xen, domain, protection, gfns + done, now, pages + done, errors + done);
        if (result < 0) {
            xen_unmap(xen, pages, done);
            return result;
        }
        mapped += result;
        done += now;
    }
    for (size_t i = 0; i < count && gone; i++)
        gone = errors[i] == -ESRCH;
    return gone ? -ESRCH : mapped;
}

int xen_map(void *context, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
            int32_t *errors)
{
    return map_all(context, domain, PROT_READ, gfns, count, pages, errors);
}

/* The link to the mapping that has a page. The lock is held. */
static struct xen_mapping **find_mapping(struct de_xen *xen, const uint8_t *page)
{
    struct xen_mapping **link = &xen->mappings;
    while (*link && (size_t)(page - (*link)->base) >= (*link)->places * DE_PAGE_SIZE)
        link = &(*link)->next;
    return link;
}

void xen_unmap(void *context, const uint8_t *const *pages, size_t count)
{
    struct de_xen *xen = context;
    pthread_mutex_lock(&xen->mappings_lock);
    for (size_t i = 0; i < count; i++) {
        struct xen_mapping **link = pages[i] ? find_mapping(xen, pages[i]) : NULL,
                           *mapping = link ? *link : NULL;
        if (!mapping || --mapping->live)
            continue;
        *link = mapping->next;
        release(xen, mapping->base, mapping->places);
        free(mapping);
    }
    pthread_mutex_unlock(&xen->mappings_lock);
}

int xen_unshare(void *context, uint16_t domain, uint32_t gfn)
{
    const uint8_t *page;
    int32_t error = 0;
    int mapped = map_all(context, domain, PROT_READ | PROT_WRITE, &gfn, 1, &page, &error);
    if (mapped < 0)
        return mapped;
    xen_unmap(context, &page, 1);
    /* Evicted: it has no frame, and so shares none. */
    return error == -ENOENT ? -EINVAL : error;
}
