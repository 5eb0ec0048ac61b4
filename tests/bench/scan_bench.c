/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * scan_bench [-r REPEATS] IMAGE...
 *
 * How much CPU does it take to find every page that could be shared? The images' pages are in memory; one
 * thread digests them all and looks each up in the sharing table unless it is zero, batch by batch as the
 * engine does, and knows then which pages are zero and which have a copy. Measured is the
 * thread's CPU time, each repeat with an empty table; and, in turn with it, that of a loop that only reads
 * the same memory. "mergeable" counts as KSM does: zero pages, and every page that another equals. One line
 * of JSON. Exit 1 on bad use.
 */
#include "guest_pages.h"

#include <diffengine/digest.h>
#include <diffengine/sharing.h>

enum { BATCH = 2048, TABLE_BYTES_PER_PAGE = 10, SEED = 0x5eed };

struct scan {
    struct guest_pages guest;
    struct de_digester *digester;
    struct de_sharing_table *table;
    uint64_t *digests;
    uint8_t *kinds, *eligible;
    uint32_t *leaders;
};

struct found {
    size_t zero, copies, mergeable;
};

static volatile uint64_t sink;

static uint64_t cpu_ns(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static uint64_t read_all(const struct guest_pages *guest)
{
    uint64_t sums[8] = {0};
    for (size_t i = 0; i < guest->count; i++) {
        const uint64_t *words = (const uint64_t *)guest->pages[i];
        for (size_t w = 0; w < DE_PAGE_SIZE / 8; w += 8)
            for (unsigned lane = 0; lane < 8; lane++)
                sums[lane] ^= words[w + lane];
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

static void scan_batch(struct scan *scan, size_t first, size_t count)
{
    de_digest_batch(scan->digester, scan->guest.pages + first, count, scan->digests + first,
                    scan->kinds + first, NULL);
    for (size_t i = first; i < first + count; i++)
        scan->eligible[i] = scan->kinds[i] != DE_PAGE_ZERO;
    require(de_sharing_pass(scan->table, scan->digests, scan->eligible, (uint32_t)first, (uint32_t)count, 0,
                            1, scan->leaders),
            "cannot look pages up:");
}

static void scan_all(struct scan *scan)
{
    for (size_t first = 0; first < scan->guest.count; first += BATCH)
        scan_batch(scan, first, scan->guest.count - first < BATCH ? scan->guest.count - first : BATCH);
}

static struct found count_found(const struct scan *scan)
{
    struct found found = {0};
    uint8_t *has_copy = allocate(scan->guest.count, 1);
    for (size_t i = 0; i < scan->guest.count; i++)
        if (scan->eligible[i] && scan->leaders[i] != i) {
            found.copies++;
            has_copy[scan->leaders[i]] = 1;
        }
    for (size_t i = 0; i < scan->guest.count; i++) {
        found.zero += !scan->eligible[i];
        found.mergeable += has_copy[i];
    }
    free(has_copy);
    found.mergeable += found.zero + found.copies;
    return found;
}

static struct scan make_scan(char *const *paths, int images)
{
    struct scan scan = {.guest = load_images(paths, images)};
    size_t count = scan.guest.count;
    if (count >= DE_NONE)
        die("too many pages in", "the images");
    size_t table_bytes = count * TABLE_BYTES_PER_PAGE;
    scan.digests = allocate(count, sizeof *scan.digests);
    scan.kinds = allocate(count, 1);
    scan.eligible = allocate(count, 1);
    scan.leaders = allocate(count, sizeof *scan.leaders);
    require(de_digester_create(SEED, 0, 1, &scan.digester), "cannot make a digester:");
    require(de_sharing_create(table_bytes < DE_SHARING_MIN_BYTES ? DE_SHARING_MIN_BYTES : table_bytes,
                              &scan.table),
            "cannot make a table:");
    return scan;
}

int main(int argc, char **argv)
{
    unsigned long repeats = 7;
    int option;
    while ((option = getopt(argc, argv, "r:")) != -1)
        repeats = option == 'r' ? strtoul(optarg, NULL, 10) : 0;
    if (optind >= argc || repeats < 1 || repeats > 1000)
        die("usage:", "scan_bench [-r REPEATS (1 to 1000)] IMAGE...");
    struct scan scan = make_scan(argv + optind, argc - optind);
    struct samples scans = {.name = "scan"}, reads = {.name = "read"};
    scan_all(&scan); /* populates digests and table; does not count */
    for (unsigned long i = 0; i < repeats; i++) {
        de_sharing_clear(scan.table);
        uint64_t begin = cpu_ns();
        scan_all(&scan);
        add_sample(&scans, cpu_ns() - begin);
        begin = cpu_ns();
        sink = read_all(&scan.guest);
        add_sample(&reads, cpu_ns() - begin);
    }
    struct found found = count_found(&scan);
    printf("{\"benchmark\": \"scan\", \"pages\": %zu, \"zero\": %zu, \"copies\": %zu, \"mergeable\": %zu, "
           "\"cpu_s\": %.4f, \"least_cpu_s\": %.4f, \"read_cpu_s\": %.4f, \"least_read_cpu_s\": %.4f}\n",
           scan.guest.count, found.zero, found.copies, found.mergeable, quantile_us(&scans, 0.5) / 1e6,
           quantile_us(&scans, 0) / 1e6, quantile_us(&reads, 0.5) / 1e6, quantile_us(&reads, 0) / 1e6);
    return 0;
}
