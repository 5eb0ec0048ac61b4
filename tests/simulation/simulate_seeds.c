/* SPDX-License-Identifier: GPL-2.0-or-later */
/* simulate-seeds FIRST COUNT OPERATIONS [progress]: virtual time over many seeds, until one fails. */
#include <diffengine/simulation.h>
#include <diffengine/status.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argument_count, char **arguments)
{
    if (argument_count < 4) {
        fprintf(stderr, "usage: simulate-seeds FIRST COUNT OPERATIONS [progress]\n");
        return 2;
    }
    uint64_t first = strtoull(arguments[1], NULL, 0);
    uint64_t count = strtoull(arguments[2], NULL, 0);
    uint64_t operations = strtoull(arguments[3], NULL, 0);
    uint64_t total = 0;
    for (uint64_t seed = first; seed < first + count; seed++) {
        struct de_simulation_options options;
        struct de_simulation_result result;
        de_simulation_draw(seed, operations, &options);
        int status = de_simulation_run(&options, &result);
        if (status != DE_OK) {
            fprintf(stderr, "seed %" PRIu64 ": %s\n", seed, de_status_text(status));
            return 2;
        }
        total += result.operations;
        if (result.failure[0]) {
            printf("seed %" PRIu64 " failed after %" PRIu64 " operations in all: %s\n", seed, total,
                   result.failure);
            return 1;
        }
        /* A run may end in a crash of this program itself: then this is what is known. */
        if (argument_count > 4)
            printf("%" PRIu64 "\n", total);
        fflush(stdout);
    }
    printf("%" PRIu64 " operations over %" PRIu64 " seeds: every invariant held\n", total, count);
    return 0;
}
