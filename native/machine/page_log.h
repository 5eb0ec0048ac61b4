/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file page_log.h
 * What a guest's pages must hold, without a copy of them: every write follows from (seed, page, number of the
 * write), so that a page's right content is its first one with the writes done again. One write in 32 is of
 * the whole page, which keeps that short.
 */
#ifndef DIFFENGINE_MACHINE_PAGE_LOG_H
#define DIFFENGINE_MACHINE_PAGE_LOG_H

#include <diffengine/page.h>
#include <stdint.h>

struct page_log {
    uint64_t seed;
    const uint8_t **content; /**< addresses of the first contents, NULL entries: zero */
    uint32_t *writes;        /**< per page, how many so far */
};

struct page_write {
    uint32_t offset;
    uint32_t len;
    uint8_t bytes[DE_PAGE_SIZE];
};

/** @param content Copied; may be NULL: all zero. 0 or -ENOMEM. Free it in either case. */
int page_log_create(struct page_log *log, uint64_t seed, const uint8_t *const *content, uint32_t pages);
void page_log_free(struct page_log *log);
/** The write that comes next for a page; it counts once page_log_wrote() is called. */
void page_log_next(const struct page_log *log, uint32_t page, struct page_write *write);
void page_log_wrote(struct page_log *log, uint32_t page);
void page_log_expected(const struct page_log *log, uint32_t page, uint8_t *expected);

#endif
