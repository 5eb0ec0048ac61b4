/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machine's process: its socket, its clients, and its end. */
#define _GNU_SOURCE
#include "server_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum watched { WATCH_LISTENER, WATCH_SIGNALS, WATCH_STOP, WATCH_PARENT, WATCHES };

struct refusal {
    char *text;
    size_t capacity;
};

static int refuse(const struct refusal *refusal, int error, const char *what, const char *name)
{
    if (refusal->capacity)
        snprintf(refusal->text, refusal->capacity, "%s%s%s: %s", what, *name ? " " : "", name,
                 strerror(-error));
    return error;
}

/* A socket that nobody listens on is what a machine that died left behind. */
static int remove_stale(const struct sockaddr_un *address)
{
    struct stat file;
    if (lstat(address->sun_path, &file) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(file.st_mode))
        return -EEXIST;
    int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (probe < 0)
        return -errno;
    int error = connect(probe, (const struct sockaddr *)address, sizeof *address) == 0 ? -EADDRINUSE : 0;
    close(probe);
    if (!error && unlink(address->sun_path) < 0)
        error = -errno;
    return error;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int error = remove_stale(&address);
    if (error)
        return error;
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0)
        return -errno;
    mode_t mask = umask(0177);
    error = bind(listener, (const struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    umask(mask);
    if (!error && listen(listener, (int)MAX_SESSIONS) < 0)
        error = -errno;
    if (error) {
        close(listener);
        return error;
    }
    return listener;
}

/* Opened anew, since a descriptor for writing could be mapped for writing by any client. */
static int reopen_read_only(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    return read_only < 0 ? -errno : read_only;
}

static int session_start(struct server *server, int socket)
{
    struct session *session = calloc(1, sizeof *session);
    if (!session)
        return -ENOMEM;
    session->server = server;
    session->socket = socket;
    int error = channel_init(&session->channel);
    if (error) {
        free(session);
        return error;
    }
    session->channel.announce = wait_announce;
    session->channel.run_errand = wait_errand;
    pthread_mutex_init(&session->lock, NULL);
    pthread_mutex_lock(&server->lock);
    session->next = server->first_session;
    server->first_session = session;
    server->sessions++;
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = -pthread_create(&thread, &attributes, session_run, session);
    pthread_attr_destroy(&attributes);
    if (error) {
        server->first_session = session->next;
        server->sessions--;
        channel_destroy(&session->channel);
        pthread_mutex_destroy(&session->lock);
        free(session);
    }
    pthread_mutex_unlock(&server->lock);
    return error;
}

static void accept_client(struct server *server)
{
    int socket = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (socket >= 0 && session_start(server, socket))
        close(socket);
}

/* Until something says that it is over. */
static void serve(struct server *server, int signals, int parent)
{
    struct pollfd watched[WATCHES] = {
        [WATCH_LISTENER] = {.fd = server->listener, .events = POLLIN},
        [WATCH_SIGNALS] = {.fd = signals, .events = POLLIN},
        [WATCH_STOP] = {.fd = server->stop_fd, .events = POLLIN},
        [WATCH_PARENT] = {.fd = parent, .events = POLLIN},
    };
    for (;;) {
        if (poll(watched, WATCHES, -1) < 0 && errno != EINTR)
            return;
        if (watched[WATCH_SIGNALS].revents || watched[WATCH_STOP].revents || watched[WATCH_PARENT].revents)
            return;
        if (watched[WATCH_LISTENER].revents)
            accept_client(server);
    }
}

static void hang_up(struct server *server)
{
    pthread_mutex_lock(&server->lock);
    for (struct session *session = server->first_session; session; session = session->next) {
        atomic_store(&session->closing, true);
        shutdown(session->socket, SHUT_RDWR);
    }
    while (server->sessions)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
}

static void close_unless(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* @param[out] signals,parent Descriptors that become readable when it is time to end; parent: -1 if none. */
static int watch_for_end(struct server *server, const struct de_machine_server_options *options, int *signals,
                         int *parent)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    *signals = signalfd(-1, &set, SFD_CLOEXEC);
    server->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (*signals < 0 || server->stop_fd < 0)
        return -errno;
    if (!options->parent)
        return 0;
    /* If it ended before this, its number may be another's already; but then we have another parent. */
    *parent = (int)syscall(SYS_pidfd_open, options->parent, 0);
    if (*parent < 0)
        return -errno;
    return getppid() == options->parent ? 0 : -ESRCH;
}

static int prepare(struct server *server, const struct de_machine_server_options *options,
                   const struct refusal *refusal)
{
    char frames[32];
    snprintf(frames, sizeof frames, "%u frames", options->frames);
    int error = de_machine_create(options->frames, &server->machine);
    if (error)
        return refuse(refusal, error, "making a machine of", frames);
    server->frames_fd = reopen_read_only(de_machine_fd(server->machine));
    if (server->frames_fd < 0)
        return refuse(refusal, server->frames_fd, "opening the machine's memory", "");
    server->listener = listen_at(options->socket_path);
    if (server->listener < 0)
        return refuse(refusal, server->listener, "listening at", options->socket_path);
    return 0;
}

static void tell_ready(int fd)
{
    static const char ready[] = "ready\n";
    /* Who does not read it does not want to know. */
    if (fd >= 0 && write(fd, ready, sizeof ready - 1) < 0)
        return;
}

static void server_free(struct server *server)
{
    de_machine_free(server->machine);
    close_unless(server->frames_fd);
    close_unless(server->stop_fd);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

int de_machine_server_run(const struct de_machine_server_options *options, char *text, size_t capacity)
{
    const struct refusal refusal = {.text = text, .capacity = capacity};
    int signals = -1;
    int parent = -1;
    struct server *server = calloc(1, sizeof *server);
    if (!server)
        return refuse(&refusal, -ENOMEM, "starting the machine", "");
    server->listener = server->frames_fd = server->stop_fd = -1;
    server->evict_us = options->evict_us;
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    int error = watch_for_end(server, options, &signals, &parent);
    if (error)
        refuse(&refusal, error, "watching for the end", "");
    else
        error = prepare(server, options, &refusal);
    if (!error) {
        tell_ready(options->ready_fd);
        serve(server, signals, parent);
        unlink(options->socket_path);
        close(server->listener);
        hang_up(server);
        server_stop_programs(server);
    }
    close_unless(signals);
    close_unless(parent);
    server_free(server);
    return error;
}
