/* SPDX-License-Identifier: GPL-2.0-or-later */
/* machine.h's and program.h's calls, made to the machine's process. */
#define _GNU_SOURCE
#include "client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define CRASH_TEXT 256u

struct de_client_vcpu {
    struct de_machine_client *client;
    uint64_t slot;
    uint64_t *samples_ns;
    size_t sample_capacity;
};

static int call_words(struct de_machine_client *client, enum operation operation, uint64_t first,
                      uint64_t second)
{
    struct call call = {.operation = operation, .words = {first, second}};
    return (int)client_plain(client, &call);
}

int de_client_shut_down(struct de_machine_client *client)
{
    int error = call_words(client, OPERATION_SHUT_DOWN, 0, 0);
    /* It may well hang up before it answers. */
    return error == -ECONNRESET ? 0 : error;
}

int de_client_account(struct de_machine_client *client, struct de_machine_accounting *accounting)
{
    struct call call = {.operation = OPERATION_ACCOUNT};
    return client_fetch(client, &call, accounting, sizeof *accounting);
}

int de_client_domain_create(struct de_machine_client *client, uint32_t gfns, uint16_t *domain)
{
    struct call call = {.operation = OPERATION_DOMAIN_CREATE, .words = {gfns}};
    int error = (int)client_plain(client, &call);
    if (!error)
        *domain = (uint16_t)call.words[0];
    return error;
}

int de_client_domain_create_as(struct de_machine_client *client, uint32_t gfns, const struct de_uuid *uuid,
                               uint16_t *domain)
{
    struct call call = {.operation = OPERATION_DOMAIN_CREATE, .words = {gfns, *domain, true}};
    memcpy(&call.words[3], uuid, sizeof *uuid);
    int error = (int)client_plain(client, &call);
    if (!error)
        *domain = (uint16_t)call.words[0];
    return error;
}

int de_client_domain_destroy(struct de_machine_client *client, uint16_t domain)
{
    return call_words(client, OPERATION_DOMAIN_DESTROY, domain, 0);
}

int de_client_domain_list(struct de_machine_client *client, uint16_t first, struct de_domain_info *infos,
                          size_t capacity)
{
    size_t done = 0;
    for (uint32_t from = first; done < capacity && from <= UINT16_MAX;) {
        size_t wanted = capacity - done < LIST_BATCH ? capacity - done : LIST_BATCH;
        struct call call = {.operation = OPERATION_DOMAIN_LIST, .count = (uint32_t)wanted, .words = {from}};
        struct lane *lane = client_take(client);
        if (!lane)
            return -ECONNRESET;
        int64_t listed = client_call(client, lane, &call);
        if (listed > 0)
            memcpy(infos + done, lane->data, (size_t)listed * sizeof *infos);
        client_give(client, lane);
        if (listed < 0)
            return (int)listed;
        done += (size_t)listed;
        if ((size_t)listed < wanted)
            break;
        from = infos[done - 1].domain + 1u;
    }
    return (int)done;
}

int de_client_domain_account(struct de_machine_client *client, uint16_t domain,
                             struct de_domain_accounting *accounting)
{
    struct call call = {.operation = OPERATION_DOMAIN_ACCOUNT, .words = {domain}};
    return client_fetch(client, &call, accounting, sizeof *accounting);
}

int de_client_domain_crash_reason(struct de_machine_client *client, uint16_t domain, char *text,
                                  size_t capacity)
{
    char reason[CRASH_TEXT] = "";
    struct call call = {.operation = OPERATION_CRASH_REASON, .words = {domain}};
    int error = client_fetch(client, &call, reason, sizeof reason);
    if (!error && capacity)
        snprintf(text, capacity, "%.*s", (int)sizeof reason - 1, reason);
    return error;
}

int de_client_p2m_type(struct de_machine_client *client, uint16_t domain, uint32_t gfn)
{
    return call_words(client, OPERATION_P2M_TYPE, domain, gfn);
}

int de_client_claim(struct de_machine_client *client, uint16_t domain, uint64_t pages)
{
    return call_words(client, OPERATION_CLAIM, domain, pages);
}

int de_client_log_dirty_enable(struct de_machine_client *client, uint16_t domain)
{
    return call_words(client, OPERATION_LOG_DIRTY_ENABLE, domain, 0);
}

int de_client_log_dirty_disable(struct de_machine_client *client, uint16_t domain)
{
    return call_words(client, OPERATION_LOG_DIRTY_DISABLE, domain, 0);
}

int de_client_log_dirty_read(struct de_machine_client *client, uint16_t domain, bool clean, uint32_t first,
                             uint32_t count, uint8_t *bits)
{
    uint32_t done = 0;
    do {
        uint32_t now = count - done < DIRTY_BATCH ? count - done : DIRTY_BATCH;
        struct call call = {
            .operation = OPERATION_LOG_DIRTY_READ, .count = now, .words = {domain, clean, first + done}};
        int error = client_fetch(client, &call, bits + done / 8, ((size_t)now + 7) / 8);
        if (error)
            return error;
        done += now;
    } while (done < count);
    return 0;
}

static int64_t populate_batch(struct de_machine_client *client, uint16_t domain, const uint32_t *gfns,
                              const uint8_t *const *pages, size_t count, int32_t *errors)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    struct populate_arrays *area = (struct populate_arrays *)lane->data;
    struct call call = {.operation = OPERATION_POPULATE, .count = (uint32_t)count, .words = {domain}};
    memcpy(area->gfns, gfns, count * sizeof *gfns);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = pages ? pages[i] : NULL;
        area->zero[i] = !page;
        if (page)
            memcpy(area->pages[i], page, DE_PAGE_SIZE);
    }
    int64_t populated = client_call(client, lane, &call);
    if (populated >= 0 && errors)
        memcpy(errors, area->errors, count * sizeof *errors);
    client_give(client, lane);
    return populated;
}

int64_t de_client_populate(struct de_machine_client *client, uint16_t domain, const uint32_t *gfns,
                           const uint8_t *const *pages, size_t count, int32_t *errors)
{
    int64_t populated = 0;
    for (size_t done = 0; done < count;) {
        uint32_t now_gfns[POPULATE_BATCH];
        size_t now = count - done < POPULATE_BATCH ? count - done : POPULATE_BATCH;
        for (size_t i = 0; i < now; i++)
            now_gfns[i] = gfns ? gfns[done + i] : (uint32_t)(done + i);
        int64_t result = populate_batch(client, domain, now_gfns, pages ? pages + done : NULL, now,
                                        errors ? errors + done : NULL);
        if (result < 0)
            return result;
        populated += result;
        done += now;
    }
    return populated;
}

int de_client_vcpu_create(struct de_machine_client *client, uint16_t domain, struct de_client_vcpu **result)
{
    struct de_client_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return -ENOMEM;
    struct call call = {.operation = OPERATION_VCPU_CREATE, .words = {domain}};
    int error = (int)client_plain(client, &call);
    if (error) {
        free(vcpu);
        return error;
    }
    vcpu->client = client;
    vcpu->slot = call.words[0];
    *result = vcpu;
    return 0;
}

void de_client_vcpu_free(struct de_client_vcpu *vcpu)
{
    if (!vcpu)
        return;
    call_words(vcpu->client, OPERATION_VCPU_FREE, vcpu->slot, 0);
    free(vcpu);
}

int de_client_vcpu_statistics(struct de_client_vcpu *vcpu, struct de_vcpu_statistics *statistics)
{
    uint8_t data[sizeof *statistics + VCPU_SAMPLES * sizeof(uint64_t)];
    struct call call = {.operation = OPERATION_VCPU_STATISTICS,
                        .count = (uint32_t)vcpu->sample_capacity,
                        .words = {vcpu->slot}};
    int error = client_fetch(vcpu->client, &call, data, sizeof data);
    if (error)
        return error;
    memcpy(statistics, data, sizeof *statistics);
    if (vcpu->samples_ns)
        memcpy(vcpu->samples_ns, data + sizeof *statistics, vcpu->sample_capacity * sizeof *vcpu->samples_ns);
    return 0;
}

void de_client_vcpu_sample(struct de_client_vcpu *vcpu, uint64_t *samples_ns, size_t capacity)
{
    struct de_vcpu_statistics statistics;
    vcpu->sample_capacity = capacity < VCPU_SAMPLES ? capacity : VCPU_SAMPLES;
    /* The first question after this tells the machine how many to keep. */
    vcpu->samples_ns = NULL;
    de_client_vcpu_statistics(vcpu, &statistics);
    vcpu->samples_ns = samples_ns;
}

int de_client_vcpu_kick(struct de_client_vcpu *vcpu)
{
    return call_words(vcpu->client, OPERATION_VCPU_KICK, vcpu->slot, 0);
}

static int guest_access(struct de_client_vcpu *vcpu, enum operation operation, uint32_t gfn, uint32_t offset,
                        const void *from, void *to, uint32_t len)
{
    if (offset > DE_PAGE_SIZE || len > DE_PAGE_SIZE - offset)
        return -EINVAL;
    struct lane *lane = client_take(vcpu->client);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = operation, .count = len, .words = {vcpu->slot, gfn, offset}};
    if (from)
        memcpy(lane->data, from, len);
    int error = (int)client_call(vcpu->client, lane, &call);
    if (!error && to)
        memcpy(to, lane->data, len);
    client_give(vcpu->client, lane);
    return error;
}

int de_client_guest_read(struct de_client_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer,
                         uint32_t len)
{
    return guest_access(vcpu, OPERATION_GUEST_READ, gfn, offset, NULL, buffer, len);
}

int de_client_guest_write(struct de_client_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                          uint32_t len)
{
    return guest_access(vcpu, OPERATION_GUEST_WRITE, gfn, offset, buffer, NULL, len);
}

int de_client_guest_release(struct de_client_vcpu *vcpu, uint32_t gfn)
{
    return call_words(vcpu->client, OPERATION_GUEST_RELEASE, vcpu->slot, gfn);
}

int de_client_guest_obtain(struct de_client_vcpu *vcpu, uint32_t gfn)
{
    return call_words(vcpu->client, OPERATION_GUEST_OBTAIN, vcpu->slot, gfn);
}

static int exchange_contents(struct de_machine_client *client, int fd, uint32_t *contents)
{
    struct socket_request request = {.kind = REQUEST_CONTENTS};
    struct socket_answer answer;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec vector = {.iov_base = &request, .iov_len = sizeof request};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(client->socket, &message, MSG_NOSIGNAL) != sizeof request)
        return errno == EBADF ? -EBADF : -ECONNRESET;
    if (recv(client->socket, &answer, sizeof answer, 0) != sizeof answer)
        return -ECONNRESET;
    *contents = answer.contents;
    return answer.result;
}

int de_client_contents_add(struct de_machine_client *client, int fd, uint32_t *contents)
{
    pthread_mutex_lock(&client->socket_lock);
    int error = exchange_contents(client, fd, contents);
    pthread_mutex_unlock(&client->socket_lock);
    return error;
}

static int sealed_file(size_t bytes)
{
    int fd = memfd_create("diffengine-contents", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) == 0)
        return fd;
    int error = -errno;
    close(fd);
    return error;
}

static int add_sealed(struct de_machine_client *client, int fd, uint32_t *contents)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        return -errno;
    return de_client_contents_add(client, fd, contents);
}

static bool is_zero(const uint8_t *page)
{
    return !page || (!page[0] && memcmp(page, page + 1, DE_PAGE_SIZE - 1) == 0);
}

static int write_at(int fd, const uint8_t *bytes, size_t count, off_t offset)
{
    while (count) {
        ssize_t written = pwrite(fd, bytes, count, offset);
        if (written < 0 && errno != EINTR)
            return -errno;
        if (written > 0) {
            bytes += written;
            count -= (size_t)written;
            offset += written;
        }
    }
    return 0;
}

int de_client_contents_add_pages(struct de_machine_client *client, const uint8_t *const *pages, size_t count,
                                 uint32_t *contents)
{
    int fd = sealed_file(count * DE_PAGE_SIZE);
    if (fd < 0)
        return fd;
    int error = 0;
    for (size_t i = 0; i < count && !error; i++)
        if (!is_zero(pages[i]))
            error = write_at(fd, pages[i], DE_PAGE_SIZE, (off_t)(i * DE_PAGE_SIZE));
    if (!error)
        error = add_sealed(client, fd, contents);
    close(fd);
    return error;
}

int de_client_contents_remove(struct de_machine_client *client, uint32_t contents)
{
    return call_words(client, OPERATION_CONTENTS_REMOVE, contents, 0);
}

/* A program's arrays travel as contents, too. 0 bytes: none. */
static int add_bytes(struct de_machine_client *client, const void *bytes, size_t count, uint32_t *contents)
{
    *contents = 0;
    if (!bytes || !count)
        return 0;
    int fd = sealed_file(count);
    if (fd < 0)
        return fd;
    int error = write_at(fd, bytes, count, 0);
    if (!error)
        error = add_sealed(client, fd, contents);
    close(fd);
    return error;
}

static struct program_request program_request(const struct de_program_options *options)
{
    return (struct program_request){
        .kind = options->kind,
        .first_gfn = options->first_gfn,
        .gfns = options->gfns,
        .hot_count = options->hot_count,
        .generated = options->generated,
        .similar_percent = options->similar_percent,
        .free_as = options->free_as,
        .bits_per_map = options->bits_per_map,
        .maps = options->maps,
        .seed = options->seed,
        .sample_capacity = options->sample_capacity,
        .phase_ns = options->phase_ns,
        .interval_ns = options->interval_ns,
        .operations_per_s = options->operations_per_s,
        .zipf = options->zipf,
        .excursion_fraction = options->excursion_fraction,
        .write_fraction = options->write_fraction,
    };
}

static int start_program(struct de_machine_client *client, uint16_t domain,
                         const struct program_request *request, uint32_t *program)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = OPERATION_PROGRAM_START, .words = {domain}};
    memcpy(lane->data, request, sizeof *request);
    int error = (int)client_call(client, lane, &call);
    client_give(client, lane);
    if (!error)
        *program = (uint32_t)call.words[0];
    return error;
}

int de_client_program_start(struct de_machine_client *client, uint16_t domain,
                            const struct de_program_options *options, uint32_t contents, uint32_t *program)
{
    struct program_request request = program_request(options);
    request.contents = contents;
    int error = add_bytes(client, options->hot, options->hot_count * sizeof *options->hot, &request.hot);
    if (!error)
        error = add_bytes(client, options->bits, (size_t)options->bits_per_map / 8 * options->maps,
                          &request.bits);
    if (!error)
        error = start_program(client, domain, &request, program);
    /* The program holds them as long as it needs them. */
    if (request.hot)
        de_client_contents_remove(client, request.hot);
    if (request.bits)
        de_client_contents_remove(client, request.bits);
    return error;
}

int de_client_program_read(struct de_machine_client *client, uint32_t program,
                           struct de_program_result *result)
{
    struct call call = {.operation = OPERATION_PROGRAM_READ, .words = {program}};
    return client_fetch(client, &call, result, sizeof *result);
}

int de_client_program_stop(struct de_machine_client *client, uint32_t program,
                           struct de_program_result *result, uint64_t *samples_ns, size_t capacity)
{
    struct lane *lane = client_take(client);
    if (!lane)
        return -ECONNRESET;
    struct call call = {.operation = OPERATION_PROGRAM_STOP, .words = {program}};
    int error = (int)client_call(client, lane, &call);
    if (!error) {
        memcpy(result, lane->data, sizeof *result);
        if (result->samples > capacity || !samples_ns)
            result->samples = samples_ns ? capacity : 0;
        if (samples_ns)
            memcpy(samples_ns, lane->data + sizeof *result, result->samples * sizeof *samples_ns);
    }
    client_give(client, lane);
    return error;
}
