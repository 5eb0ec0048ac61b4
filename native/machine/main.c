/* SPDX-License-Identifier: GPL-2.0-or-later */
/* diffengine-machine: the embedded machine as a program. */
#include <diffengine/machine_server.h>
#include <diffengine/page.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FRAMES_PER_MIB (1024u * 1024u / DE_PAGE_SIZE)
#define MAX_FRAMES 0x80000000u
#define MAX_EVICT_US 999999u

static const char usage[] =
    "Usage: diffengine-machine --socket PATH (--memory-mib N | --frames N) [--parent PID]\n"
    "                          [--evict-us N]\n"
    "\n"
    "Runs an embedded hypervisor whose guests' memory is in this process, until SIGTERM. Clients connect to\n"
    "PATH; \"ready\" is printed once they can.\n"
    "\n"
    "  --socket PATH     unix socket to make (mode 0600)\n"
    "  --memory-mib N    machine memory for all guests together\n"
    "  --frames N        the same in frames of 4 KiB\n"
    "  --parent PID      end when this process, which must be our parent, ends\n"
    "  --evict-us N      an eviction takes at least N microseconds (for tests)\n";

static int fail(const char *option, const char *value, const char *allowed)
{
    fprintf(stderr, "diffengine-machine: %s %s: %s\n", option, value, allowed);
    return EXIT_FAILURE;
}

static bool parse(const char *text, unsigned long max, unsigned long *value)
{
    char *end;
    errno = 0;
    *value = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && *value >= 1 && *value <= max;
}

enum { OPTION_SOCKET = 256, OPTION_MEMORY, OPTION_FRAMES, OPTION_PARENT, OPTION_EVICT, OPTION_HELP };

static const struct option long_options[] = {
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"memory-mib", required_argument, NULL, OPTION_MEMORY},
    {"frames", required_argument, NULL, OPTION_FRAMES},
    {"parent", required_argument, NULL, OPTION_PARENT},
    {"evict-us", required_argument, NULL, OPTION_EVICT},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

/* @return -1: go on, else the exit status. */
static int take_option(int option, struct de_machine_server_options *options)
{
    unsigned long value;
    switch (option) {
    case OPTION_SOCKET:
        options->socket_path = optarg;
        return -1;
    case OPTION_MEMORY:
        if (!parse(optarg, MAX_FRAMES / FRAMES_PER_MIB, &value))
            return fail("--memory-mib", optarg, "allowed are 1 to 8388608");
        options->frames = (uint32_t)value * FRAMES_PER_MIB;
        return -1;
    case OPTION_FRAMES:
        if (!parse(optarg, MAX_FRAMES, &value))
            return fail("--frames", optarg, "allowed are 1 to 2147483648");
        options->frames = (uint32_t)value;
        return -1;
    case OPTION_PARENT:
        if (!parse(optarg, INT_MAX, &value))
            return fail("--parent", optarg, "not the id of a process");
        options->parent = (pid_t)value;
        return -1;
    case OPTION_EVICT:
        if (!parse(optarg, MAX_EVICT_US, &value))
            return fail("--evict-us", optarg, "allowed are 1 to 999999");
        options->evict_us = (unsigned)value;
        return -1;
    case OPTION_HELP:
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    default:
        fputs(usage, stderr);
        return EXIT_FAILURE;
    }
}

int main(int argc, char **argv)
{
    struct de_machine_server_options options = {.ready_fd = STDOUT_FILENO};
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        int status = take_option(option, &options);
        if (status >= 0)
            return status;
    }
    if (optind != argc)
        return fail("argument", argv[optind], "not understood");
    if (!options.socket_path || !options.frames) {
        fputs(usage, stderr);
        return EXIT_FAILURE;
    }
    char text[256];
    if (de_machine_server_run(&options, text, sizeof text)) {
        fprintf(stderr, "diffengine-machine: %s\n", text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
