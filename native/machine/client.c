/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A connection to the machine's process: made, called over, ended. */
#define _GNU_SOURCE
#include "client_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000u
/* Most calls take a microsecond or two: worth staying awake for. */
#define SPIN_NS 20000u
/* How often a caller that sleeps looks whether the machine is still there. */
#define LOOK_NS 100000000u

static bool look_for_hangup(struct de_machine_client *client)
{
    struct pollfd poll_socket = {.fd = client->socket};
    if (poll(&poll_socket, 1, 0) == 1 && (poll_socket.revents & (POLLHUP | POLLERR)))
        atomic_store(&client->gone, true);
    return atomic_load(&client->gone);
}

static bool send_request(struct de_machine_client *client, const struct socket_request *request)
{
    bool sent = send(client->socket, request, sizeof *request, MSG_NOSIGNAL) == sizeof *request;
    if (!sent)
        atomic_store(&client->gone, true);
    return sent;
}

struct lane *client_take(struct de_machine_client *client)
{
    pthread_mutex_lock(&client->lock);
    while (client->busy == UINT32_MAX && !atomic_load(&client->gone))
        pthread_cond_wait(&client->given, &client->lock);
    struct lane *lane = NULL;
    if (!atomic_load(&client->gone)) {
        /* The lowest, so that a thread that calls often meets a machine's thread that still looks for calls.
         */
        uint32_t index = (uint32_t)__builtin_ctz(~client->busy);
        uint32_t bit = 1u << index;
        struct socket_request request = {.kind = REQUEST_LANE, .lane = index};
        if ((client->opened & bit) || send_request(client, &request)) {
            client->opened |= bit;
            client->busy |= bit;
            lane = &client->area->lanes[index];
        }
    }
    pthread_mutex_unlock(&client->lock);
    return lane;
}

void client_give(struct de_machine_client *client, struct lane *lane)
{
    pthread_mutex_lock(&client->lock);
    client->busy &= ~(1u << (lane - client->area->lanes));
    pthread_cond_signal(&client->given);
    if (atomic_load(&client->gone))
        pthread_cond_broadcast(&client->given);
    pthread_mutex_unlock(&client->lock);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static bool under_way(uint32_t state)
{
    return state == LANE_CALL || state == LANE_RUNNING || state == LANE_WAITING;
}

int64_t client_call(struct de_machine_client *client, struct lane *lane, struct call *call)
{
    uint64_t spin_ns = call->operation == OPERATION_WAIT ? 0 : SPIN_NS;
    lane->call = *call;
    lane_hand_over(lane, LANE_CALL, LANE_MACHINE);
    return client_await(client, lane, call, spin_ns);
}

int64_t client_await(struct de_machine_client *client, struct lane *lane, struct call *call, uint64_t spin_ns)
{
    uint32_t state;
    while (under_way(state = atomic_load(&lane->state))) {
        if (lane_await(lane, state, LANE_CLIENT, spin_ns, now_ns() + LOOK_NS))
            continue;
        spin_ns = 0;
        if (look_for_hangup(client))
            return -ECONNRESET;
    }
    if (state != LANE_DONE) {
        atomic_store(&client->gone, true);
        return -ECONNRESET;
    }
    *call = lane->call;
    return call->result;
}

void de_client_spin(struct de_machine_client *client, uint64_t ns)
{
    client->wait_spin_ns = ns;
}

int64_t client_plain(struct de_machine_client *client, struct call *call)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    int64_t result = client_call(client, lane, call);
    client_give(client, lane);
    return result;
}

int client_fetch(struct de_machine_client *client, struct call *call, void *to, size_t bytes)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    int64_t result = client_call(client, lane, call);
    if (result >= 0)
        memcpy(to, lane->data, bytes);
    client_give(client, lane);
    return (int)result;
}

static int connect_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection < 0)
        return -errno;
    if (connect(connection, (const struct sockaddr *)&address, sizeof address) < 0) {
        int error = -errno;
        close(connection);
        return error;
    }
    return connection;
}

/* @param[out] fds The area's and the frames' descriptors. */
static int receive_welcome(int connection, struct welcome *welcome, int fds[2])
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec vector = {.iov_base = welcome, .iov_len = sizeof *welcome};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    if (length <= 0)
        return -ECONNRESET;
    if (length != sizeof *welcome || welcome->magic != PROTOCOL_MAGIC || welcome->version != PROTOCOL_VERSION)
        return -EPROTO;
    if (welcome->error)
        return welcome->error;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(2 * sizeof(int)))
        return -EPROTO;
    memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
    return 0;
}

static int map_memory(struct de_machine_client *client, int area_fd, enum de_client_role role)
{
    void *area = mmap(NULL, sizeof *client->area, PROT_READ | PROT_WRITE, MAP_SHARED, area_fd, 0);
    if (area == MAP_FAILED)
        return -errno;
    client->area = area;
    size_t bytes = (size_t)client->frames * DE_PAGE_SIZE;
    int protection = role == DE_CLIENT_DEVICE_MODEL ? PROT_READ | PROT_WRITE : PROT_READ;
    void *memory = mmap(NULL, bytes, protection, MAP_SHARED, client->frames_fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    client->memory = memory;
    (void)madvise(memory, bytes, MADV_DONTDUMP);
    (void)madvise(area, sizeof *client->area, MADV_DONTDUMP);
    return 0;
}

static int shake_hands(struct de_machine_client *client, enum de_client_role role)
{
    struct hello hello = {.magic = PROTOCOL_MAGIC, .version = PROTOCOL_VERSION, .role = role};
    struct welcome welcome;
    int fds[2];
    if (send(client->socket, &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello)
        return -ECONNRESET;
    int error = receive_welcome(client->socket, &welcome, fds);
    if (error)
        return error;
    client->frames = welcome.frames;
    client->frames_fd = fds[1];
    error = map_memory(client, fds[0], role);
    close(fds[0]);
    return error;
}

int de_client_connect(const char *socket_path, enum de_client_role role, struct de_machine_client **result)
{
    struct de_machine_client *client = calloc(1, sizeof *client);
    if (!client)
        return -ENOMEM;
    client->frames_fd = -1;
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->socket_lock, NULL);
    pthread_cond_init(&client->given, NULL);
    client->socket = connect_socket(socket_path);
    int error = client->socket < 0 ? client->socket : shake_hands(client, role);
    if (error) {
        de_client_free(client);
        return error;
    }
    *result = client;
    return 0;
}

void de_client_free(struct de_machine_client *client)
{
    if (!client)
        return;
    if (client->memory)
        munmap(client->memory, (size_t)client->frames * DE_PAGE_SIZE);
    if (client->area)
        munmap(client->area, sizeof *client->area);
    if (client->frames_fd >= 0)
        close(client->frames_fd);
    if (client->socket >= 0)
        close(client->socket);
    pthread_cond_destroy(&client->given);
    pthread_mutex_destroy(&client->socket_lock);
    pthread_mutex_destroy(&client->lock);
    free(client);
}

int de_client_fd(const struct de_machine_client *client)
{
    return client->frames_fd;
}
