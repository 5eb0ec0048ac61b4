/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who comes to the pager's socket for a hold table. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <diffengine/device_models.h>
#include <diffengine/pager.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_VISITORS (DE_PAGER_MAX_DOMAINS + 64u)
/** How often to look for a table that somebody waits for. */
#define LOOK_MS 100

/** A connection. */
struct visitor {
    int socket;
    bool known;      /**< said hello */
    bool waits;      /**< and waits for a table */
    uint16_t domain; /**< if known: for good, as it may have given up the privileges that it came with */
};

struct de_device_models {
    struct de_pager *pager;
    int listener, end; /**< end: an eventfd */
    pthread_t thread;
    size_t count;
    struct visitor visitors[MAX_VISITORS];
};

bool de_device_model_hello_check(const void *untrusted, size_t bytes, struct de_device_model_hello *hello)
{
    if (bytes != sizeof *hello)
        return false;
    memcpy(hello, untrusted, sizeof *hello);
    return hello->magic == DE_DEVICE_MODELS_MAGIC;
}

/* Root may do to a domain what it likes anyway, and so may the user that the pager runs as. */
static bool is_trusted(int socket)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

/* @param fd -1: none. */
static bool send_answer(int socket, enum de_device_model_answer_kind kind, int fd)
{
    struct de_device_model_answer answer = {
        .magic = DE_DEVICE_MODELS_MAGIC, .version = DE_DEVICE_MODELS_VERSION, .kind = (uint16_t)kind};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec vector = {.iov_base = &answer, .iov_len = sizeof answer};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof answer;
}

/* @return whether the visitor stays. */
static bool take_hello(struct visitor *visitor)
{
    struct de_device_model_hello hello;
    uint8_t untrusted[sizeof hello + 1];
    ssize_t bytes = recv(visitor->socket, untrusted, sizeof untrusted, MSG_DONTWAIT);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    /* Whoever says more than one thing at a time, or leaves, is done with. */
    if (bytes <= 0 || visitor->waits || !de_device_model_hello_check(untrusted, (size_t)bytes, &hello) ||
        (visitor->known && visitor->domain != hello.domain))
        return false;
    bool same = hello.version == DE_DEVICE_MODELS_VERSION;
    visitor->waits = visitor->known = same;
    visitor->domain = hello.domain;
    return send_answer(visitor->socket, same ? DE_DEVICE_MODEL_WAIT : DE_DEVICE_MODEL_VERSION, -1) && same;
}

/* If there is one. */
static void give_table(struct de_device_models *models, struct visitor *visitor)
{
    char path[64];
    /* The pager need not have heard of it from anybody else. */
    if (de_pager_set_device_model(models->pager, visitor->domain) != DE_OK ||
        de_pager_holds_path(models->pager, visitor->domain, path, sizeof path) != DE_OK)
        return;
    /* A description of its own, as the lock is on that. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    /* If it can't be sent, nobody is there, and that will be seen. */
    send_answer(visitor->socket, DE_DEVICE_MODEL_TABLE, fd);
    close(fd);
    visitor->waits = false;
}

static void welcome(struct de_device_models *models)
{
    int socket = accept4(models->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0)
        return;
    if (models->count == MAX_VISITORS || !is_trusted(socket)) {
        close(socket);
        return;
    }
    models->visitors[models->count++] = (struct visitor){.socket = socket};
}

static void look_after(struct de_device_models *models, const struct pollfd *polls, size_t polled)
{
    size_t kept = 0;
    for (size_t i = 0; i < models->count; i++) {
        struct visitor visitor = models->visitors[i];
        bool stays = i >= polled || !polls[i].revents || take_hello(&visitor);
        if (stays && visitor.waits)
            give_table(models, &visitor);
        if (stays)
            models->visitors[kept++] = visitor;
        else
            close(visitor.socket);
    }
    models->count = kept;
}

static bool somebody_waits(const struct de_device_models *models)
{
    for (size_t i = 0; i < models->count; i++)
        if (models->visitors[i].waits)
            return true;
    return false;
}

static void *listen_thread(void *argument)
{
    struct de_device_models *models = argument;
    for (;;) {
        struct pollfd polls[2 + MAX_VISITORS] = {{.fd = models->end, .events = POLLIN},
                                                 {.fd = models->listener, .events = POLLIN}};
        size_t polled = models->count;
        for (size_t i = 0; i < polled; i++)
            polls[2 + i] = (struct pollfd){.fd = models->visitors[i].socket, .events = POLLIN};
        if (poll(polls, 2 + polled, somebody_waits(models) ? LOOK_MS : -1) < 0 && errno != EINTR)
            return NULL;
        if (polls[0].revents)
            return NULL;
        if (polls[1].revents)
            welcome(models);
        look_after(models, polls + 2, polled);
    }
}

static int open_listener(const char *directory)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/" DE_DEVICE_MODELS_SOCKET, directory);
    if (length < 0 || (size_t)length >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0)
        return -1;
    /* Only one pager has the directory, so what is there is a former one's. */
    unlink(address.sun_path);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) == 0 &&
        chmod(address.sun_path, 0600) == 0 && listen(listener, (int)MAX_VISITORS) == 0)
        return listener;
    int error = errno;
    close(listener);
    errno = error;
    return -1;
}

int de_device_models_create(const char *directory, struct de_pager *pager, struct de_device_models **result)
{
    struct de_device_models *models = calloc(1, sizeof *models);
    if (!models)
        return DE_NO_MEMORY;
    models->pager = pager;
    models->listener = open_listener(directory);
    models->end = models->listener < 0 ? -1 : eventfd(0, EFD_CLOEXEC);
    if (models->end >= 0) {
        errno = pthread_create(&models->thread, NULL, listen_thread, models);
        if (!errno) {
            *result = models;
            return DE_OK;
        }
    }
    int error = errno;
    if (models->listener >= 0)
        close(models->listener);
    if (models->end >= 0)
        close(models->end);
    free(models);
    errno = error;
    return DE_SYSTEM;
}

void de_device_models_free(struct de_device_models *models)
{
    if (!models)
        return;
    eventfd_write(models->end, 1);
    pthread_join(models->thread, NULL);
    for (size_t i = 0; i < models->count; i++)
        close(models->visitors[i].socket);
    close(models->listener);
    close(models->end);
    free(models);
}
