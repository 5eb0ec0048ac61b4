/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file processes.h
 * Programs that a test starts and ends.
 */
#ifndef DIFFENGINE_TEST_PROCESSES_H
#define DIFFENGINE_TEST_PROCESSES_H

#include "check.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Start a program; back when it has said "ready". @return 0 if it ended instead. */
static inline pid_t launch(const char *const *arguments)
{
    int out[2];
    char text[8] = "";
    CHECK_EQ(pipe(out), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    close(out[1]);
    ssize_t got = read(out[0], text, 5);
    close(out[0]);
    if (got == 5 && !memcmp(text, "ready", 5))
        return child;
    CHECK_EQ(waitpid(child, NULL, 0), child);
    return 0;
}

static inline void end(pid_t *process, int signal)
{
    int status;
    CHECK_EQ(kill(*process, signal), 0);
    CHECK_EQ(waitpid(*process, &status, 0), *process);
    CHECK(signal == SIGKILL || (WIFEXITED(status) && !WEXITSTATUS(status)));
    *process = 0;
}

#endif
