/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
/*
 * process_fault_bench [PLACE...]
 *
 * What a fault costs when guest and pager are processes of their own, as in `simulate --processes`: a guest
 * in the machine's process reads evicted pages at random, and the pager's process brings them back. The pages
 * are stored raw, so that nothing is left but wake-ups, calls and one copy each way. Beside it in the same
 * run: the same with all in one process, and a bare futex that two processes hand to and fro, which is two
 * wake-ups and nothing else.
 *
 * For each place of the pager: asleep on the guest's core, on another, where the scheduler puts it; there
 * where it looks for 50 us for the next fault before it sleeps ("brief", across processes alone); and
 * spinning without end on another core. One fault right after the other, and 1 ms apart ("spaced"). One line
 * of JSON, with the processor time of the pager's process per fault.
 */
#include "guest_pages.h"

#include <diffengine/digest.h>
#include <diffengine/machine_client.h>
#include <diffengine/machine_server.h>
#include <diffengine/pager.h>

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
    GFNS = 4096,
    FRAMES = GFNS + 64,
    FAULTS = 1024,
    SPACED_FAULTS = 400,
    OPERATIONS_PER_S = 1000,
    PAUSE_US = 1000,
    STORE_BYTES = 64 << 20,
    LOOK_US = 2000,
    BRIEF_NS = 50000,
};

enum core { SAME_CORE, OTHER_CORE, ANY_CORE };

/* Where the pager is, and how long it looks for the next fault before it sleeps. */
struct place {
    const char *name;
    enum core core;
    uint64_t spin_ns;
};

#define WITHOUT_END UINT64_MAX

static const struct place places[] = {
    {"same_core", SAME_CORE, 0},
    {"other_core", OTHER_CORE, 0},
    {"any_core", ANY_CORE, 0},
    {"brief_same_core", SAME_CORE, BRIEF_NS},
    {"brief_other_core", OTHER_CORE, BRIEF_NS},
    {"brief_any_core", ANY_CORE, BRIEF_NS},
    {"spinning", OTHER_CORE, WITHOUT_END},
};

static uint8_t content[GFNS][DE_PAGE_SIZE];
static const uint8_t *pages[GFNS];
static cpu_set_t allowed;

static void fill_pages(void)
{
    uint64_t state = 1;
    for (size_t i = 0; i < GFNS; i++) {
        pages[i] = content[i];
        for (size_t at = 0; at < DE_PAGE_SIZE; at++)
            content[i][at] = (uint8_t)next_random(&state);
    }
}

/* Threads and children made afterwards stay there, too. */
static void stay(bool anywhere, unsigned number)
{
    cpu_set_t one;
    unsigned left = number % (unsigned)CPU_COUNT(&allowed);
    CPU_ZERO(&one);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &allowed) && left-- == 0) {
            CPU_SET(core, &one);
            break;
        }
    if (sched_setaffinity(0, sizeof one, anywhere ? &allowed : &one) != 0)
        die("cannot stay on", "one core");
}

static void stay_as_guest(const struct place *place)
{
    stay(place->core == ANY_CORE, 0);
}

static void stay_as_pager(const struct place *place)
{
    stay(place->core == ANY_CORE, place->core == SAME_CORE ? 0 : 1);
}

/* A pager with all pages out. */
struct paged {
    struct de_store *store;
    struct de_pager *pager;
    atomic_bool stop;
    pthread_t spinner;
};

static void evict_all(struct de_pager *pager, struct de_store *store, uint16_t domain)
{
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        struct de_object object = {.encoding = DE_ENCODING_RAW,
                                   .checksum = de_page_checksum(pages[gfn]),
                                   .payload = pages[gfn],
                                   .payload_bytes = DE_PAGE_SIZE};
        uint32_t id;
        int32_t result;
        require(de_store_put(store, &object, &id), "cannot store a page:");
        de_pager_evict(pager, &domain, &gfn, &id, 1, &result);
        if (result != DE_PROPOSAL_DONE)
            die("cannot evict", "a page");
    }
}

static void *spin(void *argument)
{
    struct paged *paged = argument;
    while (!atomic_load_explicit(&paged->stop, memory_order_relaxed))
        if (de_pager_serve(paged->pager) > 0)
            de_pager_retire(paged->pager, 1);
    return NULL;
}

static void paged_start(struct paged *paged, const struct de_hypervisor *hypervisor, uint16_t domain,
                        const struct place *place)
{
    *paged = (struct paged){.stop = false};
    require(de_store_create(NULL, STORE_BYTES, &paged->store), "cannot make a store:");
    require(de_pager_create(paged->store, hypervisor, &paged->pager), "cannot make a pager:");
    require(de_pager_add_domain(paged->pager, domain, GFNS), "cannot page a domain:");
    evict_all(paged->pager, paged->store, domain);
    stay_as_pager(place);
    if (place->spin_ns == WITHOUT_END && pthread_create(&paged->spinner, NULL, spin, paged) != 0)
        die("cannot start", "the pager");
    if (place->spin_ns != WITHOUT_END)
        require(de_pager_start(paged->pager), "cannot start the pager:");
}

static void paged_end(struct paged *paged, const struct place *place)
{
    atomic_store(&paged->stop, true);
    if (place->spin_ns == WITHOUT_END)
        pthread_join(paged->spinner, NULL);
    else
        de_pager_stop(paged->pager);
    de_pager_free(paged->pager);
    de_store_close(paged->store);
}

static uint32_t one_page = 0;

static struct de_program_options guest_options(bool spaced)
{
    return (struct de_program_options){.kind = DE_PROGRAM_WORKING_SET,
                                       .seed = 1,
                                       .operations_per_s = spaced ? OPERATIONS_PER_S : 0,
                                       .gfns = GFNS,
                                       .content = pages,
                                       .sample_capacity = FAULTS,
                                       .hot = &one_page,
                                       .hot_count = 1,
                                       .excursion_fraction = 1};
}

static void look(bool spaced, const struct de_program_result *result)
{
    if (result->status != 0 || result->wrong_bytes != 0)
        die("a guest cannot", "read what it wrote");
    if (result->faults < (spaced ? SPACED_FAULTS : FAULTS))
        usleep(LOOK_US);
}

static void take_samples(struct samples *samples, const uint64_t *ns, const struct de_program_result *result)
{
    if (result->wrong_bytes != 0)
        die("a page came back", "wrong");
    for (size_t i = 0; i < result->samples; i++)
        add_sample(samples, ns[i]);
}

static void fault_in_process(const struct place *place, bool spaced, struct samples *samples)
{
    static uint64_t ns[FAULTS];
    struct de_machine *machine;
    struct de_program *program;
    struct de_program_result result = {.faults = 0};
    struct paged paged;
    uint16_t domain;
    if (de_machine_create(FRAMES, &machine) != 0 || de_machine_domain_create(machine, GFNS, &domain) != 0 ||
        de_machine_populate(machine, domain, NULL, pages, GFNS, NULL) != GFNS)
        die("cannot make", "a machine");
    struct de_hypervisor hypervisor = de_machine_hypervisor(machine);
    paged_start(&paged, &hypervisor, domain, place);
    struct de_program_options options = guest_options(spaced);
    stay_as_guest(place);
    if (de_program_start(machine, domain, &options, &program) != 0)
        die("cannot start", "a guest");
    stay(true, 0);
    while (result.faults < (spaced ? SPACED_FAULTS : FAULTS)) {
        de_program_read(program, &result);
        look(spaced, &result);
    }
    de_program_stop(program);
    de_program_join(program, &result, ns);
    take_samples(samples, ns, &result);
    paged_end(&paged, place);
    de_machine_free(machine);
}

static void tell(int fd)
{
    if (write(fd, "x", 1) != 1)
        die("cannot write to", "a pipe");
}

/* Until the other end told, or closed. */
static void listen_to(int fd)
{
    char byte;
    if (read(fd, &byte, 1) < 0)
        die("cannot read from", "a pipe");
}

static const char *socket_path(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/diffengine-bench-%d.socket", (int)getpid());
    return path;
}

struct child {
    pid_t pid;
    int ready; /* readable once it is */
    int end;   /* closed: it is to end */
};

static struct child fork_child(int ready[2], int end[2])
{
    if (pipe(ready) != 0 || pipe(end) != 0)
        die("cannot make", "a pipe");
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        die("cannot start", "a process");
    close(pid == 0 ? ready[0] : ready[1]);
    close(pid == 0 ? end[1] : end[0]);
    return (struct child){.pid = pid, .ready = ready[0], .end = end[1]};
}

static void child_end(const struct child *child)
{
    int status;
    close(child->ready);
    close(child->end);
    if (waitpid(child->pid, &status, 0) != child->pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        die("a process ended", "badly");
}

static struct child start_machine(const char *path, const struct place *place)
{
    int ready[2], end[2];
    char text[200];
    stay_as_guest(place);
    struct child child = fork_child(ready, end);
    if (child.pid == 0) {
        struct de_machine_server_options options = {
            .frames = FRAMES, .socket_path = path, .parent = getppid(), .ready_fd = ready[1]};
        _exit(de_machine_server_run(&options, text, sizeof text) == 0 ? 0 : 1);
    }
    stay(true, 0);
    listen_to(child.ready);
    return child;
}

/* Of the pager's process, which shares it with us. */
static _Atomic(uint64_t) *pager_cpu_ns;

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct child start_pager(const char *path, uint16_t domain, const struct place *place)
{
    int ready[2], end[2];
    struct child child = fork_child(ready, end);
    if (child.pid == 0) {
        struct de_machine_client *client;
        struct paged paged;
        if (de_client_connect(path, DE_CLIENT_READER, &client) != 0)
            die("cannot reach", "the machine");
        struct de_hypervisor hypervisor = de_client_hypervisor(client);
        de_client_spin(client, place->spin_ns == WITHOUT_END ? 0 : place->spin_ns);
        paged_start(&paged, &hypervisor, domain, place);
        uint64_t start_ns = cpu_ns();
        tell(ready[1]);
        listen_to(end[0]);
        *pager_cpu_ns = cpu_ns() - start_ns;
        paged_end(&paged, place);
        de_client_free(client);
        _exit(0);
    }
    listen_to(child.ready);
    return child;
}

static void fault_across_processes(const struct place *place, bool spaced, struct samples *samples)
{
    static uint64_t ns[FAULTS];
    const char *path = socket_path();
    struct de_machine_client *client;
    struct de_program_result result = {.faults = 0};
    uint16_t domain;
    uint32_t contents, program;
    struct child machine = start_machine(path, place);
    if (de_client_connect(path, DE_CLIENT_READER, &client) != 0 ||
        de_client_domain_create(client, GFNS, &domain) != 0 ||
        de_client_populate(client, domain, NULL, pages, GFNS, NULL) != GFNS ||
        de_client_contents_add_pages(client, pages, GFNS, &contents) != 0)
        die("cannot make", "a domain");
    struct child pager = start_pager(path, domain, place);
    struct de_program_options options = guest_options(spaced);
    if (de_client_program_start(client, domain, &options, contents, &program) != 0)
        die("cannot start", "a guest");
    while (result.faults < (spaced ? SPACED_FAULTS : FAULTS)) {
        if (de_client_program_read(client, program, &result) != 0)
            die("cannot watch", "a guest");
        look(spaced, &result);
    }
    if (de_client_program_stop(client, program, &result, ns, FAULTS) != 0)
        die("cannot stop", "a guest");
    take_samples(samples, ns, &result);
    child_end(&pager);
    de_client_shut_down(client);
    child_end(&machine);
    de_client_free(client);
}

/* Two words, each for one direction, on cache lines of their own. */
struct table_tennis {
    _Alignas(64) _Atomic(uint32_t) there;
    _Alignas(64) _Atomic(uint32_t) back;
};

static void hit(_Atomic(uint32_t) *word, uint32_t value)
{
    atomic_store(word, value);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void await(_Atomic(uint32_t) *word, uint32_t value, uint64_t spin_ns)
{
    uint64_t start_ns = now_ns();
    for (uint32_t seen; (seen = atomic_load(word)) != value;)
        if (spin_ns != WITHOUT_END && now_ns() - start_ns >= spin_ns)
            syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static void ping_pong(const struct place *place, bool spaced, struct samples *samples)
{
    struct table_tennis *table =
        mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED)
        die("no memory for", "two words");
    uint32_t rounds = spaced ? SPACED_FAULTS : FAULTS;
    int ready[2], end[2];
    struct child child = fork_child(ready, end);
    if (child.pid == 0) {
        stay_as_pager(place);
        for (uint32_t round = 1; round <= rounds; round++) {
            await(&table->there, round, place->spin_ns);
            hit(&table->back, round);
        }
        _exit(0);
    }
    stay_as_guest(place);
    for (uint32_t round = 1; round <= rounds; round++) {
        if (spaced)
            usleep(PAUSE_US);
        uint64_t begin_ns = now_ns();
        hit(&table->there, round);
        await(&table->back, round, 0);
        add_sample(samples, now_ns() - begin_ns);
    }
    stay(true, 0);
    child_end(&child);
    munmap(table, sizeof *table);
}

static void print_samples(const char *name, struct samples *samples, const char *after)
{
    printf("\"%s_p50_us\": %.3f, \"%s_p99_us\": %.3f%s", name, quantile_us(samples, 0.5), name,
           quantile_us(samples, 0.99), after);
    free(samples->ns);
}

static void measure(const struct place *place, bool spaced)
{
    bool brief = place->spin_ns && place->spin_ns != WITHOUT_END;
    struct samples bare = {.name = "ping-pong"}, in_process = {.name = "in process"},
                   processes = {.name = "processes"};
    ping_pong(place, spaced, &bare);
    if (!brief)
        fault_in_process(place, spaced, &in_process);
    fault_across_processes(place, spaced, &processes);
    printf(", \"%s%s\": {", place->name, spaced ? "_spaced" : "");
    print_samples("ping_pong", &bare, ", ");
    if (!brief)
        print_samples("in_process", &in_process, ", ");
    printf("\"pager_cpu_us\": %.3f, ",
           (double)atomic_load(pager_cpu_ns) / 1e3 / (spaced ? SPACED_FAULTS : FAULTS));
    print_samples("processes", &processes, "}");
}

static bool asked_for(char *const *names, int count, const struct place *place)
{
    bool found = count == 0;
    for (int i = 0; i < count; i++)
        found |= strcmp(names[i], place->name) == 0;
    return found;
}

int main(int argc, char **argv)
{
    sched_getaffinity(0, sizeof allowed, &allowed);
    pager_cpu_ns =
        mmap(NULL, sizeof *pager_cpu_ns, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pager_cpu_ns == MAP_FAILED)
        die("no memory for", "a word");
    fill_pages();
    printf("{\"benchmark\": \"process_fault\", \"cores\": %d", CPU_COUNT(&allowed));
    for (const struct place *place = places; place < places + sizeof places / sizeof *places; place++) {
        if (!asked_for(argv + 1, argc - 1, place))
            continue;
        measure(place, false);
        measure(place, true);
    }
    puts("}");
    return 0;
}
