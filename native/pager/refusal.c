/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "refusal.h"

#include <diffengine/status.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int refuse(struct de_pager *pager, int status, const char *format, ...)
{
    va_list arguments;
    int saved = errno;
    va_start(arguments, format);
    pthread_mutex_lock(&pager->lock);
    vsnprintf(pager->refusal, sizeof pager->refusal, format, arguments);
    pthread_mutex_unlock(&pager->lock);
    va_end(arguments);
    errno = saved;
    return status;
}

/* What hypervisor.h says of each, as whoever runs the host knows it. */
static const char *why_not_pageable(int error)
{
    switch (error) {
    case -ENODEV:
        return "it has no nested paging: make it of type hvm or pvh, with hap=1";
    case -EMLINK:
        return "devices are passed through to it: take them away, and set passthrough=\"disabled\"";
    case -EXDEV:
        return "it is populated on demand: give it as much memory as maxmem when it starts";
    case -EOPNOTSUPP:
        return "the host can't: Xen pages from a PV dom0 alone, if it was built with MEM_PAGING (diffengine "
               "check says)";
    default:
        return NULL;
    }
}

int refuse_paging(struct de_pager *pager, uint16_t domain, int error)
{
    const char *why = why_not_pageable(error);
    errno = -error;
    if (!error)
        return DE_OK;
    if (error == -ESRCH)
        return refuse(pager, DE_NOT_FOUND, "domain %u: there is none, or it is being destroyed", domain);
    if (error == -EBUSY)
        return refuse(
            pager, DE_BUSY,
            "domain %u: it has a pager already: end that first (xenpaging, or another diffengine-pager)",
            domain);
    return refuse(pager, DE_SYSTEM, "domain %u: paging could not be turned on: %s%s", domain,
                  why ? why : strerror(-error), why ? "" : " (`xl dmesg` may say more)");
}

void de_pager_refusal(struct de_pager *pager, char *text, size_t capacity)
{
    pthread_mutex_lock(&pager->lock);
    if (capacity)
        snprintf(text, capacity, "%s", pager->refusal);
    pager->refusal[0] = 0;
    pthread_mutex_unlock(&pager->lock);
}
