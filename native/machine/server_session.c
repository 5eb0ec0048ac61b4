/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One client: its welcome, its lanes' threads, and what is released when it hangs up or dies. */
#define _GNU_SOURCE
#include "server_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CLOSE_STEP_NS 2000000
#define WORKER_STACK_BYTES (512u * 1024u)

bool worker_call(struct worker *worker, bool (*only)(const struct call *call))
{
    struct lane *lane = worker->lane;
    struct call call;
    uint32_t state = LANE_CALL;
    if (!atomic_compare_exchange_strong(&lane->state, &state, LANE_RUNNING))
        return false;
    copy_in(&call, &lane->call, sizeof call);
    if (only && !only(&call)) {
        atomic_store(&lane->state, LANE_CALL);
        lane_wake(lane, LANE_MACHINE);
        return false;
    }
    call_run(worker->session, &call, lane->data);
    lane->call.result = call.result;
    memcpy(lane->call.words, call.words, sizeof call.words);
    lane_hand_over(lane, LANE_DONE, LANE_CLIENT);
    return true;
}

static void *worker_run(void *argument)
{
    struct worker *worker = argument;
    struct lane *lane = worker->lane;
    while (!atomic_load(&worker->session->closing)) {
        uint32_t state = atomic_load(&lane->state);
        if (state != LANE_CALL)
            lane_await(lane, state, LANE_MACHINE, SPIN_NS, LANE_FOREVER);
        else
            worker_call(worker, NULL);
    }
    return NULL;
}

static void worker_start(struct session *session, uint32_t index)
{
    if (index >= LANES || session->workers[index].started)
        return;
    struct worker *worker = &session->workers[index];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, WORKER_STACK_BYTES);
    worker->started = !pthread_create(&worker->thread, &attributes, worker_run, worker);
    pthread_attr_destroy(&attributes);
    /* The client waits for this lane: it must not wait for ever. */
    if (!worker->started)
        atomic_store(&session->closing, true);
}

/* The area is the client's too, so waking a worker once is not enough: the client may undo it. */
static void workers_stop(struct session *session)
{
    atomic_store(&session->closing, true);
    for (uint32_t i = 0; i < LANES; i++) {
        struct worker *worker = &session->workers[i];
        while (worker->started) {
            static const struct timespec step = {.tv_nsec = CLOSE_STEP_NS};
            atomic_store(&worker->lane->state, LANE_CLOSED);
            lane_wake(worker->lane, LANE_MACHINE | LANE_CLIENT);
            ring_interrupt(session->server->machine, &session->channel);
            session_kick(session);
            struct timespec deadline;
            clock_gettime(CLOCK_REALTIME, &deadline);
            deadline.tv_nsec += step.tv_nsec;
            if (deadline.tv_nsec >= 1000000000) {
                deadline.tv_sec++;
                deadline.tv_nsec -= 1000000000;
            }
            worker->started = pthread_timedjoin_np(worker->thread, NULL, &deadline) != 0;
        }
    }
}

static void pins_release(struct session *session)
{
    struct de_machine *machine = session->server->machine;
    for (uint32_t frame = 0; session->pins && frame < machine->frame_count; frame++) {
        const uint8_t *page = frame_address(machine, frame);
        for (; session->pins[frame]; session->pins[frame]--)
            de_machine_unmap(machine, &page, 1);
    }
}

/* A client of another user gets nothing: guests' memory is theirs alone. */
static int check_hello(const struct session *session, const struct hello *hello, ssize_t length)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(session->socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return -errno;
    if (peer.uid != geteuid() && peer.uid != 0)
        return -EACCES;
    if (length != sizeof *hello || hello->magic != PROTOCOL_MAGIC || hello->version != PROTOCOL_VERSION ||
        hello->role > 1)
        return -EPROTO;
    pthread_mutex_lock(&session->server->lock);
    bool room = session->server->sessions <= MAX_SESSIONS;
    pthread_mutex_unlock(&session->server->lock);
    return room ? 0 : -EUSERS;
}

static int area_create(struct session *session)
{
    int fd = memfd_create("diffengine-area", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    void *area = MAP_FAILED;
    if (ftruncate(fd, sizeof *session->area) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        area = mmap(NULL, sizeof *session->area, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (area == MAP_FAILED) {
        int error = -errno;
        close(fd);
        return error;
    }
    session->area = area;
    for (size_t i = 0; i < LANES; i++)
        session->workers[i] = (struct worker){.session = session, .lane = &session->area->lanes[i]};
    (void)madvise(area, sizeof *session->area, MADV_DONTDUMP);
    return fd;
}

static bool send_welcome(const struct session *session, int error, const int *fds, size_t count)
{
    struct welcome welcome = {
        .magic = PROTOCOL_MAGIC,
        .version = PROTOCOL_VERSION,
        .error = error,
        .frames = session->server->machine->frame_count,
    };
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec vector = {.iov_base = &welcome, .iov_len = sizeof welcome};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (count) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    return sendmsg(session->socket, &message, MSG_NOSIGNAL) == sizeof welcome;
}

static bool welcome(struct session *session)
{
    struct hello hello = {.magic = 0};
    ssize_t length = recv(session->socket, &hello, sizeof hello, 0);
    int error = check_hello(session, &hello, length);
    if (!error) {
        session->device_model = hello.role;
        session->pins = calloc(session->server->machine->frame_count, sizeof *session->pins);
        error = session->pins ? 0 : -ENOMEM;
    }
    int area_fd = error ? -1 : area_create(session);
    if (!error && area_fd < 0)
        error = area_fd;
    int fds[2] = {area_fd, session->device_model ? de_machine_fd(session->server->machine)
                                                 : session->server->frames_fd};
    bool sent = send_welcome(session, error, fds, error ? 0 : 2);
    if (area_fd >= 0)
        close(area_fd);
    return sent && !error;
}

/* @param[out] fd The descriptor that came with the request, or -1. @return false: hung up. */
static bool receive(const struct session *session, struct socket_request *request, int *fd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec vector = {.iov_base = request, .iov_len = sizeof *request};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    *fd = -1;
    /* A descriptor too many is closed by the kernel, which has no room to put it (MSG_CTRUNC). */
    ssize_t length = recvmsg(session->socket, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = length >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return length == sizeof *request;
}

static int add_contents(struct session *session, int fd)
{
    struct socket_answer answer = {.result = -EINVAL};
    if (fd >= 0)
        answer.result = contents_add(session, fd, &answer.contents);
    return send(session->socket, &answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer ? 0 : -EPIPE;
}

/* Until the client hangs up, or says something that no client says. */
static void answer_requests(struct session *session)
{
    int error = 0;
    while (!error && !atomic_load(&session->closing)) {
        struct socket_request request = {.kind = 0};
        int fd;
        bool whole = receive(session, &request, &fd);
        bool contents = whole && request.kind == REQUEST_CONTENTS;
        if (contents)
            error = add_contents(session, fd);
        else if (fd >= 0)
            close(fd);
        if (whole && !contents)
            worker_start(session, request.lane);
        if (!whole)
            error = -EPIPE;
    }
}

static void session_free(struct session *session)
{
    struct server *server = session->server;
    channel_destroy(&session->channel);
    pthread_mutex_destroy(&session->lock);
    free(session->pins);
    /* Nothing after this: the server goes with its last session. */
    pthread_mutex_lock(&server->lock);
    struct session **link = &server->first_session;
    while (*link != session)
        link = &(*link)->next;
    *link = session->next;
    server->sessions--;
    close(session->socket);
    free(session);
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

void *session_run(void *argument)
{
    struct session *session = argument;
    if (welcome(session))
        answer_requests(session);
    /* The client, if it lives, learns of the end only when everything is released. */
    workers_stop(session);
    channel_abandon(session->server->machine, &session->channel);
    wait_for_errands(session);
    session_free_vcpus(session);
    pins_release(session);
    contents_drop(session);
    if (session->area)
        munmap(session->area, sizeof *session->area);
    session_free(session);
    return NULL;
}
