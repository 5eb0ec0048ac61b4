/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file machine_server.h
 * The machine's process: serves the clients of machine_client.h on a unix socket.
 */
#ifndef DIFFENGINE_MACHINE_SERVER_H
#define DIFFENGINE_MACHINE_SERVER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct de_machine_server_options {
    uint32_t frames;
    const char *socket_path; /**< made with mode 0600; one left behind by a machine that died is replaced */
    pid_t parent;            /**< end when this process ends; 0: never mind */
    unsigned evict_us;       /**< an eviction takes at least so long: for tests of what happens meanwhile */
    int ready_fd;            /**< "ready\n" is written there once clients can connect; -1: nowhere */
};

/**
 * Serve until SIGTERM, SIGINT, de_client_shut_down() or the parent's end. Call it from a process that has no
 * other threads, since it blocks those signals.
 * @param[out] error Text for the user if it returns non-zero.
 * @return 0 or a negative errno value.
 */
int de_machine_server_run(const struct de_machine_server_options *options, char *error, size_t capacity);

#endif
