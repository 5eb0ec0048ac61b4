/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file refusal.h
 * Why a command was refused, in words: what, why, and what to do. The statuses and errors say it to programs.
 */
#ifndef DIFFENGINE_PAGER_REFUSAL_H
#define DIFFENGINE_PAGER_REFUSAL_H

#include "internal.h"

/** Note it for de_pager_refusal(). @return @p status. */
int refuse(struct de_pager *pager, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/** paging_enable() gave @p error, a negative errno value. @return the status for it. */
int refuse_paging(struct de_pager *pager, uint16_t domain, int error);

#endif
