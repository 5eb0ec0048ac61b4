/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "faults.h"

#include "next.h"
#include "settings.h"
#include "windows.h"

#include <diffengine/page.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/** Pages that are waited for and nobody serves yet: fewer than there are threads. */
#define QUEUE 4096u
#define SIGNALS 2u
/** A page that is being mapped has no frame for some microseconds, in which a touch gives SIGBUS. */
#define SIGBUS_WAIT_NS 20000
#define SIGBUS_TRIES 100000u
#define TICKS_PER_IDLE_TIME 20u
#define MIN_TICK_MS 5u
#define MAX_TICK_MS 250u
#define NS_PER_MS 1000000

static int userfault = -1;
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static bool opened, started;

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static uintptr_t queue[QUEUE];
static size_t queue_first, queue_count;

/**
 * A thread that serves faults, one at a time, and may wait for long: for a frame, for the disk, for a pager.
 * So there is always one more than there are pages being served; as a thread waits for one page at most, that
 * ends.
 */
struct server {
    uintptr_t page; /**< 0: none */
    struct server *next;
};

/* Under `queue_lock`. */
static struct server *servers; /**< none ever goes */
static unsigned idle_servers;  /**< or being started */

/* What the process itself wants of SIGSEGV and SIGBUS. */
static struct sigaction own[SIGNALS];
static bool handling[SIGNALS];
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;

static int signal_slot(int signal)
{
    return signal == SIGBUS ? 0 : signal == SIGSEGV && settings_get()->by_signal ? 1 : -1;
}

static int open_userfault(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device >= 0) {
            fd = ioctl(device, _IO(0xAA, 0x00), O_CLOEXEC); /* USERFAULTFD_IOC_NEW */
            close(device);
        }
    }
    return fd;
}

void faults_open(void)
{
    pthread_mutex_lock(&start_lock);
    if (!opened && !settings_get()->by_signal) {
        userfault = open_userfault();
        struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP};
        if (userfault >= 0 && ioctl(userfault, UFFDIO_API, &api)) {
            close(userfault);
            userfault = -1;
        }
        if (userfault < 0)
            fprintf(
                stderr,
                "diffengine-ioemu: no userfaultfd: %s; this domain's memory stays mapped, and nothing of it "
                "is evicted\n",
                strerror(errno));
    }
    opened = true;
    pthread_mutex_unlock(&start_lock);
}

void faults_wake(uintptr_t from, size_t bytes)
{
    struct uffdio_range range = {.start = from, .len = bytes};
    if (userfault >= 0)
        ioctl(userfault, UFFDIO_WAKE, &range);
}

/* Whether the page is served already, or will be: a thread that a signal interrupts comes back for the same
 * page. The lock is held. */
static bool is_known(uintptr_t page)
{
    for (size_t i = 0; i < queue_count; i++)
        if (queue[(queue_first + i) % QUEUE] == page)
            return true;
    for (const struct server *server = servers; server; server = server->next)
        if (server->page == page)
            return true;
    return false;
}

static void enqueue(uintptr_t page)
{
    pthread_mutex_lock(&queue_lock);
    while (queue_count == QUEUE) {
        pthread_mutex_unlock(&queue_lock);
        nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
        pthread_mutex_lock(&queue_lock);
    }
    if (!is_known(page)) {
        queue[(queue_first + queue_count++) % QUEUE] = page;
        pthread_cond_signal(&queue_changed);
    }
    pthread_mutex_unlock(&queue_lock);
}

static bool start_thread(void *(*run)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL))
        return false;
    pthread_detach(thread);
    return true;
}

static void *read_thread(void *argument)
{
    struct uffd_msg message;
    (void)argument;
    for (;;) {
        ssize_t bytes = next_functions()->read(userfault, &message, sizeof message);
        if (bytes < 0 && errno != EINTR && errno != EAGAIN)
            return NULL;
        if (bytes == (ssize_t)sizeof message && message.event == UFFD_EVENT_PAGEFAULT)
            enqueue((uintptr_t)message.arg.pagefault.address & ~(uintptr_t)(DE_PAGE_SIZE - 1));
        /* UFFD_EVENT_REMAP: whoever moves memory waited for this to be read, and that is all. */
    }
}

/* @return whether another server is to be started, which counts as idle from now on. */
static bool take_fault(struct server *server)
{
    pthread_mutex_lock(&queue_lock);
    while (!queue_count)
        pthread_cond_wait(&queue_changed, &queue_lock);
    server->page = queue[queue_first];
    queue_first = (queue_first + 1) % QUEUE;
    queue_count--;
    bool last = --idle_servers == 0;
    idle_servers += last;
    pthread_mutex_unlock(&queue_lock);
    return last;
}

/* Who comes for the page from now on is served anew; who came before is woken. */
static void end_fault(struct server *server)
{
    uintptr_t page = server->page;
    pthread_mutex_lock(&queue_lock);
    server->page = 0;
    idle_servers++;
    pthread_mutex_unlock(&queue_lock);
    faults_wake(page, DE_PAGE_SIZE);
}

static void *serve_thread(void *argument)
{
    static __thread struct server server;
    (void)argument;
    pthread_mutex_lock(&queue_lock);
    server.next = servers;
    servers = &server;
    pthread_mutex_unlock(&queue_lock);
    for (;;) {
        if (take_fault(&server) && !start_thread(serve_thread)) {
            /* Whoever is done next goes on with what comes. */
            pthread_mutex_lock(&queue_lock);
            idle_servers--;
            pthread_mutex_unlock(&queue_lock);
        }
        windows_touch(server.page);
        end_fault(&server);
    }
    return NULL;
}

static void *age_thread(void *argument)
{
    uint32_t tick_ms = settings_get()->idle_ms / TICKS_PER_IDLE_TIME;
    tick_ms = tick_ms < MIN_TICK_MS ? MIN_TICK_MS : tick_ms > MAX_TICK_MS ? MAX_TICK_MS : tick_ms;
    (void)argument;
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = (long)tick_ms * NS_PER_MS}, NULL);
        windows_age();
    }
    return NULL;
}

static void pass_on(int slot, int signal, siginfo_t *info, void *context)
{
    pthread_mutex_lock(&own_lock);
    struct sigaction action = own[slot];
    pthread_mutex_unlock(&own_lock);
    if (action.sa_flags & SA_SIGINFO) {
        action.sa_sigaction(signal, info, context);
    } else if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
        action.sa_handler = SIG_DFL;
        next_functions()->sigaction(signal, &action, NULL); /* and again, from where it came */
    } else {
        action.sa_handler(signal);
    }
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    static __thread uintptr_t last;
    static __thread unsigned tries;
    int error = errno;
    uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(DE_PAGE_SIZE - 1);
    tries = page == last ? tries + 1 : 0;
    last = page;
    bool here = tries < SIGBUS_TRIES && windows_near((const void *)page, DE_PAGE_SIZE) && windows_touch(page);
    if (here && tries && signal == SIGBUS)
        nanosleep(&(struct timespec){.tv_nsec = SIGBUS_WAIT_NS}, NULL);
    if (!here)
        pass_on(signal_slot(signal), signal, info, context);
    errno = error;
}

static void handle(int signal)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int slot = signal_slot(signal);
    pthread_mutex_lock(&own_lock);
    handling[slot] = next_functions()->sigaction(signal, &action, &own[slot]) == 0;
    pthread_mutex_unlock(&own_lock);
}

bool faults_chain(int signal, const struct sigaction *action, struct sigaction *former)
{
    int slot = signal_slot(signal);
    if (slot < 0)
        return false;
    pthread_mutex_lock(&own_lock);
    bool ours = handling[slot];
    if (ours && former)
        *former = own[slot];
    if (ours && action)
        own[slot] = *action;
    pthread_mutex_unlock(&own_lock);
    return ours;
}

sigset_t faults_blockable(const sigset_t *set)
{
    sigset_t blockable = *set;
    sigdelset(&blockable, SIGBUS);
    if (settings_get()->by_signal)
        sigdelset(&blockable, SIGSEGV);
    return blockable;
}

static bool start_threads(void)
{
    sigset_t all, former;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &former); /* signals are the process's own */
    bool running = start_thread(age_thread);
    if (userfault >= 0) {
        idle_servers = 1;
        running = running && start_thread(serve_thread) && start_thread(read_thread);
    }
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    return running;
}

bool faults_start(void)
{
    static bool running;
    faults_open();
    pthread_mutex_lock(&start_lock);
    if (!started && (userfault >= 0 || settings_get()->by_signal)) {
        handle(SIGBUS);
        if (settings_get()->by_signal)
            handle(SIGSEGV);
        running = start_threads();
    }
    started = true;
    bool result = running;
    pthread_mutex_unlock(&start_lock);
    return result;
}

static bool listen_to(void *address, size_t bytes)
{
    struct uffdio_register range = {.range = {.start = (uintptr_t)address, .len = bytes},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    return settings_get()->by_signal || ioctl(userfault, UFFDIO_REGISTER, &range) == 0;
}

void *faults_reserve(void *address, size_t bytes, int protection, int flags)
{
    if (settings_get()->by_signal)
        protection = PROT_NONE;
    void *reserved =
        next_functions()->mmap(address, bytes, protection,
                               (flags & ~MAP_SHARED) | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return MAP_FAILED;
    (void)madvise(reserved, bytes, MADV_DONTFORK);
    if (listen_to(reserved, bytes))
        return reserved;
    next_functions()->munmap(reserved, bytes);
    return MAP_FAILED;
}

bool faults_empty(void *address, size_t bytes, int protection)
{
    void *empty = faults_reserve(NULL, bytes, protection, 0);
    if (empty == MAP_FAILED)
        return false;
    /* Mapped in its place and registered then, a fault in between would see an empty page. */
    if (next_functions()->mremap(empty, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, address) == address)
        return true;
    next_functions()->munmap(empty, bytes);
    return false;
}
