/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hypercalls and control calls, run for a client. Every argument is untrusted; the machine checks domains and
 * gfns itself, here it is counts, pins and rights. */
#include "server_internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define CRASH_TEXT 256u

void copy_in(void *to, const void *untrusted_from, size_t bytes)
{
    memcpy(to, untrusted_from, bytes);
    /* The compiler must not go back to the area for what was copied. */
    atomic_signal_fence(memory_order_seq_cst);
}

static uint8_t *frame_page(const struct session *session, uint32_t frame)
{
    return frame_address(session->server->machine, frame);
}

/* Pins are counted per client, so that they can be taken back when it dies. */
static int pin(struct session *session, uint32_t frame)
{
    if (session->pins[frame] == UINT16_MAX)
        return -ENOMEM;
    session->pins[frame]++;
    return 0;
}

static int64_t call_map(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct map_arrays *area = (struct map_arrays *)untrusted_data;
    struct de_machine *machine = session->server->machine;
    uint32_t gfns[MAP_BATCH];
    int32_t errors[MAP_BATCH];
    uint8_t *pages[MAP_BATCH];
    bool writable = call->words[1];
    if (call->count > MAP_BATCH)
        return -EINVAL;
    if (writable && !session->device_model)
        return -EPERM;
    copy_in(gfns, area->gfns, call->count * sizeof *gfns);
    int mapped =
        de_machine_map(machine, word_domain(call->words[0]), writable, gfns, call->count, pages, errors);
    if (mapped < 0)
        return mapped;
    pthread_mutex_lock(&session->lock);
    for (uint32_t i = 0; i < call->count; i++) {
        area->frames[i] = FRAME_NONE;
        if (!errors[i]) {
            uint32_t frame = (uint32_t)((size_t)(pages[i] - machine->memory) / DE_PAGE_SIZE);
            errors[i] = pin(session, frame);
            if (errors[i]) {
                de_machine_unmap(machine, (const uint8_t *const *)&pages[i], 1);
                mapped--;
            } else {
                area->frames[i] = frame;
            }
        }
        area->errors[i] = errors[i];
    }
    pthread_mutex_unlock(&session->lock);
    return mapped;
}

static int64_t call_unmap(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct map_arrays *area = (struct map_arrays *)untrusted_data;
    struct de_machine *machine = session->server->machine;
    uint32_t frames[MAP_BATCH];
    const uint8_t *pages[MAP_BATCH];
    if (call->count > MAP_BATCH)
        return -EINVAL;
    copy_in(frames, area->frames, call->count * sizeof *frames);
    size_t count = 0;
    pthread_mutex_lock(&session->lock);
    for (uint32_t i = 0; i < call->count; i++) {
        if (frames[i] >= machine->frame_count || !session->pins[frames[i]])
            continue;
        session->pins[frames[i]]--;
        pages[count++] = frame_page(session, frames[i]);
    }
    pthread_mutex_unlock(&session->lock);
    de_machine_unmap(machine, pages, count);
    return count == call->count ? 0 : -EINVAL;
}

static int64_t take_over(struct session *session, struct call *call)
{
    uint32_t answered = 0;
    int error =
        ring_take_over(session->server->machine, &session->channel, word_domain(call->words[0]), &answered);
    call->words[1] = answered;
    return error;
}

static int64_t load_answer(struct session *session, uint16_t domain, uint32_t gfn, bool has_page,
                           uint8_t *untrusted_data)
{
    const struct load_arrays *area = (const struct load_arrays *)untrusted_data;
    struct de_machine *machine = session->server->machine;
    struct de_vm_event answer;
    copy_in(&answer, &area->answer, sizeof answer);
    int error = machine_paging_load(machine, domain, gfn, has_page ? area->page : NULL);
    if (!error)
        ring_answer(machine, &session->channel, domain, &answer);
    return error;
}

static int64_t call_paging(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct de_machine *machine = session->server->machine;
    uint16_t domain = word_domain(call->words[0]);
    uint32_t gfn = word_gfn(call->words[1]);
    switch (call->operation) {
    case OPERATION_PAGING_ENABLE:
        return ring_enable(machine, &session->channel, domain);
    case OPERATION_PAGING_DISABLE:
        return ring_disable(machine, &session->channel, domain);
    case OPERATION_PAGING_TAKE_OVER:
        return take_over(session, call);
    case OPERATION_PAGING_NOMINATE:
        return machine_paging_nominate(machine, domain, gfn);
    case OPERATION_PAGING_TOUCH:
        return machine_paging_touch(machine, domain, gfn);
    case OPERATION_PAGING_EVICT:
        if (session->server->evict_us)
            usleep(session->server->evict_us);
        return machine_paging_evict(machine, domain, gfn);
    case OPERATION_PAGING_LOAD_ANSWER:
        return load_answer(session, domain, gfn, call->words[2], untrusted_data);
    default:
        return machine_paging_load(machine, domain, gfn, call->words[2] ? untrusted_data : NULL);
    }
}

static int64_t call_sharing(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct de_machine *machine = session->server->machine;
    const uint64_t *words = call->words;
    uint16_t domain = word_domain(words[0]);
    uint32_t gfn = word_gfn(words[1]);
    (void)untrusted_data;
    switch (call->operation) {
    case OPERATION_SHARE_NOMINATE:
        return machine_share_nominate(machine, domain, gfn, &call->words[2]);
    case OPERATION_UNSHARE:
        return machine_unshare(machine, domain, gfn);
    default:
        return machine_share(machine, domain, gfn, words[2], word_domain(words[3]), word_gfn(words[4]),
                             words[5]);
    }
}

static int64_t call_ring(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct de_machine *machine = session->server->machine;
    uint16_t domain = word_domain(call->words[0]);
    struct de_vm_event event;
    switch (call->operation) {
    case OPERATION_RING_TAKE: {
        int taken = ring_take(machine, &session->channel, domain, &event);
        if (taken == 1)
            memcpy(untrusted_data, &event, sizeof event);
        return taken;
    }
    case OPERATION_RING_ANSWER:
        copy_in(&event, untrusted_data, sizeof event);
        return ring_answer(machine, &session->channel, domain, &event);
    case OPERATION_WAIT:
        return call_wait(session, call, untrusted_data);
    default:
        ring_interrupt(machine, &session->channel);
        return 0;
    }
}

static int64_t domain_create(struct server *server, struct call *call)
{
    uint16_t domain = word_domain(call->words[1]);
    uint64_t gfns = call->words[0];
    struct de_uuid uuid;
    bool given = call->words[2];
    memcpy(&uuid, &call->words[3], sizeof uuid);
    if (gfns > UINT32_MAX)
        return -ENOMEM;
    pthread_mutex_lock(&server->lock);
    int error = -ENOMEM;
    if (server->gfns + gfns <= (uint64_t)GFNS_PER_FRAME * server->machine->frame_count)
        error = given ? de_machine_domain_create_as(server->machine, (uint32_t)gfns, &uuid, &domain)
                      : de_machine_domain_create(server->machine, (uint32_t)gfns, &domain);
    if (!error)
        server->gfns += gfns;
    pthread_mutex_unlock(&server->lock);
    call->words[0] = domain;
    return error;
}

static int64_t domain_uuid(struct server *server, uint16_t domain, struct call *call)
{
    struct de_uuid uuid;
    int error = machine_domain_uuid(server->machine, domain, &uuid);
    if (!error)
        memcpy(&call->words[2], &uuid, sizeof uuid);
    return error;
}

static int64_t domain_destroy(struct server *server, uint16_t domain)
{
    struct de_domain_accounting accounting;
    int error = de_machine_domain_account(server->machine, domain, &accounting);
    if (!error)
        error = de_machine_domain_destroy(server->machine, domain);
    if (!error) {
        pthread_mutex_lock(&server->lock);
        server->gfns -= accounting.gfns;
        pthread_mutex_unlock(&server->lock);
    }
    return error;
}

static int64_t domain_list(struct session *session, const struct call *call, uint8_t *untrusted_data)
{
    struct de_domain_info infos[LIST_BATCH];
    if (call->count > LIST_BATCH || call->words[0] > UINT16_MAX)
        return -EINVAL;
    memset(infos, 0, call->count * sizeof *infos);
    int listed =
        de_machine_domain_list(session->server->machine, (uint16_t)call->words[0], infos, call->count);
    memcpy(untrusted_data, infos, (size_t)listed * sizeof *infos);
    return listed;
}

static int64_t call_domain(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct server *server = session->server;
    uint16_t domain = word_domain(call->words[0]);
    struct de_domain_accounting accounting = {.gfns = 0};
    char text[CRASH_TEXT] = "";
    int64_t result;
    switch (call->operation) {
    case OPERATION_PAUSE:
        return de_machine_domain_pause(server->machine, domain);
    case OPERATION_UNPAUSE:
        return de_machine_domain_unpause(server->machine, domain);
    case OPERATION_DOMAIN_UUID:
        return domain_uuid(server, domain, call);
    case OPERATION_DOMAIN_CREATE:
        return domain_create(server, call);
    case OPERATION_DOMAIN_DESTROY:
        return domain_destroy(server, domain);
    case OPERATION_DOMAIN_LIST:
        return domain_list(session, call, untrusted_data);
    case OPERATION_DOMAIN_ACCOUNT:
        result = de_machine_domain_account(server->machine, domain, &accounting);
        memcpy(untrusted_data, &accounting, sizeof accounting);
        return result;
    case OPERATION_CRASH_REASON:
        result = de_machine_domain_crash_reason(server->machine, domain, text, sizeof text);
        memcpy(untrusted_data, text, sizeof text);
        return result;
    case OPERATION_P2M_TYPE:
        return de_machine_p2m_type(server->machine, domain, word_gfn(call->words[1]));
    default:
        return de_machine_claim(server->machine, domain, call->words[1]);
    }
}

static int64_t call_populate(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct populate_arrays *area = (struct populate_arrays *)untrusted_data;
    uint32_t gfns[POPULATE_BATCH];
    uint8_t zero[POPULATE_BATCH];
    const uint8_t *pages[POPULATE_BATCH];
    int32_t errors[POPULATE_BATCH] = {0};
    if (call->count > POPULATE_BATCH)
        return -EINVAL;
    copy_in(gfns, area->gfns, sizeof gfns);
    copy_in(zero, area->zero, sizeof zero);
    for (uint32_t i = 0; i < call->count; i++)
        pages[i] = zero[i] ? NULL : area->pages[i];
    int64_t populated = de_machine_populate(session->server->machine, word_domain(call->words[0]), gfns,
                                            pages, call->count, errors);
    memcpy(area->errors, errors, call->count * sizeof *errors);
    return populated;
}

static int64_t call_log_dirty(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct de_machine *machine = session->server->machine;
    uint16_t domain = word_domain(call->words[0]);
    switch (call->operation) {
    case OPERATION_LOG_DIRTY_ENABLE:
        return de_machine_log_dirty_enable(machine, domain);
    case OPERATION_LOG_DIRTY_DISABLE:
        return de_machine_log_dirty_disable(machine, domain);
    default:
        if (call->count > DIRTY_BATCH)
            return -EINVAL;
        return de_machine_log_dirty_read(machine, domain, call->words[1], word_gfn(call->words[2]),
                                         call->count, untrusted_data);
    }
}

static int64_t call_machine(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    if (call->operation == OPERATION_CONTENTS_REMOVE)
        return contents_remove(session, word_gfn(call->words[0]));
    if (call->operation == OPERATION_SHUT_DOWN) {
        uint64_t one = 1;
        return write(session->server->stop_fd, &one, sizeof one) == sizeof one ? 0 : -errno;
    }
    struct de_machine_accounting accounting;
    de_machine_account(session->server->machine, &accounting);
    memcpy(untrusted_data, &accounting, sizeof accounting);
    return 0;
}

typedef int64_t call_function(struct session *session, struct call *call, uint8_t *untrusted_data);

static call_function *const functions[OPERATIONS] = {
    [OPERATION_MAP] = call_map,
    [OPERATION_UNMAP] = call_unmap,
    [OPERATION_PAGING_ENABLE... OPERATION_PAGING_LOAD_ANSWER] = call_paging,
    [OPERATION_SHARE_NOMINATE... OPERATION_UNSHARE] = call_sharing,
    [OPERATION_RING_TAKE... OPERATION_INTERRUPT] = call_ring,
    [OPERATION_PAUSE... OPERATION_DOMAIN_UUID] = call_domain,
    [OPERATION_ACCOUNT] = call_machine,
    [OPERATION_DOMAIN_CREATE... OPERATION_P2M_TYPE] = call_domain,
    [OPERATION_POPULATE] = call_populate,
    [OPERATION_CLAIM] = call_domain,
    [OPERATION_LOG_DIRTY_ENABLE... OPERATION_LOG_DIRTY_READ] = call_log_dirty,
    [OPERATION_VCPU_CREATE... OPERATION_GUEST_OBTAIN] = call_vcpu,
    [OPERATION_CONTENTS_REMOVE] = call_machine,
    [OPERATION_PROGRAM_START... OPERATION_PROGRAM_STOP] = call_program,
    [OPERATION_SHUT_DOWN] = call_machine,
};

void call_run(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    call->result =
        call->operation < OPERATIONS ? functions[call->operation](session, call, untrusted_data) : -ENOSYS;
}
