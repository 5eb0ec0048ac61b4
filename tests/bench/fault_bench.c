/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
/*
 * fault_bench IMAGE...
 *
 * How long does the pager take for a fault? Real pages are evicted on the embedded machine, in this process;
 * a vCPU then reads all of them in random order. Of each fault: "to_load", our own work, from the event taken
 * to the hypercall that loads the page; "rebuild", the part of it from the object to the page; "fault", to
 * the answer put, and so with what the machine takes to find and fill a frame (a hole in a memfd); "wait",
 * what the vCPU saw, wake-ups included. Rebuild and fault are the pager's own statistics.
 *
 * Fast pages (a patch, or LZ4) and dense ones (a dense patch, or dense alone), each while another core scans
 * the images without pause; then the fast ones without a scan, with the pager asleep on the vCPU's core,
 * asleep on the other one, and spinning there. One line of JSON. Exit 1 on bad use, or if a page comes back
 * wrong.
 */
#include "corpus.h"

#include <diffengine/dense.h>
#include <diffengine/encode.h>
#include <diffengine/machine.h>
#include <diffengine/pager.h>
#include <diffengine/store.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum {
    MOST_PAGES = 16384,
    TRAINING_STEP = 8,
    SCAN_BATCH = 512,
    SPARSE_PAGES = 256,
    SPARSE_PAUSE_US = 10000,
    /* Of a patch: it must pay for its reference's id, and the header's larger size. */
    REFERENCE_BYTES = 4,
};

struct encoded {
    uint8_t *payloads;
    uint16_t *bytes;
    uint8_t *encodings, *patched;
    const uint8_t **addresses;
    uint32_t *references;
};

struct host {
    const struct corpus *corpus;
    struct de_machine *machine;
    struct de_store *store;
    struct de_pager *pager;
    uint16_t domain;
    uint32_t *objects;
};

struct scanner {
    const struct corpus *corpus;
    struct de_digester *digester;
    atomic_bool stop;
    pthread_t thread;
    uint64_t scanned;
};

struct outcome {
    struct de_latency fault, rebuild;
    struct samples to_load, wait;
};

/* The machine's operations, with a look at the clock when an event is taken and when a page is loaded. One
 * vCPU: one event at a time, and only the pager's thread takes and loads. */
static const struct de_hypervisor_operations *machine_operations;
static uint64_t taken_ns;
static struct samples to_load = {.name = "to load"};

static int timed_take(void *context, uint16_t domain, struct de_vm_event *event)
{
    int taken = machine_operations->ring_take(context, domain, event);
    taken_ns = now_ns();
    return taken;
}

static int timed_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page)
{
    add_sample(&to_load, now_ns() - taken_ns);
    return machine_operations->paging_load(context, domain, gfn, page);
}

static int timed_load_answer(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                             const struct de_vm_event *answer)
{
    add_sample(&to_load, now_ns() - taken_ns);
    return machine_operations->paging_load_answer(context, domain, gfn, page, answer);
}

static struct de_hypervisor timed_hypervisor(struct de_machine *machine)
{
    static struct de_hypervisor_operations operations;
    struct de_hypervisor hypervisor = de_machine_hypervisor(machine);
    machine_operations = hypervisor.operations;
    operations = *machine_operations;
    operations.ring_take = timed_take;
    operations.paging_load = timed_load;
    operations.paging_load_answer = timed_load_answer;
    hypervisor.operations = &operations;
    return hypervisor;
}

static unsigned cores(void)
{
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? (unsigned)CPU_COUNT(&allowed) : 1;
}

/* The number-th core that this process may use. Threads made afterwards stay on it, too. */
static void stay_on_core(const cpu_set_t *allowed, unsigned number)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, allowed) && number-- == 0) {
            CPU_SET(core, &one);
            break;
        }
    if (sched_setaffinity(0, sizeof one, &one) != 0)
        die("cannot stay on", "one core");
}

static struct encoded encode_all(const struct corpus *corpus, const struct de_encode_options *options)
{
    size_t count = corpus->count;
    struct encoded encoded = {
        .payloads = allocate(count, DE_PAGE_SIZE),
        .bytes = allocate(count, sizeof *encoded.bytes),
        .encodings = allocate(count, 1),
        .patched = allocate(count, 1),
        .addresses = allocate(count, sizeof *encoded.addresses),
        .references = allocate(count, sizeof *encoded.references),
    };
    const uint8_t **references = allocate(count, sizeof *references);
    for (size_t i = 0; i < count; i++)
        references[i] = corpus->references[i] == DE_NONE ? NULL : corpus->pages[corpus->references[i]];
    struct de_page_encoder *encoder;
    require(de_page_encoder_create(1, 1, &encoder), "cannot make an encoder:");
    require(de_encode_batch(encoder, options, corpus->pages, references, count, encoded.payloads,
                            encoded.bytes, encoded.encodings, encoded.patched),
            "cannot encode:");
    for (size_t i = 0; i < count; i++) {
        encoded.addresses[i] = encoded.payloads + i * DE_PAGE_SIZE;
        encoded.references[i] = encoded.patched[i] ? corpus->references[i] : DE_NONE;
    }
    de_page_encoder_free(encoder);
    free(references);
    return encoded;
}

static void free_encoded(struct encoded *encoded)
{
    free(encoded->payloads);
    free(encoded->bytes);
    free(encoded->encodings);
    free(encoded->patched);
    free(encoded->addresses);
    free(encoded->references);
}

static struct de_dense_model *train(const struct corpus *corpus)
{
    const uint8_t **pages = allocate(corpus->count, sizeof *pages);
    const uint8_t **references = allocate(corpus->count, sizeof *references);
    size_t sample = 0;
    for (size_t i = 0; i < corpus->count; i += TRAINING_STEP, sample++) {
        pages[sample] = corpus->pages[i];
        references[sample] = corpus->references[i] == DE_NONE ? NULL : corpus->pages[corpus->references[i]];
    }
    struct de_dense_model *model;
    require(de_dense_model_train(pages, references, sample, &model), "cannot train a model:");
    free(pages);
    free(references);
    return model;
}

static uint32_t put_model(struct de_store *store, const struct de_dense_model *model)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES];
    struct de_object object = {.encoding = DE_ENCODING_MODEL, .payload = bytes};
    object.payload_bytes = (uint32_t)de_dense_model_save(model, bytes);
    uint32_t id;
    require(de_store_put(store, &object, &id), "cannot store a model:");
    return id;
}

static void fill_store(struct host *host, uint8_t codec)
{
    const struct corpus *corpus = host->corpus;
    struct de_encode_options options = {
        .codec = codec, .reference_bytes = REFERENCE_BYTES, .patch_limit = DE_PAGE_SIZE};
    struct de_dense_model *model = NULL;
    uint32_t model_id = DE_NONE;
    if (codec == DE_ENCODING_DENSE) {
        options.model = model = train(corpus);
        model_id = put_model(host->store, model);
    }
    struct encoded encoded = encode_all(corpus, &options);
    uint32_t *checksums = allocate(corpus->count, sizeof *checksums);
    uint32_t *numbers = allocate(corpus->count, sizeof *numbers);
    for (size_t i = 0; i < corpus->count; i++)
        numbers[i] = (uint32_t)i;
    de_checksum_batch(corpus->pages, corpus->count, checksums);
    require(de_store_put_batch(host->store, encoded.addresses, encoded.bytes, encoded.encodings, checksums,
                               model_id, numbers, encoded.references, corpus->count, host->objects),
            "cannot fill the store:");
    free_encoded(&encoded);
    free(checksums);
    free(numbers);
    if (model != NULL)
        de_dense_model_free(model);
}

static struct host make_host(const struct corpus *corpus, uint8_t codec)
{
    uint32_t gfns = (uint32_t)corpus->count;
    struct host host = {.corpus = corpus, .objects = allocate(gfns, sizeof *host.objects)};
    if (de_machine_create(gfns + 64, &host.machine) != 0)
        die("cannot make", "the machine");
    require(de_store_create(NULL, 1u << 30, &host.store), "cannot make a store:");
    struct de_hypervisor hypervisor = timed_hypervisor(host.machine);
    require(de_pager_create(host.store, &hypervisor, &host.pager), "cannot make a pager:");
    if (de_machine_domain_create(host.machine, gfns, &host.domain) != 0 ||
        de_machine_populate(host.machine, host.domain, NULL, corpus->pages, gfns, NULL) != gfns)
        die("cannot make", "a domain");
    require(de_pager_add_domain(host.pager, host.domain, gfns), "cannot page a domain:");
    fill_store(&host, codec);
    return host;
}

static void free_host(struct host *host)
{
    de_pager_free(host->pager);
    de_store_close(host->store);
    de_machine_free(host->machine);
    free(host->objects);
}

static void evict_all(const struct host *host)
{
    size_t count = host->corpus->count;
    uint16_t *domains = allocate(count, sizeof *domains);
    uint32_t *gfns = allocate(count, sizeof *gfns);
    int32_t *results = allocate(count, sizeof *results);
    for (size_t i = 0; i < count; i++) {
        domains[i] = host->domain;
        gfns[i] = (uint32_t)i;
    }
    de_pager_evict(host->pager, domains, gfns, host->objects, count, results);
    for (size_t i = 0; i < count; i++)
        if (results[i] != DE_PROPOSAL_DONE)
            die("cannot evict", "a page");
    free(domains);
    free(gfns);
    free(results);
}

static void *scan(void *argument)
{
    struct scanner *scanner = argument;
    uint64_t digests[SCAN_BATCH];
    uint8_t kinds[SCAN_BATCH];
    while (!atomic_load_explicit(&scanner->stop, memory_order_relaxed))
        for (size_t first = 0; first + SCAN_BATCH <= scanner->corpus->count; first += SCAN_BATCH) {
            de_digest_batch(scanner->digester, scanner->corpus->pages + first, SCAN_BATCH, digests, kinds,
                            NULL);
            scanner->scanned += SCAN_BATCH;
        }
    return NULL;
}

/* The corpus is in random order, but its content was put into the store in that order: so again. */
static uint32_t *random_order(size_t count)
{
    uint32_t *order = allocate(count, sizeof *order);
    uint64_t state = CORPUS_SEED;
    for (size_t i = 0; i < count; i++) {
        size_t other = (size_t)(next_random(&state) % (i + 1));
        order[i] = order[other];
        order[other] = (uint32_t)i;
    }
    return order;
}

struct touches {
    size_t count;
    useconds_t pause_us; /* before each */
};

static void touch(const struct host *host, struct touches touches, struct samples *wait)
{
    static uint8_t page[DE_PAGE_SIZE];
    struct de_vcpu *vcpu;
    if (de_vcpu_create(host->machine, host->domain, &vcpu) != 0)
        die("cannot make", "a vCPU");
    uint32_t *order = random_order(host->corpus->count);
    for (size_t i = 0; i < touches.count; i++) {
        if (touches.pause_us > 0)
            usleep(touches.pause_us);
        uint64_t begin_ns = now_ns();
        if (de_machine_guest_read(vcpu, order[i], 0, page, DE_PAGE_SIZE) != 0)
            die("a guest cannot", "read");
        add_sample(wait, now_ns() - begin_ns);
        if (memcmp(page, host->corpus->pages[order[i]], DE_PAGE_SIZE) != 0)
            die("a page came back", "wrong");
    }
    de_vcpu_free(vcpu);
    free(order);
}

static struct de_latency since(const struct de_latency *before, const struct de_latency *after)
{
    struct de_latency part;
    for (size_t i = 0; i < DE_LATENCY_BUCKETS; i++)
        part.counts[i] = after->counts[i] - before->counts[i];
    return part;
}

struct spinner {
    struct de_pager *pager;
    atomic_bool stop;
    pthread_t thread;
};

/* A pager that never sleeps. */
static void *spin(void *argument)
{
    struct spinner *spinner = argument;
    while (!atomic_load_explicit(&spinner->stop, memory_order_relaxed))
        if (de_pager_serve(spinner->pager) > 0)
            de_pager_retire(spinner->pager, 1);
    return NULL;
}

enum pager_place { ASLEEP_SAME_CORE, ASLEEP_OTHER_CORE, SPINNING };

/* The vCPU on the first core; a scan and a spinning pager on the second. */
static void touch_served(const struct host *host, enum pager_place place, struct touches touches,
                         const cpu_set_t *allowed, struct samples *wait)
{
    struct spinner spinner = {.pager = host->pager};
    sched_setaffinity(0, sizeof *allowed, allowed);
    stay_on_core(allowed, place == ASLEEP_SAME_CORE ? 0 : 1 % cores());
    if (place == SPINNING && pthread_create(&spinner.thread, NULL, spin, &spinner) != 0)
        die("cannot start", "the pager");
    if (place != SPINNING)
        require(de_pager_start(host->pager), "cannot start the pager:");
    sched_setaffinity(0, sizeof *allowed, allowed);
    stay_on_core(allowed, 0);
    touch(host, touches, wait);
    atomic_store(&spinner.stop, true);
    if (place == SPINNING)
        pthread_join(spinner.thread, NULL);
    else
        de_pager_stop(host->pager);
    sched_setaffinity(0, sizeof *allowed, allowed);
}

static void start_scan(struct scanner *scanner, const cpu_set_t *allowed)
{
    require(de_digester_create(CORPUS_SEED, 0, 1, &scanner->digester), "cannot make a digester:");
    stay_on_core(allowed, 1 % cores());
    if (pthread_create(&scanner->thread, NULL, scan, scanner) != 0)
        die("cannot start", "a scan");
    sched_setaffinity(0, sizeof *allowed, allowed);
}

static void stop_scan(struct scanner *scanner)
{
    atomic_store(&scanner->stop, true);
    pthread_join(scanner->thread, NULL);
    de_digester_free(scanner->digester);
    if (scanner->scanned == 0)
        die("nothing was", "scanned");
}

static struct outcome run_touches(const struct host *host, bool scanning, enum pager_place place,
                                  struct touches touches)
{
    cpu_set_t allowed;
    struct outcome outcome = {.wait = {.name = "wait"}};
    struct scanner scanner = {.corpus = host->corpus};
    struct de_pager_statistics before, after;
    sched_getaffinity(0, sizeof allowed, &allowed);
    evict_all(host);
    to_load = (struct samples){.name = "to load"};
    de_pager_read_statistics(host->pager, &before);
    if (scanning)
        start_scan(&scanner, &allowed);
    touch_served(host, place, touches, &allowed, &outcome.wait);
    if (scanning)
        stop_scan(&scanner);
    de_pager_read_statistics(host->pager, &after);
    if (after.loads - before.loads != touches.count)
        die("not all faults were", "measured");
    outcome.to_load = to_load;
    outcome.fault = since(&before.fault, &after.fault);
    outcome.rebuild = since(&before.rebuild, &after.rebuild);
    return outcome;
}

static struct outcome run(const struct host *host, bool scanning, enum pager_place place)
{
    return run_touches(host, scanning, place, (struct touches){.count = host->corpus->count});
}

/* Leaves pages out: a host's last run. */
static struct outcome run_sparse(const struct host *host)
{
    struct touches touches = {.count = SPARSE_PAGES, .pause_us = SPARSE_PAUSE_US};
    return run_touches(host, false, ASLEEP_SAME_CORE, touches);
}

static void print_latency(const char *name, const struct de_latency *latency)
{
    printf("\"%s_p50_us\": %.3f, \"%s_p99_us\": %.3f, ", name,
           (double)de_latency_quantile(latency, 0.5) / 1e3, name,
           (double)de_latency_quantile(latency, 0.99) / 1e3);
}

static void print_outcome(const char *name, struct outcome *outcome)
{
    printf(", \"%s\": {\"to_load_p50_us\": %.3f, \"to_load_p99_us\": %.3f, ", name,
           quantile_us(&outcome->to_load, 0.5), quantile_us(&outcome->to_load, 0.99));
    print_latency("rebuild", &outcome->rebuild);
    print_latency("fault", &outcome->fault);
    printf("\"wait_p50_us\": %.3f, \"wait_p99_us\": %.3f}", quantile_us(&outcome->wait, 0.5),
           quantile_us(&outcome->wait, 0.99));
    free(outcome->to_load.ns);
    free(outcome->wait.ns);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        die("usage:", "fault_bench IMAGE...");
    struct corpus corpus = collect(argv + 1, argc - 1, MOST_PAGES);
    if (corpus.count < SCAN_BATCH)
        die("too few different pages in", "the images");
    printf("{\"benchmark\": \"fault\", \"pages\": %zu, \"cores\": %u", corpus.count, cores());
    struct host fast = make_host(&corpus, DE_ENCODING_LZ4);
    (void)run(&fast, false, ASLEEP_SAME_CORE); /* maps memory; does not count */
    struct outcome outcome = run(&fast, true, ASLEEP_SAME_CORE);
    print_outcome("fast", &outcome);
    outcome = run(&fast, false, ASLEEP_SAME_CORE);
    print_outcome("same_core", &outcome);
    outcome = run(&fast, false, ASLEEP_OTHER_CORE);
    print_outcome("other_core", &outcome);
    outcome = run(&fast, false, SPINNING);
    print_outcome("spinning", &outcome);
    outcome = run_sparse(&fast);
    print_outcome("fast_sparse", &outcome);
    free_host(&fast);
    struct host dense = make_host(&corpus, DE_ENCODING_DENSE);
    (void)run(&dense, false, ASLEEP_SAME_CORE);
    outcome = run(&dense, true, ASLEEP_SAME_CORE);
    print_outcome("dense", &outcome);
    outcome = run_sparse(&dense);
    print_outcome("dense_sparse", &outcome);
    free_host(&dense);
    puts("}");
    return 0;
}
