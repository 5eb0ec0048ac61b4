/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "devices.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DISK_PAGES 32u
#define ECHO_PORT 7
#define PARTS 4u
#define PART_BYTES (DE_PAGE_SIZE / PARTS)
#define RESEND_S 2
#define RESENDS 30u

struct part {
    uint32_t number; /**< page * PARTS + part of the page */
    uint8_t bytes[PART_BYTES];
};

int load_modules(void)
{
    char path[128];
    FILE *order = fopen("/lib/order", "r");
    if (!order)
        return -errno;
    int error = 0;
    while (!error && fscanf(order, "%127s", path) == 1) {
        int module = open(path, O_RDONLY | O_CLOEXEC);
        /* Pages of persistent grants would be all that blkback ever maps, and the guest's CPU would copy. */
        const char *options = strstr(path, "blkfront") ? "feature_persistent=0" : "";
        if (module < 0 ||
            (syscall(SYS_finit_module, module, options, 0) && errno != EEXIST && errno != ENODEV))
            error = -errno;
        if (module >= 0)
            close(module);
    }
    fclose(order);
    return error;
}

/* Pages move in runs, each read or written with one call; O_DIRECT, so the device has the very pages. */
static int move_pages(const char *path, bool write, int region, uint32_t pages)
{
    int disk = open(path, (write ? O_WRONLY : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    if (disk < 0)
        return -errno;
    int error = 0;
    for (uint32_t first = 0; !error && first < pages; first += DISK_PAGES) {
        uint32_t count = pages - first < DISK_PAGES ? pages - first : DISK_PAGES;
        size_t length = (size_t)count * DE_PAGE_SIZE;
        off_t at = (off_t)first * DE_PAGE_SIZE;
        uint8_t *memory = region_page(region, first);
        ssize_t moved = write ? pwrite(disk, memory, length, at) : pread(disk, memory, length, at);
        if (moved != (ssize_t)length)
            error = moved < 0 ? -errno : -ENOSPC;
    }
    close(disk);
    return error;
}

void compare_regions(int region, int into, struct access_counts *counts)
{
    for (uint32_t page = 0; page < region_pages(region) && page < region_pages(into); page++) {
        uint64_t wrong = region_wrong(region, page, region_page(into, page));
        counts->reads++;
        counts->wrong_pages += wrong > 0;
        counts->wrong_bytes += wrong;
    }
}

int disk_write(const char *path, int region, struct access_counts *counts)
{
    uint32_t pages = region_pages(region);
    if (!pages)
        return -ENOENT;
    int error = move_pages(path, true, region, pages);
    if (!error)
        counts->writes += pages;
    return error;
}

int disk_fetch(const char *path, int region, int into)
{
    uint32_t pages = region_pages(region);
    if (!pages || region_pages(into) < pages)
        return -ENOENT;
    return move_pages(path, false, into, pages);
}

int disk_read(const char *path, int region, int into, struct access_counts *counts)
{
    int error = disk_fetch(path, region, into);
    if (!error)
        compare_regions(region, into, counts);
    return error;
}

/* Gives eth0 an address and turns it on; again is no error. */
static int set_up_interface(int any_socket, const char *own)
{
    struct ifreq request = {.ifr_name = "eth0"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    address->sin_family = AF_INET;
    if (inet_pton(AF_INET, own, &address->sin_addr) != 1)
        return -EINVAL;
    if (ioctl(any_socket, SIOCSIFADDR, &request))
        return -errno;
    inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
    if (ioctl(any_socket, SIOCSIFNETMASK, &request))
        return -errno;
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    return ioctl(any_socket, SIOCSIFFLAGS, &request) ? -errno : 0;
}

/* One part there and back. Late answers to earlier ones are passed over. */
static int echo_part(int connection, const uint8_t *bytes, uint32_t number, uint8_t *back)
{
    struct part part = {.number = number}, answer;
    memcpy(part.bytes, bytes, PART_BYTES);
    for (uint32_t i = 0; i < RESENDS; i++) {
        /* An error here is one that an earlier datagram met (no route yet): it is sent again. */
        if (send(connection, &part, sizeof part, 0) < 0)
            sleep(RESEND_S);
        while (recv(connection, &answer, sizeof answer, 0) == (ssize_t)sizeof answer)
            if (answer.number == number) {
                memcpy(back, answer.bytes, PART_BYTES);
                return 0;
            }
    }
    return -ETIMEDOUT;
}

int net_echo(const char *own, const char *peer, int region, int into, struct access_counts *counts)
{
    uint32_t pages = region_pages(region);
    if (!pages || region_pages(into) < pages)
        return -ENOENT;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT)};
    if (inet_pton(AF_INET, peer, &to.sin_addr) != 1)
        return -EINVAL;
    int connection = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (connection < 0)
        return -errno;
    struct timeval wait = {.tv_sec = RESEND_S};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    int error = set_up_interface(connection, own);
    if (!error && connect(connection, (struct sockaddr *)&to, sizeof to))
        error = -errno;
    for (uint32_t number = 0; !error && number < pages * PARTS; number++) {
        uint32_t offset = number % PARTS * PART_BYTES;
        error = echo_part(connection, region_page(region, number / PARTS) + offset, number,
                          region_page(into, number / PARTS) + offset);
    }
    close(connection);
    if (!error)
        compare_regions(region, into, counts);
    return error;
}
