/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libFuzzer target of the hold table, as the pager sees it: a device model may write to it at any time, and
 * truncate it. The input drives both: the pager locks, unlocks, notes, looks for requests and answers them,
 * lets a successor take over; in between anything is written anywhere, or the memory goes. Whatever is there,
 * nothing outside the table is touched, a page that is locked was not held, no request has a page that the
 * domain hasn't, and a table without memory is void.
 */
#define _GNU_SOURCE
#include "../simulation/scratch.h"
#include "input.h"

#include <diffengine/holds.h>
#include <diffengine/status.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GFNS 5000u
#define DOMAIN 3
#define COUNT_MASK 0x1fu
#define LOCK_BIT 0x80u

static const struct de_uuid uuid = {{1, 2, 3}};
static char path[64];
static int directory = -1;

/* The hostile side: a mapping of its own. */
struct device {
    int fd;
    uint8_t *memory;
    size_t bytes;
    bool truncated;
};

static void scribble(struct input *input, struct device *device)
{
    size_t place = take(input, 2) % device->bytes, bytes = take(input, 1);
    for (size_t i = 0; i < bytes && place + i < device->bytes && !device->truncated; i++)
        device->memory[place + i] = (uint8_t)take(input, 1);
}

/* What looks like a request, with any gfn. */
static void ask(struct input *input, struct device *device)
{
    uint32_t *word = (uint32_t *)(void *)(device->memory + take(input, 1) * 8 % DE_PAGE_SIZE);
    if (device->truncated)
        return;
    word[0] = 2;
    word[1] = take(input, 4) % (GFNS + 100);
}

static void lock(struct input *input, struct de_holds *holds, const struct device *device)
{
    uint32_t gfn = take(input, 2);
    uint8_t before = gfn < GFNS && !device->truncated ? device->memory[DE_PAGE_SIZE + gfn] : 0;
    bool locked = de_holds_lock(holds, gfn);
    require(!locked || gfn < GFNS);
    require(device->truncated || locked == (gfn < GFNS && !(before & (COUNT_MASK | LOCK_BIT))));
}

static void serve(struct de_holds *holds)
{
    for (uint32_t slot = 0, gfn; slot < DE_HOLDS_REQUESTS; slot++)
        if (de_holds_request(holds, slot, &gfn)) {
            require(gfn < GFNS);
            de_holds_answer(holds, slot);
        }
}

static void device_attach(struct device *device, const struct de_holds *holds)
{
    struct stat status;
    *device = (struct device){.fd = dup(de_holds_fd(holds))};
    require(fstat(device->fd, &status) == 0);
    device->bytes = (size_t)status.st_size;
    device->memory = mmap(NULL, device->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device->fd, 0);
    require(device->memory != MAP_FAILED);
}

static void device_detach(struct device *device)
{
    munmap(device->memory, device->bytes);
    close(device->fd);
}

static struct de_holds *succeed(struct de_holds *holds, struct device *device)
{
    struct de_holds *next;
    de_holds_close(holds);
    if (de_holds_reopen(directory, DOMAIN, &uuid, GFNS, &next) == DE_OK)
        return next;
    require(de_holds_create(directory, DOMAIN, &uuid, GFNS, &next) == DE_OK);
    device_detach(device);
    device_attach(device, next);
    return next;
}

static void step(struct input *input, struct de_holds **holds, struct device *device)
{
    switch (take(input, 1) % 9) {
    case 0:
    case 1:
        scribble(input, device);
        break;
    case 2:
        ask(input, device);
        break;
    case 3:
        lock(input, *holds, device);
        break;
    case 4:
        de_holds_unlock(*holds, take(input, 2));
        break;
    case 5:
        de_holds_note(*holds, take(input, 2), take(input, 1) & 1 ? DE_HOLDS_OUT : DE_HOLDS_SHARED,
                      take(input, 1) & 1);
        break;
    case 6:
        if (take(input, 1) % 16 == 7) {
            require(ftruncate(device->fd, 0) == 0);
            device->truncated = true;
        }
        break;
    case 7:
        if (take(input, 1) % 16 == 7)
            *holds = succeed(*holds, device);
        break;
    default:
        serve(*holds);
        (void)de_holds_attached(*holds);
    }
}

static void remove_directory(void)
{
    de_holds_remove(directory, DOMAIN);
    rmdir(path);
}

static void make_directory(void)
{
    directory = scratch_make("/dev/shm", path, sizeof path);
    require(directory >= 0 && atexit(remove_directory) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct input input = {.bytes = bytes, .count = count};
    struct de_holds *holds;
    struct device device;
    if (directory < 0)
        make_directory();
    require(de_holds_create(directory, DOMAIN, &uuid, GFNS, &holds) == DE_OK);
    device_attach(&device, holds);
    while (input.count)
        step(&input, &holds, &device);
    if (device.truncated) {
        de_holds_unlock(holds, 0);
        require(!de_holds_attached(holds));
    }
    de_holds_close(holds);
    device_detach(&device);
    return 0;
}
