/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "pager_link.h"

#include "settings.h"

#include <diffengine/device_models.h>
#include <diffengine/status.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

/* By the real functions: the pager's messages never lie in guest memory. */
#include "next.h"

#define ANSWER_MS 1000

static int connection = -1;
static int table = -1;
static bool greeted;
static enum link_state state = LINK_NONE;
static _Atomic(struct de_holds *) attached;

static void hang_up(void)
{
    if (connection >= 0)
        close(connection);
    connection = -1;
    greeted = false;
    state = LINK_NONE;
}

void link_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (connection >= 0 || state == LINK_ATTACHED || state == LINK_RECEIVED)
        return;
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/" DE_DEVICE_MODELS_SOCKET,
                          settings_get()->state);
    if (length < 0 || (size_t)length >= sizeof address.sun_path)
        return;
    connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection >= 0 && connect(connection, (const struct sockaddr *)&address, sizeof address))
        hang_up();
}

static bool say_hello(uint32_t domain)
{
    struct de_device_model_hello hello = {
        .magic = DE_DEVICE_MODELS_MAGIC, .version = DE_DEVICE_MODELS_VERSION, .domain = (uint16_t)domain};
    greeted = next_functions()->sendto(connection, &hello, sizeof hello, MSG_NOSIGNAL, NULL, 0) ==
              (ssize_t)sizeof hello;
    return greeted;
}

/* It is tried over and over, and said once. */
static void complain(const char *why)
{
    static bool said;
    if (!said)
        fprintf(stderr, "diffengine-ioemu: %s; nothing of this domain is evicted\n", why);
    said = true;
}

static void take_answer(const struct de_device_model_answer *answer, int fd)
{
    bool known = answer->magic == DE_DEVICE_MODELS_MAGIC && answer->version == DE_DEVICE_MODELS_VERSION;
    if (known && answer->kind == DE_DEVICE_MODEL_WAIT && fd < 0) {
        state = LINK_WAITING;
        return;
    }
    if (known && answer->kind == DE_DEVICE_MODEL_TABLE && fd >= 0) {
        table = fd;
        state = LINK_RECEIVED;
        return;
    }
    hang_up();
    complain("the pager speaks another version of the protocol; this domain's memory stays mapped");
    if (fd >= 0)
        close(fd);
}

static void receive(void)
{
    struct de_device_model_answer answer;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec vector = {.iov_base = &answer, .iov_len = sizeof answer};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd = -1;
    ssize_t bytes = next_functions()->recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (bytes > 0 && header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    if (bytes == (ssize_t)sizeof answer) {
        take_answer(&answer, fd);
        return;
    }
    hang_up();
    if (fd >= 0)
        close(fd);
}

static bool has_answer(int timeout_ms)
{
    struct pollfd poll_connection = {.fd = connection, .events = POLLIN};
    return poll(&poll_connection, 1, timeout_ms) == 1;
}

enum link_state link_continue(uint32_t domain)
{
    if (state == LINK_RECEIVED || (state == LINK_ATTACHED && !de_holds_ended(link_holds())))
        return state;
    if (state == LINK_ATTACHED) {
        greeted = false;
        state = LINK_NONE;
    }
    link_connect();
    if (connection < 0)
        return state;
    int timeout_ms = 0;
    if (!greeted) {
        if (!say_hello(domain)) {
            hang_up();
            return state;
        }
        timeout_ms = ANSWER_MS;
    }
    while (connection >= 0 && has_answer(timeout_ms)) {
        receive();
        timeout_ms = 0;
    }
    return state;
}

bool link_attach(void)
{
    struct de_holds *holds;
    int status = de_holds_attach_fd(table, &holds);
    table = -1;
    greeted = false;
    state = status == DE_OK ? LINK_ATTACHED : LINK_NONE;
    if (status == DE_OK)
        de_holds_close(atomic_exchange(&attached, holds));
    else
        complain(de_status_text(status));
    return status == DE_OK;
}

struct de_holds *link_holds(void)
{
    return atomic_load(&attached);
}
