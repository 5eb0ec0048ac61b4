/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vCPUs and programs, run for a client. vCPUs go with it; programs belong to the machine and stay. */
#include "server_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SAMPLES (SAMPLE_BATCH - 64u) /**< with the counters, they fit a lane */

static int vcpu_create(struct session *session, struct call *call)
{
    struct served_vcpu *served = calloc(1, sizeof *served);
    if (!served)
        return -ENOMEM;
    int error = de_vcpu_create(session->server->machine, word_domain(call->words[0]), &served->vcpu);
    if (error) {
        free(served);
        return error;
    }
    size_t slot = 0;
    pthread_mutex_lock(&session->lock);
    while (slot < SESSION_VCPUS && session->vcpus[slot])
        slot++;
    if (slot < SESSION_VCPUS)
        session->vcpus[slot] = served;
    pthread_mutex_unlock(&session->lock);
    if (slot < SESSION_VCPUS) {
        call->words[0] = slot;
        return 0;
    }
    de_vcpu_free(served->vcpu);
    free(served);
    return -ENOSPC;
}

/* The lock is held. */
static struct served_vcpu *find_vcpu(struct session *session, uint64_t slot)
{
    return slot < SESSION_VCPUS ? session->vcpus[slot] : NULL;
}

/* -EBUSY: another lane is in the middle of an access of it. */
static int take_vcpu(struct session *session, uint64_t slot, struct served_vcpu **served)
{
    int error = -ENOENT;
    pthread_mutex_lock(&session->lock);
    *served = find_vcpu(session, slot);
    if (*served)
        error = atomic_exchange(&(*served)->busy, true) ? -EBUSY : 0;
    pthread_mutex_unlock(&session->lock);
    return error;
}

static int vcpu_free(struct session *session, uint64_t slot)
{
    struct served_vcpu *served;
    int error = take_vcpu(session, slot, &served);
    if (error)
        return error;
    pthread_mutex_lock(&session->lock);
    session->vcpus[slot] = NULL;
    pthread_mutex_unlock(&session->lock);
    de_vcpu_free(served->vcpu);
    free(served);
    return 0;
}

void session_free_vcpus(struct session *session)
{
    for (size_t slot = 0; slot < SESSION_VCPUS; slot++)
        vcpu_free(session, slot);
}

void session_kick(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    for (size_t slot = 0; slot < SESSION_VCPUS; slot++)
        if (session->vcpus[slot])
            de_vcpu_kick(session->vcpus[slot]->vcpu);
    pthread_mutex_unlock(&session->lock);
}

static int vcpu_kick(struct session *session, uint64_t slot)
{
    pthread_mutex_lock(&session->lock);
    struct served_vcpu *served = find_vcpu(session, slot);
    if (served)
        de_vcpu_kick(served->vcpu);
    pthread_mutex_unlock(&session->lock);
    return served ? 0 : -ENOENT;
}

/* The first samples asked for fix their number. */
static int vcpu_statistics(struct served_vcpu *served, struct call *call, uint8_t *untrusted_data)
{
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(served->vcpu, &statistics);
    memcpy(untrusted_data, &statistics, sizeof statistics);
    memcpy(untrusted_data + sizeof statistics, served->samples_ns,
           served->sample_capacity * sizeof *served->samples_ns);
    if (call->count && call->count <= VCPU_SAMPLES) {
        served->sample_capacity = call->count;
        de_vcpu_sample(served->vcpu, served->samples_ns, call->count);
    }
    return 0;
}

static int guest_access(struct served_vcpu *served, struct call *call, uint8_t *untrusted_data)
{
    uint8_t page[DE_PAGE_SIZE];
    uint32_t gfn = word_gfn(call->words[1]);
    uint32_t offset = word_gfn(call->words[2]);
    uint32_t len = call->count;
    if (call->operation == OPERATION_GUEST_WRITE) {
        copy_in(page, untrusted_data, sizeof page);
        return de_machine_guest_write(served->vcpu, gfn, offset, page, len);
    }
    int error = de_machine_guest_read(served->vcpu, gfn, offset, page, len);
    if (!error)
        memcpy(untrusted_data, page, len);
    return error;
}

int64_t call_vcpu(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    if (call->operation == OPERATION_VCPU_CREATE)
        return vcpu_create(session, call);
    if (call->operation == OPERATION_VCPU_FREE)
        return vcpu_free(session, call->words[0]);
    if (call->operation == OPERATION_VCPU_KICK)
        return vcpu_kick(session, call->words[0]);
    struct served_vcpu *served;
    int64_t result = take_vcpu(session, call->words[0], &served);
    if (result)
        return result;
    switch (call->operation) {
    case OPERATION_VCPU_STATISTICS:
        result = vcpu_statistics(served, call, untrusted_data);
        break;
    case OPERATION_GUEST_RELEASE:
        result = de_machine_guest_release(served->vcpu, word_gfn(call->words[1]));
        break;
    case OPERATION_GUEST_OBTAIN:
        result = de_machine_guest_obtain(served->vcpu, word_gfn(call->words[1]));
        break;
    default:
        result = guest_access(served, call, untrusted_data);
    }
    atomic_store(&served->busy, false);
    return result;
}

/* The server's lock is held by the three below. */
static struct served_program *find_program(struct server *server, uint64_t id)
{
    for (size_t i = 0; i < MAX_PROGRAMS; i++)
        if (id && server->programs[i].id == id)
            return &server->programs[i];
    return NULL;
}

static void put_used(struct server *server, struct contents *const *used)
{
    for (size_t i = 0; i < 3; i++)
        contents_put(server, used[i]);
}

static int get_used(struct server *server, const struct program_request *request, struct contents **used)
{
    const uint32_t ids[3] = {request->contents, request->hot, request->bits};
    const uint64_t bytes[3] = {(uint64_t)request->gfns * DE_PAGE_SIZE,
                               (uint64_t)request->hot_count * sizeof(uint32_t),
                               (uint64_t)request->bits_per_map / 8 * request->maps};
    for (size_t i = 0; i < 3; i++) {
        if (!ids[i])
            continue;
        used[i] = contents_get(server, ids[i], bytes[i]);
        if (!used[i])
            return -ENOENT;
    }
    return 0;
}

static struct de_program_options program_options(const struct program_request *request,
                                                 struct contents *const *used, const uint8_t **pages)
{
    if (used[0])
        contents_pages(used[0], pages, request->gfns);
    return (struct de_program_options){
        .kind = (enum de_program_kind)request->kind,
        .seed = request->seed,
        .operations_per_s = request->operations_per_s,
        .first_gfn = request->first_gfn,
        .gfns = request->gfns,
        .content = used[0] ? pages : NULL,
        .sample_capacity =
            request->sample_capacity < MAX_SAMPLES ? (size_t)request->sample_capacity : MAX_SAMPLES,
        .hot = used[1] ? (const uint32_t *)used[1]->bytes : NULL,
        .hot_count = used[1] ? request->hot_count : 0,
        .zipf = request->zipf,
        .excursion_fraction = request->excursion_fraction,
        .write_fraction = request->write_fraction,
        .generated = (enum de_generated_kind)request->generated,
        .similar_percent = request->similar_percent,
        .free_as = (enum de_generated_free)request->free_as,
        .phase_ns = request->phase_ns,
        .bits = used[2] ? used[2]->bytes : NULL,
        .bits_per_map = request->bits_per_map,
        .maps = request->maps,
        .interval_ns = request->interval_ns,
    };
}

/* A program's tables are as large as its domain at most: checked before they are made. */
static int check_range(struct de_machine *machine, uint16_t domain, const struct program_request *request)
{
    struct de_domain_accounting accounting;
    int error = de_machine_domain_account(machine, domain, &accounting);
    if (!error && (!request->gfns || (uint64_t)request->first_gfn + request->gfns > accounting.gfns))
        error = -EINVAL;
    return error;
}

static int start_program(struct server *server, uint16_t domain, const struct program_request *request,
                         struct served_program *served)
{
    int error = check_range(server->machine, domain, request);
    if (!error)
        error = get_used(server, request, served->used);
    const uint8_t **pages = error ? NULL : calloc(request->gfns, sizeof *pages);
    if (!error && !pages)
        error = -ENOMEM;
    if (!error) {
        struct de_program_options options = program_options(request, served->used, pages);
        error = de_program_start(server->machine, domain, &options, &served->program);
    }
    free(pages);
    if (error) {
        put_used(server, served->used);
        *served = (struct served_program){.id = 0};
        return error;
    }
    served->id = ++server->next_id;
    return 0;
}

static int program_start(struct server *server, struct call *call, const uint8_t *untrusted_data)
{
    struct program_request request;
    copy_in(&request, untrusted_data, sizeof request);
    size_t slot = 0;
    int error = -ENOSPC;
    pthread_mutex_lock(&server->lock);
    while (slot < MAX_PROGRAMS && server->programs[slot].id)
        slot++;
    if (slot < MAX_PROGRAMS) {
        error = start_program(server, word_domain(call->words[0]), &request, &server->programs[slot]);
        call->words[0] = server->programs[slot].id;
    }
    pthread_mutex_unlock(&server->lock);
    return error;
}

static int program_read(struct server *server, const struct call *call, uint8_t *untrusted_data)
{
    struct de_program_result result;
    pthread_mutex_lock(&server->lock);
    struct served_program *served = find_program(server, call->words[0]);
    if (served)
        de_program_read(served->program, &result);
    pthread_mutex_unlock(&server->lock);
    if (!served)
        return -ENOENT;
    memcpy(untrusted_data, &result, sizeof result);
    return 0;
}

/* Out of the table first, so that it is stopped once. */
static int take_program(struct server *server, uint64_t id, struct served_program *taken)
{
    pthread_mutex_lock(&server->lock);
    struct served_program *served = find_program(server, id);
    if (served) {
        *taken = *served;
        *served = (struct served_program){.id = 0};
    }
    pthread_mutex_unlock(&server->lock);
    return served ? 0 : -ENOENT;
}

static void join_program(struct server *server, struct served_program *taken,
                         struct de_program_result *result, uint64_t *samples_ns)
{
    de_program_stop(taken->program);
    de_program_join(taken->program, result, samples_ns);
    pthread_mutex_lock(&server->lock);
    put_used(server, taken->used);
    pthread_mutex_unlock(&server->lock);
}

static int program_stop(struct server *server, const struct call *call, uint8_t *untrusted_data)
{
    struct served_program taken;
    struct de_program_result result;
    uint64_t *samples_ns = malloc(MAX_SAMPLES * sizeof *samples_ns);
    if (!samples_ns)
        return -ENOMEM;
    int error = take_program(server, call->words[0], &taken);
    if (!error) {
        join_program(server, &taken, &result, samples_ns);
        memcpy(untrusted_data, &result, sizeof result);
        memcpy(untrusted_data + sizeof result, samples_ns, result.samples * sizeof *samples_ns);
    }
    free(samples_ns);
    return error;
}

void server_stop_programs(struct server *server)
{
    for (size_t i = 0; i < MAX_PROGRAMS; i++) {
        struct served_program taken;
        struct de_program_result result;
        if (!take_program(server, server->programs[i].id, &taken))
            join_program(server, &taken, &result, NULL);
    }
}

int64_t call_program(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    switch (call->operation) {
    case OPERATION_PROGRAM_START:
        return program_start(session->server, call, untrusted_data);
    case OPERATION_PROGRAM_READ:
        return program_read(session->server, call, untrusted_data);
    default:
        return program_stop(session->server, call, untrusted_data);
    }
}
