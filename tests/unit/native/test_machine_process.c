/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machine's process against clients that die, that lie, and that are not allowed: it goes on, and nothing
 * of theirs is left. */
#define _GNU_SOURCE
#include "check.h"
/* Order matters: its names of machine.h become the client's. */
#include "through_client.h"

#include "../../../native/machine/protocol.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define FRAMES 128u
#define GFNS 64u

static struct de_machine_client *machine;
static struct de_hypervisor hypervisor;

#define HV(operation, ...) hypervisor.operations->operation(hypervisor.context, ##__VA_ARGS__)

static void start(void)
{
    CHECK_EQ(client_create(FRAMES, &machine), 0);
    hypervisor = de_client_hypervisor(machine);
}

static struct de_machine_accounting account(void)
{
    struct de_machine_accounting accounting;
    CHECK_EQ(de_client_account(machine, &accounting), 0);
    CHECK_EQ(accounting.used + accounting.free, accounting.frames);
    return accounting;
}

static void finish(void)
{
    for (uint16_t id = 1; id < 4096; id++)
        if (de_client_p2m_type(machine, id, 0) != -ESRCH)
            CHECK_EQ(de_client_domain_destroy(machine, id), 0);
    struct de_machine_accounting left = account();
    CHECK_EQ(left.used, 0);
    CHECK_EQ(left.mapped, 0);
    CHECK_EQ(left.metadata_bytes, 0);
    CHECK_EQ(left.claimed, 0);
    client_end(machine);
}

static uint16_t make_domain(void)
{
    static uint8_t image[GFNS][DE_PAGE_SIZE];
    const uint8_t *pages[GFNS];
    uint16_t domain;
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        memset(image[gfn], (int)gfn, DE_PAGE_SIZE);
        pages[gfn] = image[gfn];
    }
    CHECK_EQ(de_client_domain_create(machine, GFNS, &domain), 0);
    CHECK_EQ(de_client_populate(machine, domain, NULL, pages, GFNS, NULL), GFNS);
    return domain;
}

static void sleep_us(unsigned us)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
}

static void wait_until_unmapped(void)
{
    while (account().mapped)
        sleep_us(500);
}

/* A client in a process of its own: runs @p body, tells by a byte that it is where it wants to be killed. */
typedef void client_body(struct de_machine_client *client, uint16_t domain, int ready);

static void tell(int ready)
{
    CHECK_EQ(write(ready, "x", 1), 1);
}

static pid_t client_fork(client_body *body, uint16_t domain)
{
    int ready[2];
    CHECK_EQ(pipe(ready), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct de_machine_client *client;
        CHECK_EQ(de_client_connect(server_path, DE_CLIENT_READER, &client), 0);
        body(client, domain, ready[1]);
        CHECK(false);
    }
    char byte;
    close(ready[1]);
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return child;
}

static void client_kill(pid_t child)
{
    int status;
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void hold_mappings(struct de_machine_client *client, uint16_t domain, int ready)
{
    uint32_t gfns[] = {0, 1, 1, 5};
    uint8_t *pages[4];
    int32_t errors[4];
    CHECK_EQ(de_client_map(client, domain, false, gfns, 4, pages, errors), 4);
    CHECK_EQ(pages[1], pages[2]);
    CHECK_EQ(pages[3][17], 5);
    tell(ready);
    pause();
}

static void test_death_releases_mappings(void)
{
    start();
    uint16_t domain = make_domain();
    CHECK_EQ(HV(paging_enable, domain), 0);
    pid_t child = client_fork(hold_mappings, domain);
    CHECK_EQ(account().mapped, 4);
    CHECK_EQ(HV(paging_nominate, domain, 1), -EBUSY);
    client_kill(child);
    wait_until_unmapped();
    CHECK_EQ(HV(paging_nominate, domain, 1), 0);
    CHECK_EQ(HV(paging_evict, domain, 1), 0);
    /* A domain that goes while a dying client has its frames: they are free afterwards all the same. */
    child = client_fork(hold_mappings, make_domain());
    CHECK_EQ(de_client_domain_destroy(machine, domain), 0);
    client_kill(child);
    finish();
}

static void serve_until_killed(struct de_machine_client *client, uint16_t domain, int ready)
{
    struct de_hypervisor own = de_client_hypervisor(client);
    uint16_t ready_domains[4];
    struct de_vm_event event;
    CHECK_EQ(own.operations->paging_enable(client, domain), 0);
    for (uint32_t gfn = 0; gfn < 2; gfn++) {
        CHECK_EQ(own.operations->paging_nominate(client, domain, gfn), 0);
        CHECK_EQ(own.operations->paging_evict(client, domain, gfn), 0);
    }
    tell(ready);
    CHECK_EQ(own.operations->wait(client, UINT64_MAX, ready_domains, 4), 1);
    CHECK_EQ(own.operations->ring_take(client, domain, &event), 1);
    for (;;)
        own.operations->wait(client, UINT64_MAX, ready_domains, 4);
}

static void *read_page(void *argument)
{
    struct de_client_vcpu **vcpu = argument;
    uint8_t byte = 0;
    CHECK_EQ(de_client_guest_read(*vcpu, 1, 0, &byte, 1), 0);
    CHECK_EQ(byte, 77);
    return NULL;
}

/* The event it had taken is there again for the next one; nobody else may take, answer or disable meanwhile.
 */
static void test_death_while_waiting(void)
{
    start();
    uint16_t domain = make_domain();
    pid_t child = client_fork(serve_until_killed, domain);
    uint32_t answered = 99;
    struct de_vm_event event = {.version = DE_VM_EVENT_VERSION};
    CHECK_EQ(HV(paging_take_over, domain, &answered), -EBUSY);
    CHECK_EQ(HV(paging_enable, domain), -EBUSY);
    CHECK_EQ(HV(paging_disable, domain), -EBUSY);
    CHECK_EQ(HV(ring_take, domain, &event), -EINVAL);
    CHECK_EQ(HV(ring_answer, domain, &event), -EINVAL);
    struct de_client_vcpu *vcpu;
    pthread_t thread;
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(pthread_create(&thread, NULL, read_page, &vcpu), 0);
    sleep_us(20000);
    client_kill(child);
    while (HV(paging_take_over, domain, &answered) == -EBUSY)
        sleep_us(500);
    CHECK_EQ(answered, 0);
    uint16_t ready[4];
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 1);
    CHECK_EQ(ready[0], domain);
    CHECK_EQ(HV(ring_take, domain, &event), 1);
    CHECK_EQ(event.gfn, 1);
    uint8_t page[DE_PAGE_SIZE];
    memset(page, 77, sizeof page);
    CHECK_EQ(HV(paging_load, domain, 1, page), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    pthread_join(thread, NULL);
    de_client_vcpu_free(vcpu);
    finish();
}

static void *interrupt_soon(void *unused)
{
    sleep_us(20000);
    HV(interrupt);
    return unused;
}

/* An event that a wait brought along, and nobody took, is not lost; nor is an interrupt. */
static void test_waits(void)
{
    start();
    uint16_t domain = make_domain();
    uint16_t ready[4];
    struct de_vm_event event;
    struct de_client_vcpu *vcpu;
    pthread_t thread;
    uint8_t page[DE_PAGE_SIZE];
    memset(page, 77, sizeof page);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 1), 0);
    CHECK_EQ(HV(paging_evict, domain, 1), 0);
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(pthread_create(&thread, NULL, read_page, &vcpu), 0);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 1);
    CHECK_EQ(ready[0], domain);
    CHECK_EQ(HV(wait, 0, ready, 4), 0);
    /* Long enough for the vCPU to leave the lane to its worker. */
    sleep_us(5000);
    CHECK_EQ(HV(ring_take, domain, &event), 1);
    CHECK_EQ(event.gfn, 1);
    CHECK_EQ(HV(ring_take, domain, &event), 0);
    CHECK_EQ(HV(paging_load, domain, 1, page), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    pthread_join(thread, NULL);
    de_client_vcpu_free(vcpu);
    CHECK_EQ(HV(wait, 1000000, ready, 4), 0);
    HV(interrupt);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 0);
    CHECK_EQ(pthread_create(&thread, NULL, interrupt_soon, NULL), 0);
    CHECK_EQ(HV(wait, UINT64_MAX, ready, 4), 0);
    pthread_join(thread, NULL);
    finish();
}

static void block_in_access(struct de_machine_client *client, uint16_t domain, int ready)
{
    struct de_client_vcpu *vcpu;
    uint8_t byte;
    CHECK_EQ(de_client_vcpu_create(client, domain, &vcpu), 0);
    tell(ready);
    de_client_guest_read(vcpu, 0, 0, &byte, 1);
}

static void test_death_in_an_access(void)
{
    start();
    uint16_t domain = make_domain();
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 0), 0);
    pid_t child = client_fork(block_in_access, domain);
    struct de_vm_event event;
    while (HV(ring_take, domain, &event) == 0)
        sleep_us(500);
    client_kill(child);
    /* Its vCPU goes with it: there is room for all that a domain may have. */
    struct de_client_vcpu *vcpus[DE_MACHINE_MAX_VCPUS];
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++)
        while (de_client_vcpu_create(machine, domain, &vcpus[i]))
            sleep_us(500);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++)
        de_client_vcpu_free(vcpus[i]);
    finish();
}

static void call_until_killed(struct de_machine_client *client, uint16_t domain, int ready)
{
    struct de_hypervisor own = de_client_hypervisor(client);
    tell(ready);
    for (uint32_t i = 0;; i++) {
        uint32_t gfns[4] = {i % GFNS, (i + 1) % GFNS, (i + 2) % GFNS, 3};
        uint8_t *pages[4];
        int32_t errors[4];
        uint16_t other;
        uint64_t handles[2];
        de_client_map(client, domain, false, gfns, 4, pages, errors);
        if (i % 3 == 0)
            de_client_unmap(client, (const uint8_t *const *)pages, 4);
        own.operations->share_nominate(client, domain, gfns[0], &handles[0]);
        own.operations->share_nominate(client, domain, gfns[1], &handles[1]);
        own.operations->share(client, domain, gfns[0], handles[0], domain, gfns[1], handles[1]);
        own.operations->paging_nominate(client, domain, gfns[2]);
        if (i % 16 == 0 && de_client_domain_create(client, 4, &other) == 0) {
            de_client_populate(client, other, NULL, NULL, 4, NULL);
            de_client_domain_destroy(client, other);
        }
    }
}

/* Wherever the kill falls, the others' calls go on and the pins come back. */
static void test_death_in_the_middle_of_calls(void)
{
    start();
    uint16_t domain = make_domain();
    for (unsigned round = 0; round < 30; round++) {
        pid_t child = client_fork(call_until_killed, domain);
        sleep_us(round * 173);
        for (uint32_t i = 0; i < 20; i++)
            account();
        client_kill(child);
        wait_until_unmapped();
    }
    finish();
}

static void start_program(struct de_machine_client *client, uint16_t domain, int ready)
{
    static const uint32_t hot[] = {1, 2, 3};
    static uint8_t image[GFNS][DE_PAGE_SIZE];
    const uint8_t *pages[GFNS];
    uint32_t contents, program;
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        memset(image[gfn], (int)gfn, DE_PAGE_SIZE);
        pages[gfn] = image[gfn];
    }
    struct de_program_options options = {.kind = DE_PROGRAM_WORKING_SET,
                                         .gfns = GFNS,
                                         .hot = hot,
                                         .hot_count = 3,
                                         .excursion_fraction = 0.1,
                                         .write_fraction = 0.5,
                                         .operations_per_s = 20000};
    CHECK_EQ(de_client_contents_add_pages(client, pages, GFNS, &contents), 0);
    CHECK_EQ(de_client_program_start(client, domain, &options, contents, &program), 0);
    CHECK_EQ(write(ready, &program, sizeof program), sizeof program);
    pause();
}

/* Guests outlive the client that started them, with what they compare with. */
static void test_programs_stay(void)
{
    start();
    uint16_t domain = make_domain();
    pid_t child = client_fork(start_program, domain);
    client_kill(child);
    struct de_program_result result = {.reads = 0};
    /* Ids count contents and programs: its pages, its hot set, its program. */
    uint32_t program = 3;
    CHECK_EQ(de_client_program_read(machine, program, &result), 0);
    uint64_t before = result.reads;
    while (result.reads < before + 200) {
        CHECK_EQ(de_client_program_read(machine, program, &result), 0);
        sleep_us(1000);
    }
    CHECK_EQ(de_client_program_read(machine, 99, &result), -ENOENT);
    CHECK_EQ(de_client_program_stop(machine, program, &result, NULL, 0), 0);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.wrong_bytes, 0);
    CHECK(result.writes > 0);
    /* One that still runs when the machine ends is no hindrance. */
    CHECK_EQ(de_client_domain_destroy(machine, domain), 0);
    domain = make_domain();
    struct de_program_options idle = {.kind = DE_PROGRAM_IDLE, .gfns = GFNS};
    CHECK_EQ(de_client_program_start(machine, domain, &idle, 0, &program), 0);
    idle.first_gfn = 1;
    CHECK_EQ(de_client_program_start(machine, domain, &idle, 0, &program), -EINVAL);
    idle.first_gfn = 0;
    CHECK_EQ(de_client_program_start(machine, domain, &idle, 77, &program), -ENOENT);
    CHECK_EQ(de_client_program_start(machine, 99, &idle, 0, &program), -ESRCH);
    finish();
}

static void test_roles(void)
{
    start();
    uint16_t domain = make_domain();
    struct de_machine_client *reader;
    CHECK_EQ(de_client_connect(server_path, DE_CLIENT_READER, &reader), 0);
    uint32_t gfn = 3;
    uint8_t *page;
    int32_t error;
    CHECK_EQ(de_client_map(reader, domain, true, &gfn, 1, &page, &error), -EPERM);
    CHECK_EQ(de_client_map(reader, domain, false, &gfn, 1, &page, &error), 1);
    CHECK_EQ(page[9], 3);
    /* Another's mapping is not its to release. */
    uint8_t *own;
    CHECK_EQ(de_client_map(machine, domain, true, &gfn, 1, &own, &error), 1);
    own[9] = 4;
    CHECK_EQ(page[9], 4);
    de_client_unmap(reader, (const uint8_t *const *)&page, 1);
    de_client_unmap(reader, (const uint8_t *const *)&page, 1);
    CHECK_EQ(account().mapped, 1);
    de_client_unmap(machine, (const uint8_t *const *)&own, 1);
    CHECK_EQ(account().mapped, 0);
    /* The descriptor gives no more than the mapping. */
    CHECK(mmap(NULL, DE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, de_client_fd(reader), 0) ==
          MAP_FAILED);
    CHECK_EQ(errno, EACCES);
    CHECK(ftruncate(de_client_fd(machine), 0) < 0);
    CHECK_EQ(errno, EPERM);
    /* Nor may what programs compare with be pulled away under the machine. */
    uint32_t contents;
    int loose = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK_EQ(ftruncate(loose, DE_PAGE_SIZE), 0);
    CHECK_EQ(de_client_contents_add(reader, loose, &contents), -EINVAL);
    CHECK_EQ(de_client_contents_add(reader, STDIN_FILENO, &contents), -EINVAL);
    CHECK_EQ(fcntl(loose, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
    CHECK_EQ(de_client_contents_add(reader, loose, &contents), 0);
    CHECK_EQ(de_client_contents_remove(machine, contents), -ENOENT);
    CHECK_EQ(de_client_contents_remove(reader, contents), 0);
    CHECK_EQ(de_client_contents_remove(reader, contents), -ENOENT);
    close(loose);
    /* More gfns than the machine could ever page. */
    uint16_t huge;
    CHECK_EQ(de_client_domain_create(reader, 17 * FRAMES, &huge), -ENOMEM);
    CHECK_EQ(de_client_domain_create(reader, UINT32_MAX, &huge), -ENOMEM);
    de_client_free(reader);
    finish();
}

static void *wait_for_machine(void *argument)
{
    int *found = argument;
    uint16_t ready[1];
    *found = HV(wait, UINT64_MAX, ready, 1);
    return NULL;
}

static void test_death_of_the_machine(void)
{
    start();
    uint16_t domain = make_domain();
    int found = 1;
    pthread_t waiter;
    CHECK_EQ(pthread_create(&waiter, NULL, wait_for_machine, &found), 0);
    sleep_us(10000);
    CHECK_EQ(kill(server_process, SIGKILL), 0);
    int status;
    CHECK_EQ(waitpid(server_process, &status, 0), server_process);
    pthread_join(waiter, NULL);
    CHECK_EQ(found, -ECONNRESET);
    CHECK_EQ(HV(paging_enable, domain), -ECONNRESET);
    uint64_t handle = 1;
    CHECK_EQ(HV(share_nominate, domain, 0, &handle), -ECONNRESET);
    CHECK_EQ(de_client_populate(machine, domain, NULL, NULL, 1, NULL), -ECONNRESET);
    de_client_free(machine);
    /* Its socket is still there; the next one replaces it. */
    CHECK_EQ(access(server_path, F_OK), 0);
    CHECK_EQ(de_client_connect(server_path, DE_CLIENT_READER, &machine), -ECONNREFUSED);
    start();
    finish();
    CHECK(access(server_path, F_OK) < 0);
    CHECK_EQ(de_client_connect(server_path, DE_CLIENT_READER, &machine), -ENOENT);
}

static void test_start_refused(void)
{
    start();
    pid_t first = server_process;
    CHECK_EQ(server_start(1), -EADDRINUSE);
    server_process = first;
    make_domain();
    finish();
    int file = open(server_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    close(file);
    CHECK_EQ(server_start(1), -EEXIST);
    CHECK_EQ(unlink(server_path), 0);
    char text[64];
    char path[200];
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    struct de_machine_server_options options = {.frames = 1, .socket_path = path, .ready_fd = -1};
    CHECK_EQ(de_machine_server_run(&options, text, sizeof text), -ENAMETOOLONG);
    CHECK(strncmp(text, "listening at aaa", 16) == 0);
    options.socket_path = "/nonexistent/socket";
    CHECK_EQ(de_machine_server_run(&options, text, sizeof text), -ENOENT);
    CHECK(strstr(text, "/nonexistent/socket: No such file") != NULL);
    options.parent = fork();
    CHECK(options.parent >= 0);
    if (options.parent == 0)
        _exit(0);
    CHECK_EQ(waitpid(options.parent, NULL, 0), options.parent);
    CHECK_EQ(de_machine_server_run(&options, text, sizeof text), -ESRCH);
}

/* SIGTERM, and the parent's death, end it tidily. */
static void test_ends(void)
{
    start();
    make_domain();
    CHECK_EQ(kill(server_process, SIGTERM), 0);
    server_ended();
    CHECK(access(server_path, F_OK) < 0);
    de_client_free(machine);

    int alive[2];
    CHECK_EQ(pipe(alive), 0);
    pid_t middle = fork();
    CHECK(middle >= 0);
    if (middle == 0) {
        /* The machine has the pipe's end open, too: it closes only when both are gone. */
        CHECK_EQ(server_start(4), 0);
        _exit(0);
    }
    close(alive[1]);
    int status;
    CHECK_EQ(waitpid(middle, &status, 0), middle);
    CHECK_EQ(status, 0);
    char byte;
    CHECK_EQ(read(alive[0], &byte, 1), 0);
    close(alive[0]);
}

/* From here on: a client that does not keep to the protocol. */

static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 16;
}

static int raw_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", server_path);
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(connection >= 0);
    CHECK_EQ(connect(connection, (struct sockaddr *)&address, sizeof address), 0);
    return connection;
}

/* @return the area; the frames' descriptor is closed. */
static struct area *raw_welcome(int connection)
{
    struct hello hello = {.magic = PROTOCOL_MAGIC, .version = PROTOCOL_VERSION, .role = 1};
    struct welcome welcome;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec vector = {.iov_base = &welcome, .iov_len = sizeof welcome};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fds[2];
    CHECK_EQ(send(connection, &hello, sizeof hello, 0), sizeof hello);
    CHECK_EQ(recvmsg(connection, &message, MSG_CMSG_CLOEXEC), sizeof welcome);
    CHECK_EQ(welcome.error, 0);
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fds);
    /* Nor can the area be shrunk under the machine. */
    CHECK(ftruncate(fds[0], 0) < 0);
    void *area = mmap(NULL, sizeof(struct area), PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    CHECK(area != MAP_FAILED);
    close(fds[0]);
    close(fds[1]);
    return area;
}

static void raw_request(int connection, const void *bytes, size_t length, int fd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec vector = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    /* The machine may have hung up already. */
    (void)sendmsg(connection, &message, MSG_NOSIGNAL);
}

static void test_hostile_handshakes(void)
{
    start();
    make_domain();
    for (unsigned round = 0; round < 200; round++) {
        int connection = raw_connect();
        if (round % 2)
            munmap(raw_welcome(connection), sizeof(struct area));
        for (unsigned i = 0; i < next_random() % 4; i++) {
            uint32_t bytes[16];
            for (size_t j = 0; j < 16; j++)
                bytes[j] = (uint32_t)(next_random() % 2 ? next_random() % 40 : next_random());
            size_t length = next_random() % 2 ? 8 : 1 + next_random() % sizeof bytes;
            raw_request(connection, bytes, length, next_random() % 2 ? connection : -1);
        }
        close(connection);
    }
    /* As many as there may be, and one more: refused, and the first are not disturbed. */
    struct de_machine_client *clients[64];
    size_t count = 0;
    int error;
    while ((error = de_client_connect(server_path, DE_CLIENT_READER, &clients[count])) == 0)
        CHECK(++count < 64);
    CHECK_EQ(error, -EUSERS);
    CHECK(count > 32);
    account();
    while (count)
        de_client_free(clients[--count]);
    finish();
}

/* A number that a call might take, or might choke on. */
static uint64_t odd_word(void)
{
    static const uint64_t words[] = {0,          1,          2,          3,          63,  64,
                                     UINT16_MAX, UINT32_MAX, UINT64_MAX, 1ull << 63, 4096};
    uint64_t random = next_random();
    switch (random % 4) {
    case 0:
        return words[random / 4 % (sizeof words / sizeof *words)];
    case 1:
        return next_random() % GFNS;
    case 2:
        return next_random() % 4;
    default:
        return next_random() << 16 ^ next_random();
    }
}

static void scribble(struct lane *lane)
{
    uint32_t *data = (uint32_t *)lane->data;
    for (unsigned i = 0; i < 64; i++)
        data[next_random() % (i % 2 ? 64 : LANE_DATA_BYTES / sizeof *data)] = (uint32_t)odd_word();
}

/* Half of the calls are nearly right: of a domain that exists, and a program that might. */
static void make_plausible(struct lane *lane, uint16_t domain)
{
    lane->call.words[0] = domain + next_random() % 3;
    lane->call.words[1] = next_random() % (GFNS + 1);
    lane->call.count = (uint32_t)(next_random() % (GFNS + 1));
    if (lane->call.operation != OPERATION_PROGRAM_START)
        return;
    struct program_request request = {.kind = (uint32_t)(next_random() % 4),
                                      .first_gfn = (uint32_t)(next_random() % 8),
                                      .gfns = (uint32_t)(next_random() % 60),
                                      .hot_count = (uint32_t)odd_word(),
                                      .generated = (uint32_t)(next_random() % 4),
                                      .free_as = (uint32_t)(next_random() % 3),
                                      .sample_capacity = odd_word(),
                                      .interval_ns = odd_word(),
                                      .phase_ns = odd_word(),
                                      .operations_per_s = 1000};
    memcpy(lane->data, &request, sizeof request);
}

static void hostile_call(struct lane *lane, uint16_t domain)
{
    do
        lane->call.operation = (uint32_t)(next_random() % 64 ? next_random() % OPERATIONS : odd_word());
    while (lane->call.operation == OPERATION_SHUT_DOWN); /* that it may do */
    lane->call.count = (uint32_t)odd_word();
    for (unsigned i = 0; i < LANE_WORDS; i++)
        lane->call.words[i] = odd_word();
    /* A wait for ever is legal; it just holds the lane. */
    if (lane->call.operation == OPERATION_WAIT && next_random() % 8)
        lane->call.words[0] = next_random() % 1000;
    scribble(lane);
    if (next_random() % 2)
        make_plausible(lane, domain);
    atomic_store(&lane->state, next_random() % 32 ? LANE_CALL : (uint32_t)odd_word());
    lane_wake(lane, LANE_MACHINE);
}

/* Random calls on several lanes, their words changed while they run; then it hangs up without a word. */
static void hostile_session(uint16_t domain, unsigned calls)
{
    unsigned done = 0;
    unsigned successful = 0;
    int connection = raw_connect();
    struct area *area = raw_welcome(connection);
    for (uint32_t lane = 0; lane < 6; lane++)
        raw_request(connection, &(struct socket_request){.kind = REQUEST_LANE, .lane = lane},
                    sizeof(struct socket_request), -1);
    for (unsigned i = 0; i < calls; i++) {
        struct lane *lane = &area->lanes[next_random() % 6];
        for (unsigned step = 0; next_random() % 16 && step < 50 && atomic_load(&lane->state) == LANE_CALL;
             step++)
            sleep_us(20);
        if (atomic_load(&lane->state) == LANE_DONE) {
            done++;
            successful += lane->call.result >= 0;
        }
        hostile_call(lane, domain);
        if (next_random() % 4 == 0) {
            scribble(lane);
            lane->call.count = (uint32_t)odd_word();
        }
    }
    /* It is a poor attack that never gets in. */
    CHECK(done > calls / 10 && successful > calls / 40);
    munmap(area, sizeof *area);
    close(connection);
}

/* Ends every program and domain that the hostile client may have made. */
static void clean_up(uint32_t *last_program)
{
    struct de_program_options idle = {.kind = DE_PROGRAM_IDLE, .gfns = 1};
    uint16_t domain;
    uint32_t program = UINT32_MAX;
    for (uint16_t id = 1; de_client_domain_create(machine, 1, &domain); id++)
        de_client_domain_destroy(machine, id);
    int error = de_client_program_start(machine, domain, &idle, 0, &program);
    CHECK(error == 0 || error == -ENOSPC);
    for (; *last_program < program && *last_program < 100000; ++*last_program) {
        struct de_program_result result;
        if (de_client_program_read(machine, *last_program + 1, &result) == 0)
            CHECK_EQ(de_client_program_stop(machine, *last_program + 1, &result, NULL, 0), 0);
    }
    for (uint16_t id = 1; id <= domain; id++)
        de_client_domain_destroy(machine, id);
}

/* An honest client's domain cannot be kept from a hostile one, which may destroy it: so only what no client
 * may do to the machine itself is demanded. */
static void test_hostile_calls(void)
{
    const char *sessions = getenv("MACHINE_FUZZ_SESSIONS");
    const char *seed = getenv("MACHINE_FUZZ_SEED");
    random_state = seed ? strtoull(seed, NULL, 10) : 1;
    unsigned count = sessions ? (unsigned)strtoul(sessions, NULL, 10) : 40;
    uint32_t last_program = 0;
    start();
    for (unsigned session = 0; session < count; session++) {
        uint16_t domains[3];
        for (unsigned i = 0; i < 3; i++) {
            CHECK_EQ(de_client_domain_create(machine, GFNS, &domains[i]), 0);
            de_client_populate(machine, domains[i], NULL, NULL, GFNS / 2, NULL);
        }
        hostile_session(domains[0], 500);
        account();
        struct de_machine_client *other;
        CHECK_EQ(de_client_connect(server_path, DE_CLIENT_READER, &other), 0);
        de_client_free(other);
        clean_up(&last_program);
    }
    wait_until_unmapped();
    finish();
}

int main(void)
{
    test_death_releases_mappings();
    test_death_while_waiting();
    test_waits();
    test_death_in_an_access();
    test_death_in_the_middle_of_calls();
    test_programs_stay();
    test_roles();
    test_death_of_the_machine();
    test_start_refused();
    test_ends();
    test_hostile_handshakes();
    test_hostile_calls();
    return 0;
}
