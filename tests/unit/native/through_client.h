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

#define de_machine de_machine_client
#define de_machine_create client_create
#define de_machine_free client_end
#define de_machine_fd de_client_fd
#define de_machine_hypervisor de_client_hypervisor
#define de_machine_account de_client_account
#define de_machine_domain_create de_client_domain_create
#define de_machine_domain_destroy de_client_domain_destroy
#define de_machine_domain_account de_client_domain_account
#define de_machine_domain_crash_reason de_client_domain_crash_reason
#define de_machine_p2m_type de_client_p2m_type
#define de_machine_populate de_client_populate
#define de_machine_claim de_client_claim
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
