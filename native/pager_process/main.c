/* SPDX-License-Identifier: GPL-2.0-or-later */
/* diffengine-pager: the only part of the system that a guest waits for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "notify.h"

#include <diffengine/device_models.h>
#include <diffengine/machine_client.h>
#include <diffengine/pager_queue.h>
#include <diffengine/status.h>
#include <diffengine/xen.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define PUBLISH_MS 100u
#define MAX_MIB (16u << 20)
#define PRIORITY (-10)
/** For so long after a fault a sleep would cost more than it saves, wherever the guest runs
 * (tests/bench/process_fault_bench.c). */
#define SPIN_NS 50000u

static const char usage[] =
    "Usage: diffengine-pager --state DIR (--xen | --machine SOCKET) [--store-mib N] [--store-domain]\n"
    "                        [--swap FILE --swap-mib N]\n"
    "\n"
    "Serves the page faults of guests whose pages the daemon had evicted. Ends with SIGTERM, and leaves all "
    "it has\n"
    "to the next one: guests that touch an evicted page in between wait. \"ready\" is printed once faults "
    "are\n"
    "served.\n"
    "\n"
    "  --state DIR       on a tmpfs, mode 0700: page tables, store, swap key, commands, statistics\n"
    "  --xen             of the Xen that this dom0 runs on\n"
    "  --hide-ring UUID  with --xen: that domain can't write to its event ring, but no pager can take it "
    "over\n"
    "  --several-vcpus   with --xen: evict also from guests with several vCPUs, though that can crash Xen\n"
    "  --machine SOCKET  of diffengine-machine\n"
    "  --store-mib N     limit of a new store (default 65536)\n"
    "  --store-domain    with --xen: a new store lies in the frames of a domain that never runs, not in DIR\n"
    "  --swap FILE       swap file, made if it is not there, its content lost if it is\n"
    "  --swap-mib N      its size\n"
    "  --parent PID      end when this process, which must be our parent, ends\n";

struct settings {
    struct de_pager_state state;
    const char *machine; /**< NULL: Xen */
    bool xen;
    struct de_xen_options xen_options;
    unsigned long parent;
};

static volatile sig_atomic_t ending;

static void end(int signal)
{
    (void)signal;
    ending = 1;
}

static bool parse(const char *name, const char *text, unsigned long max, unsigned long *value)
{
    char *rest;
    errno = 0;
    *value = strtoul(text, &rest, 10);
    if (*text >= '0' && *text <= '9' && !*rest && !errno && *value >= 1 && *value <= max)
        return true;
    fprintf(stderr, "diffengine-pager: --%s %s: allowed are 1 to %lu\n", name, text, max);
    return false;
}

static int hexadecimal(char digit)
{
    const char *digits = "0123456789abcdef", *found = digit ? strchr(digits, digit | 0x20) : NULL;
    return found ? (int)(found - digits) : -1;
}

static bool parse_uuid(const char *text, struct de_uuid *uuid)
{
    size_t count = 0;
    for (; *text; text++) {
        if (*text == '-')
            continue;
        int digit = hexadecimal(*text);
        if (digit < 0 || count == 2 * sizeof uuid->bytes)
            return false;
        uuid->bytes[count / 2] = (uint8_t)(uuid->bytes[count / 2] << 4 | digit);
        count++;
    }
    return count == 2 * sizeof uuid->bytes;
}

static bool hide_ring(struct de_xen_options *options, const char *text)
{
    if (options->hidden_count < DE_XEN_MAX_HIDDEN &&
        parse_uuid(text, &options->hidden[options->hidden_count])) {
        options->hidden_count++;
        return true;
    }
    fprintf(stderr, "diffengine-pager: --hide-ring %s: not a UUID, or more than %u of them\n", text,
            DE_XEN_MAX_HIDDEN);
    return false;
}

enum {
    STATE = 256,
    MACHINE,
    XEN,
    HIDE_RING,
    SEVERAL_VCPUS,
    STORE,
    STORE_DOMAIN,
    SWAP,
    SWAP_MIB,
    PARENT,
    HELP
};

static const struct option long_options[] = {
    {"state", required_argument, NULL, STATE},
    {"machine", required_argument, NULL, MACHINE},
    {"xen", no_argument, NULL, XEN},
    {"hide-ring", required_argument, NULL, HIDE_RING},
    {"several-vcpus", no_argument, NULL, SEVERAL_VCPUS},
    {"store-mib", required_argument, NULL, STORE},
    {"store-domain", no_argument, NULL, STORE_DOMAIN},
    {"swap", required_argument, NULL, SWAP},
    {"swap-mib", required_argument, NULL, SWAP_MIB},
    {"parent", required_argument, NULL, PARENT},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

/* @return -1: go on, else the exit status. */
static int take_option(int option, struct settings *settings)
{
    unsigned long value;
    switch (option) {
    case STATE:
        settings->state.directory = optarg;
        return -1;
    case MACHINE:
        settings->machine = optarg;
        return -1;
    case XEN:
        settings->xen = true;
        return -1;
    case HIDE_RING:
        return hide_ring(&settings->xen_options, optarg) ? -1 : EXIT_FAILURE;
    case SEVERAL_VCPUS:
        settings->xen_options.several_vcpus = true;
        return -1;
    case SWAP:
        settings->state.swap_path = optarg;
        return -1;
    case STORE:
        if (!parse("store-mib", optarg, MAX_MIB, &value))
            return EXIT_FAILURE;
        settings->state.store_bytes = (uint64_t)value << 20;
        return -1;
    case STORE_DOMAIN:
        settings->state.store_domain = true;
        return -1;
    case SWAP_MIB:
        if (!parse("swap-mib", optarg, MAX_MIB - 1, &value))
            return EXIT_FAILURE;
        settings->state.swap_bytes = (uint64_t)value << 20;
        return -1;
    case PARENT:
        return parse("parent", optarg, INT32_MAX, &settings->parent) ? -1 : EXIT_FAILURE;
    case HELP:
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    default:
        fputs(usage, stderr);
        return EXIT_FAILURE;
    }
}

static int take_options(int argc, char **argv, struct settings *settings)
{
    *settings = (struct settings){.state = {.store_bytes = (uint64_t)65536 << 20}};
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        int status = take_option(option, settings);
        if (status >= 0)
            return status;
    }
    bool swap_half = !settings->state.swap_path != !settings->state.swap_bytes;
    if (optind == argc && settings->state.directory && !settings->machine == settings->xen && !swap_half)
        return -1;
    fputs(swap_half ? "diffengine-pager: --swap and --swap-mib go together\n" : usage, stderr);
    return EXIT_FAILURE;
}

/* What guests have in memory must not end up in a core dump or the system's swap, nor wait for the latter;
 * and without its pager a guest hangs, so others are to be chosen when memory is short. What is not allowed
 * to us is left out. */
static void settle_in(unsigned long parent)
{
    struct rlimit no_core = {0, 0};
    if (parent) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        ending = getppid() != (pid_t)parent;
    }
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &no_core);
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
        fprintf(stderr, "diffengine-pager: memory is not locked: %s\n", strerror(errno));
    /* Guests wait for it: before all else that runs here. It may lack the privilege, which is no failure. */
    setpriority(PRIO_PROCESS, 0, PRIORITY);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "-1000", 5) != 5)
        fprintf(stderr, "diffengine-pager: not protected when memory is short: %s\n", strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

/** Writes the statistics page as long as a command takes, too. */
struct publisher {
    struct de_queue_server *server;
    int end; /**< an eventfd */
    pthread_t thread;
};

static void *publish(void *argument)
{
    struct publisher *publisher = argument;
    struct pollfd end_poll = {.fd = publisher->end, .events = POLLIN};
    while (poll(&end_poll, 1, PUBLISH_MS) <= 0)
        de_queue_publish(publisher->server);
    return NULL;
}

static int publisher_start(struct publisher *publisher, struct de_queue_server *server)
{
    *publisher = (struct publisher){.server = server, .end = eventfd(0, EFD_CLOEXEC)};
    int error = publisher->end < 0 ? errno : pthread_create(&publisher->thread, NULL, publish, publisher);
    if (error && publisher->end >= 0)
        close(publisher->end);
    errno = error;
    return error ? DE_SYSTEM : DE_OK;
}

static void publisher_stop(struct publisher *publisher)
{
    eventfd_write(publisher->end, 1);
    pthread_join(publisher->thread, NULL);
    close(publisher->end);
}

static int serve(struct de_pager *pager, const char *directory)
{
    struct de_queue_server *server = NULL;
    struct de_device_models *models = NULL;
    struct publisher publisher;
    int status = de_queue_serve_create(directory, pager, &server);
    if (status == DE_OK)
        status = de_pager_start(pager);
    if (status == DE_OK)
        status = de_pager_serve_requests(pager);
    if (status == DE_OK)
        status = de_device_models_create(directory, pager, &models);
    if (status == DE_OK)
        status = publisher_start(&publisher, server);
    if (status != DE_OK) {
        fprintf(stderr, "diffengine-pager: %s: %s\n", directory,
                status == DE_SYSTEM ? strerror(errno) : de_status_text(status));
        de_device_models_free(models);
        de_pager_stop(pager);
        de_queue_serve_free(server);
        return EXIT_FAILURE;
    }
    puts("ready");
    fflush(stdout);
    notify_manager("READY=1\nSTATUS=serving faults");
    while (!ending && !de_pager_gone(pager))
        de_queue_serve(server, PUBLISH_MS);
    notify_manager("STOPPING=1");
    publisher_stop(&publisher);
    de_device_models_free(models);
    if (!de_pager_gone(pager))
        de_pager_remove_idle(pager);
    de_pager_stop(pager);
    de_queue_serve_free(server);
    if (!de_pager_gone(pager))
        return EXIT_SUCCESS;
    fputs("diffengine-pager: the hypervisor does not answer any more\n", stderr);
    return EXIT_FAILURE;
}

/** The hypervisor that was asked for; one of the two is NULL. */
struct connection {
    struct de_machine_client *machine;
    struct de_xen *xen;
};

static bool connect_to(struct settings *settings, struct connection *connection,
                       struct de_hypervisor *hypervisor)
{
    char error[500];
    *connection = (struct connection){.machine = NULL};
    settings->xen_options.state_directory = settings->state.directory;
    int status = settings->xen ? de_xen_open(&settings->xen_options, &connection->xen, error, sizeof error)
                               : de_client_connect(settings->machine, DE_CLIENT_READER, &connection->machine);
    if (status && settings->xen)
        fprintf(stderr, "diffengine-pager: --xen: %s\n", error);
    else if (status)
        fprintf(stderr, "diffengine-pager: --machine %s: %s\n", settings->machine, strerror(-status));
    else
        *hypervisor =
            settings->xen ? de_xen_hypervisor(connection->xen) : de_client_hypervisor(connection->machine);
    if (connection->machine)
        de_client_spin(connection->machine, SPIN_NS);
    return !status;
}

static void disconnect(struct connection *connection)
{
    de_client_free(connection->machine);
    de_xen_close(connection->xen);
}

int main(int argc, char **argv)
{
    struct settings settings;
    struct connection connection;
    struct de_hypervisor hypervisor;
    struct de_pager *pager;
    char error[300];
    int status = take_options(argc, argv, &settings);
    if (status >= 0)
        return status;
    catch_signals();
    settle_in(settings.parent);
    if (!connect_to(&settings, &connection, &hypervisor))
        return EXIT_FAILURE;
    if (de_pager_open(&settings.state, &hypervisor, &pager, error, sizeof error) != DE_OK) {
        fprintf(stderr, "diffengine-pager: %s\n", error);
        disconnect(&connection);
        return EXIT_FAILURE;
    }
    status = serve(pager, settings.state.directory);
    de_pager_leave(pager);
    disconnect(&connection);
    return status;
}
