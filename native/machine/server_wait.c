/* SPDX-License-Identifier: GPL-2.0-or-later */
/* OPERATION_WAIT. A worker that slept until an event comes, only to wake the pager, would be a wake-up more
 * in every fault, and so would one that is woken to load the page. So a lane waits without a worker; the
 * vCPU's own thread completes it, and then runs the pager's next calls itself: it has nothing else to do
 * until its page is there. */
#include "server_internal.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* For so long a vCPU runs calls; what else it waits for (a kick, its domain's end) waits as long. A fault
 * that takes longer comes from the disk. */
#define ERRAND_NS 200000u

/* Over whose lane the pager waits, or did last; NULL: over none. */
static struct worker *find_waiting(struct session *session)
{
    uint32_t untrusted_lane = atomic_load(&session->area->waiting_lane);
    /* Its worker may not have begun yet. */
    return untrusted_lane < LANES ? &session->workers[untrusted_lane] : NULL;
}

/* The machine's lock is held. */
static void complete(struct session *session, struct worker *worker)
{
    struct de_machine *machine = session->server->machine;
    struct wait_arrays *area = (struct wait_arrays *)worker->lane->data;
    struct call call;
    uint16_t domains[WAIT_BATCH];
    struct de_vm_event events[DE_RING_SLOTS];
    uint32_t count = 0;
    copy_in(&call, &worker->lane->call, sizeof call);
    channel_put_back(machine, &session->channel, word_domain(call.words[WAIT_LEFT_DOMAIN]),
                     call.words[WAIT_LEFT_COUNT]);
    size_t found =
        channel_collect(&session->channel, domains, call.count < WAIT_BATCH ? call.count : WAIT_BATCH);
    if (found && call.words[WAIT_BRING_EVENTS])
        count = channel_take_all(machine, &session->channel, domains[0], events);
    memcpy(area->domains, domains, found * sizeof *domains);
    memcpy(area->events, events, count * sizeof *events);
    area->events_count = count;
    worker->lane->call.result = (int64_t)found;
    atomic_store(&session->area->ready, channel_ready(&session->channel));
    lane_hand_over(worker->lane, LANE_DONE, LANE_CLIENT);
}

void wait_announce(struct channel *channel, struct de_vcpu *vcpu)
{
    struct session *session = (struct session *)((char *)channel - offsetof(struct session, channel));
    atomic_store(&session->area->ready, 1);
    struct worker *worker = find_waiting(session);
    uint32_t state = LANE_WAITING;
    if (!worker)
        return;
    if (vcpu) {
        /* Before the pager can make a call: it is not to wake the worker. */
        atomic_store(&worker->lane->machine_sleeps, 0);
        vcpu->errand = worker;
        session->errands++;
    }
    if (atomic_compare_exchange_strong(&worker->lane->state, &state, LANE_RUNNING))
        complete(session, worker);
}

/* Calls that are over soon, whatever a client makes of them. */
static bool brief(const struct call *call)
{
    return call->operation == OPERATION_PAGING_LOAD || call->operation == OPERATION_PAGING_LOAD_ANSWER ||
           call->operation == OPERATION_RING_TAKE || call->operation == OPERATION_RING_ANSWER ||
           (call->operation == OPERATION_WAIT && !call->words[WAIT_TIMEOUT_NS]);
}

/* @return false: the lane has what is not for a vCPU. */
static bool errand_step(struct worker *worker, uint64_t deadline_ns)
{
    struct lane *lane = worker->lane;
    uint32_t state = atomic_load(&lane->state);
    if (state == LANE_CALL)
        return worker_call(worker, brief);
    if (state == LANE_DONE || state == LANE_RUNNING)
        lane_await(lane, state, LANE_VCPU, SPIN_NS, deadline_ns);
    return state == LANE_DONE || state == LANE_RUNNING;
}

/* A client that has made a call meanwhile has woken nobody, or us. */
static void give_back(struct worker *worker)
{
    atomic_store(&worker->lane->machine_sleeps, LANE_MACHINE);
    if (atomic_load(&worker->lane->state) == LANE_CALL)
        lane_wake(worker->lane, LANE_MACHINE);
    worker->session->errands--;
    block_wake(&worker->session->channel.events);
}

void wait_errand(struct de_vcpu *vcpu)
{
    struct worker *worker = vcpu->errand;
    struct de_machine *machine = vcpu->machine;
    uint64_t deadline_ns = block_now_ns() + ERRAND_NS;
    bool more = true;
    while (more && vcpu->pause_count && !vcpu_stopped(vcpu) && !atomic_load(&worker->session->closing) &&
           block_now_ns() < deadline_ns) {
        pthread_mutex_unlock(&machine->lock);
        more = errand_step(worker, deadline_ns);
        pthread_mutex_lock(&machine->lock);
    }
    vcpu->errand = NULL;
    give_back(worker);
}

void wait_for_errands(struct session *session)
{
    struct de_machine *machine = session->server->machine;
    pthread_mutex_lock(&machine->lock);
    while (session->errands)
        block_on(&session->channel.events, &machine->lock);
    pthread_mutex_unlock(&machine->lock);
}

/* One that only looks, or has a timeout. */
int64_t call_wait(struct session *session, struct call *call, uint8_t *untrusted_data)
{
    struct wait_arrays *area = (struct wait_arrays *)untrusted_data;
    struct de_machine *machine = session->server->machine;
    uint64_t timeout_ns = call->words[WAIT_TIMEOUT_NS];
    uint16_t domains[WAIT_BATCH];
    struct de_vm_event events[DE_RING_SLOTS];
    uint32_t count = 0;
    if (call->count > WAIT_BATCH)
        return -EINVAL;
    ring_put_back(machine, &session->channel, word_domain(call->words[WAIT_LEFT_DOMAIN]),
                  call->words[WAIT_LEFT_COUNT]);
    int found = ring_wait(machine, &session->channel, timeout_ns, domains, call->count);
    if (found && call->words[WAIT_BRING_EVENTS])
        count = ring_take_all(machine, &session->channel, domains[0], events);
    call->words[WAIT_INTERRUPTED] =
        !found && call->words[WAIT_ENDS] && ring_interrupted(machine, &session->channel);
    memcpy(area->domains, domains, (size_t)found * sizeof *domains);
    memcpy(area->events, events, count * sizeof *events);
    area->events_count = count;
    return found;
}
