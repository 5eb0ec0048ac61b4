/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "settings.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct settings settings = {
    .state = "/run/diffengine/pager",
    .idle_ms = 10000,
    .cluster_pages = 16,
    .mappings = 16384,
    .window_pages = 16,
};
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void take_number(const char *name, uint32_t least, uint32_t most, uint32_t *value)
{
    const char *text = getenv(name);
    char *rest;
    if (!text)
        return;
    errno = 0;
    unsigned long number = strtoul(text, &rest, 10);
    if (*text >= '0' && *text <= '9' && !*rest && !errno && number >= least && number <= most)
        *value = (uint32_t)number;
    else
        fprintf(stderr, "diffengine-ioemu: %s=%s: allowed are %u to %u; %u is used\n", name, text, least,
                most, *value);
}

static void fill(void)
{
    const char *state = getenv("DIFFENGINE_STATE"), *faults = getenv("DIFFENGINE_IOEMU_FAULTS");
    if (state)
        settings.state = state;
    take_number("DIFFENGINE_IOEMU_IDLE_MS", 10, 3600000, &settings.idle_ms);
    take_number("DIFFENGINE_IOEMU_WINDOW_PAGES", 1, 1u << 20, &settings.window_pages);
    take_number("DIFFENGINE_IOEMU_MAPPINGS", 1, 1u << 24, &settings.mappings);
    uint32_t pages = settings.cluster_pages;
    take_number("DIFFENGINE_IOEMU_CLUSTER_PAGES", 1, MAX_CLUSTER_PAGES, &pages);
    while (pages & (pages - 1))
        pages &= pages - 1;
    settings.cluster_pages = pages;
    settings.by_signal = faults && !strcmp(faults, "signal");
}

const struct settings *settings_get(void)
{
    pthread_once(&once, fill);
    return &settings;
}
