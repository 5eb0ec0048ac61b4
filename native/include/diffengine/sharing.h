/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file sharing.h
 * The sharing table: digest -> first page that had it. Open addressing in a fixed amount of memory.
 *
 * When the table is too small for all pages, several passes each look only at digests of one of `passes`
 * equal intervals (the paper's five, section 4.1); a digest belongs to exactly one pass, so results do not
 * depend on their number. One thread at a time per table.
 */
#ifndef DIFFENGINE_SHARING_H
#define DIFFENGINE_SHARING_H

#include <diffengine/page.h>

struct de_sharing_table;

/** The smallest table that is of any use, in bytes. */
#define DE_SHARING_MIN_BYTES 4096u

/**
 * @param memory_bytes Upper limit of the table's memory (8 bytes per entry); at least DE_SHARING_MIN_BYTES.
 * @return DE_OK, DE_INVALID (too small) or DE_NO_MEMORY.
 */
int de_sharing_create(size_t memory_bytes, struct de_sharing_table **table);
void de_sharing_free(struct de_sharing_table *table);

/** Forget all entries, keep the memory. */
void de_sharing_clear(struct de_sharing_table *table);

/** Bytes the table really takes, and entries it takes before it is full. */
size_t de_sharing_bytes(const struct de_sharing_table *table);
size_t de_sharing_capacity(const struct de_sharing_table *table);

/**
 * Look up and insert pages of one pass, in order.
 * @param digests  All pages' digests, indexed by page number (the table compares full 64-bit digests through
 * it).
 * @param eligible One byte per page: 0 = pass over. Indexed by page number.
 * @param first,count The page numbers to visit: first .. first + count - 1.
 * @param pass,passes Visit only digests d with floor(d * passes / 2^64) == pass.
 * @param[in,out] leaders Indexed by page number: set to the first eligible page number with the same digest
 * (itself, for the first one). Pages not visited are left alone.
 * @return DE_OK; DE_INVALID (pass >= passes, or a page number that would be DE_NONE); or DE_FULL: the table
 * had no room. Some leaders are set by then; the caller clears the table and starts again with more passes.
 */
int de_sharing_pass(struct de_sharing_table *table, const uint64_t *digests, const uint8_t *eligible,
                    uint32_t first, uint32_t count, uint32_t pass, uint32_t passes, uint32_t *leaders);

#endif
