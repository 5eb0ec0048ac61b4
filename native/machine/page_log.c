/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "page_log.h"

#include "content.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define REWRITE 32u
#define MAX_WRITE_BYTES 64u

int page_log_create(struct page_log *log, uint64_t seed, const uint8_t *const *content, uint32_t pages)
{
    log->seed = seed;
    log->content = calloc(pages, sizeof *log->content);
    log->writes = calloc(pages, sizeof *log->writes);
    if (!log->content || !log->writes)
        return -ENOMEM;
    if (content)
        memcpy(log->content, content, pages * sizeof *content);
    return 0;
}

void page_log_free(struct page_log *log)
{
    free(log->content);
    free(log->writes);
}

static void make_write(const struct page_log *log, uint32_t page, uint32_t number, struct page_write *write)
{
    uint64_t key = mix(mix(log->seed ^ 0x5eed) + ((uint64_t)page << 32 | number));
    write->offset = 0;
    write->len = DE_PAGE_SIZE;
    if (number % REWRITE != REWRITE - 1) {
        write->offset = (uint32_t)(key % DE_PAGE_SIZE);
        write->len = 1 + (uint32_t)(key >> 32) % MAX_WRITE_BYTES;
        if (write->len > DE_PAGE_SIZE - write->offset)
            write->len = DE_PAGE_SIZE - write->offset;
    }
    fill_random(write->bytes, write->len, key);
}

void page_log_next(const struct page_log *log, uint32_t page, struct page_write *write)
{
    make_write(log, page, log->writes[page], write);
}

void page_log_wrote(struct page_log *log, uint32_t page)
{
    log->writes[page]++;
}

void page_log_expected(const struct page_log *log, uint32_t page, uint8_t *expected)
{
    uint32_t writes = log->writes[page];
    const uint8_t *first = log->content[page];
    if (first)
        memcpy(expected, first, DE_PAGE_SIZE);
    else
        memset(expected, 0, DE_PAGE_SIZE);
    /* Nothing before the last rewrite of the whole page matters. */
    uint32_t number = writes >= REWRITE ? writes / REWRITE * REWRITE - 1 : 0;
    for (; number < writes; number++) {
        struct page_write write;
        make_write(log, page, number, &write);
        memcpy(expected + write.offset, write.bytes, write.len);
    }
}
