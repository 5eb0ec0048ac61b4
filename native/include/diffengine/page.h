/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file page.h
 * The unit of everything: a 4-KiB guest page, and where a batch of them is.
 */
#ifndef DIFFENGINE_PAGE_H
#define DIFFENGINE_PAGE_H

#include <stddef.h>
#include <stdint.h>

#define DE_PAGE_SIZE 4096u

/** "No page", "no object": returned where a 32-bit page number or object id is expected. */
#define DE_NONE UINT32_MAX

/*
 * A batch of pages is `const uint8_t *const *pages, size_t count`: one address per page. Addresses need no
 * alignment (an ELF dump's segments start anywhere). The caller owns the memory and keeps it mapped during
 * the call. Batches are how Python calls C: it builds the address array with numpy and never touches a page's
 * bytes.
 */

#endif
