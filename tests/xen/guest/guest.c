/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The only process of a test guest: it does what its console says (README.md lists the commands) and answers
 * with one line, "= ok NAME=VALUE ..." or "= error WHY".
 */
#include "devices.h"
#include "load.h"
#include "regions.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define MAX_WORDS 8
#define LINE_BYTES 256
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FRAME_MASK ((1ull << 55) - 1)

static const char *const KINDS[] = {
    [DE_GENERATED_ZERO] = "zero",     [DE_GENERATED_IDENTICAL] = "identical",
    [DE_GENERATED_RANDOM] = "random", [DE_GENERATED_SIMILAR] = "similar",
    [DE_GENERATED_WORDS] = "words",
};

static void answer_counts(const struct access_counts *counts)
{
    printf("= ok reads=%" PRIu64 " writes=%" PRIu64 " wrong_pages=%" PRIu64 " wrong_bytes=%" PRIu64
           " longest_us=%" PRIu64 "\n",
           counts->reads, counts->writes, counts->wrong_pages, counts->wrong_bytes,
           counts->longest_ns / 1000);
}

static int command_fill(char **words, int count)
{
    struct generator generator = {.seed = strtoull(words[3], NULL, 0)};
    generator.similar_percent = count > 4 ? (uint32_t)atoi(words[4]) : 0;
    size_t kind = 0;
    while (kind < sizeof KINDS / sizeof *KINDS && strcmp(KINDS[kind], words[1]) != 0)
        kind++;
    uint32_t pages = (uint32_t)strtoul(words[2], NULL, 0);
    if (kind == sizeof KINDS / sizeof *KINDS || !pages || generator.similar_percent > 100)
        return -EINVAL;
    generator.kind = (enum de_generated_kind)kind;
    int region = region_fill(&generator, pages);
    if (region < 0)
        return region;
    printf("= ok region=%d\n", region);
    return 0;
}

/* Pages FIRST, FIRST + STEP, ... below FIRST + COUNT; without numbers, all. */
static int use_pages(char **words, int count, int (*use)(int, uint32_t, struct access_counts *))
{
    int region = atoi(words[1]);
    uint32_t first = count > 2 ? (uint32_t)strtoul(words[2], NULL, 0) : 0;
    uint32_t pages = count > 3 ? (uint32_t)strtoul(words[3], NULL, 0) : region_pages(region) - first;
    uint32_t step = count > 4 ? (uint32_t)strtoul(words[4], NULL, 0) : 1;
    if (!region_pages(region))
        return -ENOENT;
    if (!step)
        return -EINVAL;
    struct access_counts counts = {0};
    for (uint64_t page = first; page < (uint64_t)first + pages; page += step) {
        int error = use(region, (uint32_t)page, &counts);
        if (error)
            return error;
    }
    answer_counts(&counts);
    return 0;
}

static int command_check(char **words, int count)
{
    return use_pages(words, count, region_check);
}

static int command_change(char **words, int count)
{
    return use_pages(words, count, region_change);
}

/* The gfns of a region's pages, in order of page: FIRST+COUNT for each run. */
static int command_gfns(char **words, int count)
{
    (void)count;
    int region = atoi(words[1]);
    uint32_t pages = region_pages(region);
    if (!pages)
        return -ENOENT;
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (map < 0)
        return -errno;
    uint64_t first = 0, length = 0;
    printf("= ok gfns=");
    for (uint32_t page = 0; page < pages; page++) {
        uint64_t entry = 0;
        uintptr_t at = (uintptr_t)region_page(region, page) / DE_PAGE_SIZE;
        if (pread(map, &entry, sizeof entry, (off_t)(at * sizeof entry)) != sizeof entry ||
            !(entry & PAGEMAP_PRESENT))
            entry = 0;
        uint64_t gfn = entry & PAGEMAP_FRAME_MASK;
        if (length && gfn != first + length) {
            printf("%" PRIu64 "+%" PRIu64 ",", first, length);
            length = 0;
        }
        first = length ? first : gfn;
        length++;
    }
    printf("%" PRIu64 "+%" PRIu64 "\n", first, length);
    close(map);
    return 0;
}

static int command_load(char **words, int count)
{
    struct load_options options = {
        .first_region = atoi(words[1]),
        .last_region = atoi(words[2]),
        .operations_per_s = (uint32_t)strtoul(words[3], NULL, 0),
        .write_percent = (uint32_t)strtoul(words[4], NULL, 0),
        .seed = count > 5 ? strtoull(words[5], NULL, 0) : 1,
    };
    int error = load_start(&options);
    if (!error)
        puts("= ok");
    return error;
}

static int command_counts(char **words, int count)
{
    (void)words, (void)count;
    struct access_counts counts;
    load_read(&counts);
    answer_counts(&counts);
    return 0;
}

static int command_stop(char **words, int count)
{
    load_stop();
    return command_counts(words, count);
}

static int command_free(char **words, int count)
{
    (void)count;
    int error = region_free(atoi(words[1]));
    if (!error)
        puts("= ok");
    return error;
}

static int command_modules(char **words, int count)
{
    (void)words, (void)count;
    int error = load_modules();
    if (!error)
        puts("= ok");
    return error;
}

/* disk write REGION PATH, disk read REGION PATH INTO: INTO gets what is on the disk, compared with REGION;
 * disk fetch: not compared. */
static int command_disk(char **words, int count)
{
    struct access_counts counts = {0};
    int error;
    if (strcmp(words[1], "write") == 0)
        error = disk_write(words[3], atoi(words[2]), &counts);
    else if (strcmp(words[1], "read") == 0 && count > 4)
        error = disk_read(words[3], atoi(words[2]), atoi(words[4]), &counts);
    else if (strcmp(words[1], "fetch") == 0 && count > 4)
        error = disk_fetch(words[3], atoi(words[2]), atoi(words[4]));
    else
        return -EINVAL;
    if (!error)
        answer_counts(&counts);
    return error;
}

/* compare REGION INTO: what INTO has with what REGION must hold. */
static int command_compare(char **words, int count)
{
    (void)count;
    struct access_counts counts = {0};
    if (!region_pages(atoi(words[1])) || !region_pages(atoi(words[2])))
        return -ENOENT;
    compare_regions(atoi(words[1]), atoi(words[2]), &counts);
    answer_counts(&counts);
    return 0;
}

/* net OWN PEER REGION INTO: REGION's pages to the peer, which sends them back, into INTO. */
static int command_net(char **words, int count)
{
    (void)count;
    struct access_counts counts = {0};
    int error = net_echo(words[1], words[2], atoi(words[3]), atoi(words[4]), &counts);
    if (!error)
        answer_counts(&counts);
    return error;
}

static int command_ping(char **words, int count)
{
    (void)words, (void)count;
    puts("= ok");
    return 0;
}

static int command_poweroff(char **words, int count)
{
    (void)words, (void)count;
    puts("= ok");
    sync();
    return reboot(RB_POWER_OFF) ? -errno : 0;
}

static const struct command {
    const char *name;
    int least_words;
    int (*run)(char **words, int count);
} COMMANDS[] = {
    {"fill", 4, command_fill},         {"check", 2, command_check},     {"change", 2, command_change},
    {"gfns", 2, command_gfns},         {"load", 5, command_load},       {"counts", 1, command_counts},
    {"stop", 1, command_stop},         {"free", 2, command_free},       {"ping", 1, command_ping},
    {"poweroff", 1, command_poweroff}, {"modules", 1, command_modules}, {"disk", 4, command_disk},
    {"net", 5, command_net},           {"compare", 3, command_compare},
};

static void run_line(char *line)
{
    char *words[MAX_WORDS] = {NULL};
    int count = 0;
    for (char *word = strtok(line, " \r\n"); word && count < MAX_WORDS; word = strtok(NULL, " \r\n"))
        words[count++] = word;
    if (!count)
        return;
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        if (strcmp(COMMANDS[i].name, words[0]) != 0 || count < COMMANDS[i].least_words)
            continue;
        int error = COMMANDS[i].run(words, count);
        if (error)
            printf("= error %s: %s\n", words[0], strerror(-error));
        return;
    }
    printf("= error %s: no such command, or too few words\n", words[0]);
}

static void write_setting(const char *path, const char *value)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, value, strlen(value)) < 0)
        printf("%s: %s\n", path, strerror(errno));
    if (file >= 0)
        close(file);
}

/* Pages stay at the gfns that were told: no compaction of locked memory. */
static void set_up(void)
{
    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL))
        printf("proc: %s\n", strerror(errno));
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    write_setting("/proc/sys/vm/compact_unevictable_allowed", "0");
    write_setting("/proc/sys/kernel/printk", "1");
    if (mlockall(MCL_CURRENT | MCL_FUTURE))
        printf("mlockall: %s\n", strerror(errno));
    struct termios terminal;
    if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
        cfmakeraw(&terminal);
        terminal.c_oflag |= OPOST | ONLCR;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}

int main(void)
{
    char line[LINE_BYTES];
    set_up();
    puts("= ready");
    for (;;) {
        if (fgets(line, sizeof line, stdin))
            run_line(line);
        else
            clearerr(stdin);
    }
}
