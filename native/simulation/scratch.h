/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file scratch.h
 * A folder that goes with its process: a lock says that its owner lives. One whose owner was killed is
 * removed by the next run from Python (diffengine/hypervisor/scratch.py).
 */
#ifndef DIFFENGINE_SIMULATION_SCRATCH_H
#define DIFFENGINE_SIMULATION_SCRATCH_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

/**
 * Make one in @p place. @param[out] path Its name. @return a descriptor that keeps it locked, for the caller
 * to close after it has removed the folder; -1 with errno.
 */
static inline int scratch_make(const char *place, char *path, size_t capacity)
{
    for (;;) {
        snprintf(path, capacity, "%s/diffengine-scratch-XXXXXX", place);
        if (!mkdtemp(path))
            return -1;
        int lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        /* Until it is locked it looks like one of a dead owner, and may be removed. */
        if (lock >= 0 && !flock(lock, LOCK_EX | LOCK_NB) && !access(path, F_OK))
            return lock;
        int error = errno;
        if (lock >= 0)
            close(lock);
        if (error != ENOENT && error != EWOULDBLOCK) {
            errno = error;
            return -1;
        }
    }
}

#endif
