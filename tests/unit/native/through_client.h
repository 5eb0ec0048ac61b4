/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file through_client.h
 * Lets a test of machine.h run against a machine in a process of its own: machine.h's names become the
 * client's. de_machine_create() forks that process, de_machine_free() ends it and demands a clean exit.
 */
#ifndef DIFFENGINE_TEST_THROUGH_CLIENT_H
#define DIFFENGINE_TEST_THROUGH_CLIENT_H

#include "check.h"

#include <diffengine/machine_client.h>
#include <diffengine/machine_server.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t server_process;
static char server_path[64];

/* The exit status is the errno value that the machine ended with. */
static int server_start(uint32_t frames)
{
    int ready[2];
    CHECK_EQ(pipe(ready), 0);
    snprintf(server_path, sizeof server_path, "/tmp/diffengine-test-%d.socket", (int)getpid());
    server_process = fork();
    CHECK(server_process >= 0);
    if (server_process == 0) {
        char text[256] = "";
        close(ready[0]);
        struct de_machine_server_options options = {
            .frames = frames, .socket_path = server_path, .parent = getppid(), .ready_fd = ready[1]};
        int error = de_machine_server_run(&options, text, sizeof text);
        CHECK((text[0] != 0) == (error != 0));
        /* Not _exit(): the leak check is to run. */
        exit(-error);
    }
    close(ready[1]);
    char line[8] = "";
    ssize_t length = read(ready[0], line, sizeof line - 1);
    close(ready[0]);
    if (length > 0) {
        CHECK_EQ(strcmp(line, "ready\n"), 0);
        return 0;
    }
    int status;
    CHECK_EQ(waitpid(server_process, &status, 0), server_process);
    CHECK(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

static void server_ended(void)
{
    int status;
    CHECK_EQ(waitpid(server_process, &status, 0), server_process);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static inline int client_create(uint32_t frames, struct de_machine_client **client)
{
    int error = server_start(frames);
    return error ? error : de_client_connect(server_path, DE_CLIENT_DEVICE_MODEL, client);
}

static inline void client_end(struct de_machine_client *client)
{
    CHECK_EQ(de_client_shut_down(client), 0);
    server_ended();
    de_client_free(client);
}

/* A guest of machine.h as a program: uniform over its pages, until it is stopped. */
struct client_guest {
    struct de_machine_client *client;
    uint32_t program;
};

static inline int client_guest_start(struct de_machine_client *client, uint16_t domain,
                                     const struct de_guest_options *options, struct client_guest **result)
{
    static const uint32_t hot[] = {0};
    struct de_program_options program = {.kind = DE_PROGRAM_WORKING_SET,
                                         .seed = options->seed,
                                         .first_gfn = options->first_gfn,
                                         .gfns = options->gfns,
                                         .hot = hot,
                                         .hot_count = 1,
                                         .excursion_fraction = 1,
                                         .write_fraction = options->write_fraction};
    uint32_t contents;
    CHECK_EQ(options->operations, UINT64_MAX);
    CHECK_EQ(de_client_contents_add_pages(client, options->content, options->gfns, &contents), 0);
    struct client_guest *guest = malloc(sizeof *guest);
    CHECK(guest);
    guest->client = client;
    int error = de_client_program_start(client, domain, &program, contents, &guest->program);
    CHECK_EQ(de_client_contents_remove(client, contents), 0);
    *result = guest;
    return error;
}

static inline uint64_t client_guest_progress(const struct client_guest *guest)
{
    struct de_program_result result;
    CHECK_EQ(de_client_program_read(guest->client, guest->program, &result), 0);
    return result.reads + result.writes;
}

static inline void client_guest_stop(struct client_guest *guest)
{
    (void)guest; /* the join stops it */
}

static inline void client_guest_join(struct client_guest *guest, struct de_guest_result *result,
                                     uint64_t *samples_ns)
{
    struct de_program_result program;
    CHECK(!samples_ns);
    CHECK_EQ(de_client_program_stop(guest->client, guest->program, &program, NULL, 0), 0);
    *result = (struct de_guest_result){.status = program.status,
                                       .reads = program.reads,
                                       .writes = program.writes,
                                       .wrong_bytes = program.wrong_bytes,
                                       .faults = program.faults,
                                       .cow_breaks = program.cow_breaks,
                                       .stall_ns = program.stall_ns,
                                       .run_ns = program.run_ns};
    free(guest);
}

static inline int client_pause(struct de_machine_client *client, uint16_t domain)
{
    return de_client_hypervisor(client).operations->pause(client, domain);
}

static inline int client_unpause(struct de_machine_client *client, uint16_t domain)
{
    return de_client_hypervisor(client).operations->unpause(client, domain);
}

#define de_machine_domain_pause client_pause
#define de_machine_domain_unpause client_unpause
#define de_guest client_guest
#define de_guest_start client_guest_start
#define de_guest_progress client_guest_progress
#define de_guest_stop client_guest_stop
#define de_guest_join client_guest_join
#define de_machine de_machine_client
#define de_machine_create client_create
#define de_machine_free client_end
#define de_machine_fd de_client_fd
#define de_machine_hypervisor de_client_hypervisor
#define de_machine_account de_client_account
#define de_machine_domain_create de_client_domain_create
#define de_machine_domain_create_as de_client_domain_create_as
#define de_machine_domain_destroy de_client_domain_destroy
#define de_machine_domain_account de_client_domain_account
#define de_machine_domain_crash_reason de_client_domain_crash_reason
#define de_machine_p2m_type de_client_p2m_type
#define de_machine_populate de_client_populate
#define de_machine_claim de_client_claim
#define de_machine_log_dirty_disable de_client_log_dirty_disable
#define de_machine_log_dirty_enable de_client_log_dirty_enable
#define de_machine_log_dirty_read de_client_log_dirty_read
#define de_machine_map de_client_map
#define de_machine_unmap de_client_unmap
#define de_vcpu de_client_vcpu
#define de_vcpu_create de_client_vcpu_create
#define de_vcpu_free de_client_vcpu_free
#define de_vcpu_sample de_client_vcpu_sample
#define de_vcpu_statistics(vcpu, statistics) de_client_vcpu_statistics(vcpu, statistics)
#define de_vcpu_kick de_client_vcpu_kick
#define de_machine_guest_read de_client_guest_read
#define de_machine_guest_write de_client_guest_write
#define de_machine_guest_release de_client_guest_release
#define de_machine_guest_obtain de_client_guest_obtain

#endif
