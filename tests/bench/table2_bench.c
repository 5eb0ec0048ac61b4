/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * table2_bench [-d SWAP_DIRECTORY] IMAGE...
 *
 * The operations of the paper's Table 2 on real pages, each the median of many, in microseconds:
 *  - share: the pager's own part. The time that the embedded machine takes for the hypercalls is measured
 * call by call and subtracted; so is a memcmp of the two pages, which is the verification, measured on as
 * many other pairs in turn with it;
 *  - cow_break: a guest's write to a shared page, which is the machine's work alone;
 *  - compress, decompress: one page by LZ4; peers are LZ4's own functions, on the same page in turn;
 *  - patch, unpatch: fast patches, on the pairs that the shift-tolerant detector finds, indexing included;
 *  - swap: out in batches of 64 and in one by one, encrypted, to a tmpfs (/dev/shm: no disk) and to a disk.
 * One line of JSON. Exit 1 on bad use, or if any page does not come out as it went in.
 */
#include "corpus.h"

#include <diffengine/compress.h>
#include <diffengine/machine.h>
#include <diffengine/pager.h>
#include <diffengine/patch.h>
#include <diffengine/store.h>
#include <diffengine/swap.h>

#include <lz4.h>

enum {
    MOST_PAGES = 24576, /* 96 MiB: more than caches hold */
    SHARE_BATCH = 32,
    SWAP_PAGES = 4096,
    SEED = 0x5eed,
};

/* Hypercalls with a clock around each. An operations table has no room for more context than the machine. */
static const struct de_hypervisor_operations *machine_operations;
static uint64_t hypercall_ns;
static uint64_t clock_cost_ns;

#define TIMED(call)                                                                                          \
    uint64_t begin_ns = now_ns();                                                                            \
    int result = (call);                                                                                     \
    hypercall_ns += now_ns() - begin_ns + clock_cost_ns;                                                     \
    return result

static int timed_map(void *context, uint16_t domain, const uint32_t *gfns, size_t count,
                     const uint8_t **pages, int32_t *errors)
{
    TIMED(machine_operations->map(context, domain, gfns, count, pages, errors));
}

static void timed_unmap(void *context, const uint8_t *const *pages, size_t count)
{
    uint64_t begin_ns = now_ns();
    machine_operations->unmap(context, pages, count);
    hypercall_ns += now_ns() - begin_ns + clock_cost_ns;
}

static int timed_share_nominate(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle)
{
    TIMED(machine_operations->share_nominate(context, domain, gfn, handle));
}

static int timed_share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle,
                       uint16_t client, uint32_t client_gfn, uint64_t client_handle)
{
    TIMED(machine_operations->share(context, source, source_gfn, source_handle, client, client_gfn,
                                    client_handle));
}

/* A pair of clock readings with nothing between them still takes the time of one. */
static uint64_t measure_clock(void)
{
    struct samples samples = {.name = "clock"};
    for (unsigned i = 0; i < 4096; i++) {
        uint64_t begin_ns = now_ns();
        add_sample(&samples, now_ns() - begin_ns);
    }
    uint64_t ns = (uint64_t)(quantile_us(&samples, 0.5) * 1e3);
    free(samples.ns);
    return ns;
}

struct host {
    struct de_machine *machine;
    struct de_store *store;
    struct de_pager *pager;
    uint16_t domains[2];
    uint32_t gfns;
};

/* Two domains with the same pages. */
static struct host make_host(const struct corpus *corpus)
{
    static struct de_hypervisor_operations operations;
    struct host host = {.gfns = (uint32_t)corpus->count};
    if (de_machine_create(3 * host.gfns, &host.machine) != 0)
        die("cannot make", "the machine");
    require(de_store_create(NULL, 1u << 30, &host.store), "cannot make a store:");
    struct de_hypervisor hypervisor = de_machine_hypervisor(host.machine);
    machine_operations = hypervisor.operations;
    operations = *machine_operations;
    operations.map = timed_map;
    operations.unmap = timed_unmap;
    operations.share_nominate = timed_share_nominate;
    operations.share = timed_share;
    hypervisor.operations = &operations;
    require(de_pager_create(host.store, &hypervisor, &host.pager), "cannot make a pager:");
    for (unsigned i = 0; i < 2; i++) {
        if (de_machine_domain_create(host.machine, host.gfns, &host.domains[i]) != 0 ||
            de_machine_populate(host.machine, host.domains[i], NULL, corpus->pages, host.gfns, NULL) !=
                host.gfns)
            die("cannot make", "a domain");
        require(de_pager_add_domain(host.pager, host.domains[i], host.gfns), "cannot page a domain:");
    }
    return host;
}

static void free_host(struct host *host)
{
    de_pager_free(host->pager);
    de_store_close(host->store);
    de_machine_free(host->machine);
}

static uint64_t compare_pairs(const struct host *host, const uint32_t *gfns)
{
    const uint8_t *pages[2][SHARE_BATCH];
    int32_t errors[SHARE_BATCH];
    for (unsigned i = 0; i < 2; i++)
        if (de_machine_map(host->machine, host->domains[i], false, gfns, SHARE_BATCH, (uint8_t **)pages[i],
                           errors) != SHARE_BATCH)
            die("cannot map", "a domain");
    bool equal[SHARE_BATCH];
    uint64_t begin_ns = now_ns();
    de_compare_batch(pages[0], pages[1], SHARE_BATCH, equal);
    uint64_t ns = now_ns() - begin_ns;
    for (unsigned i = 0; i < SHARE_BATCH; i++)
        if (!equal[i])
            die("two pages differ that", "should not");
    for (unsigned i = 0; i < 2; i++)
        de_machine_unmap(host->machine, pages[i], SHARE_BATCH);
    return ns;
}

/* @return what is left without the hypercalls. */
static uint64_t share_pairs(const struct host *host, const uint32_t *gfns)
{
    uint16_t sources[SHARE_BATCH], clients[SHARE_BATCH];
    int32_t results[SHARE_BATCH];
    for (unsigned i = 0; i < SHARE_BATCH; i++) {
        sources[i] = host->domains[0];
        clients[i] = host->domains[1];
    }
    hypercall_ns = 0;
    uint64_t begin_ns = now_ns();
    de_pager_share(host->pager, sources, gfns, clients, gfns, SHARE_BATCH, results);
    uint64_t ns = now_ns() - begin_ns;
    for (unsigned i = 0; i < SHARE_BATCH; i++)
        if (results[i] != DE_PROPOSAL_DONE)
            die("two pages do not", "share");
    return ns > hypercall_ns ? ns - hypercall_ns : 0;
}

static void write_shared(const struct host *host, const uint32_t *gfns, size_t count, struct samples *breaks)
{
    struct de_vcpu *vcpu;
    if (de_vcpu_create(host->machine, host->domains[1], &vcpu) != 0)
        die("cannot make", "a vCPU");
    for (size_t i = 0; i < count; i++) {
        uint64_t word = i, begin_ns = now_ns();
        if (de_machine_guest_write(vcpu, gfns[i], 8, &word, sizeof word) != 0)
            die("a guest cannot write to", "a shared page");
        add_sample(breaks, now_ns() - begin_ns);
    }
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(vcpu, &statistics);
    if (statistics.cow_breaks != count)
        die("writes did not all break", "sharing");
    de_vcpu_free(vcpu);
}

/* Medians are of batches, as one pair takes hardly longer than the clock. */
static void bench_sharing(const struct corpus *corpus)
{
    struct host host = make_host(corpus);
    struct samples compares = {.name = "memcmp"}, shares = {.name = "share"}, breaks = {.name = "cow break"};
    uint32_t *gfns = allocate(host.gfns, sizeof *gfns);
    uint32_t *shared = allocate(host.gfns, sizeof *shared);
    size_t count = 0;
    for (uint32_t gfn = 0; gfn < host.gfns; gfn++)
        gfns[gfn] = gfn; /* the corpus is in random order already */
    clock_cost_ns = measure_clock();
    for (uint32_t first = 0; first + 2 * SHARE_BATCH <= host.gfns; first += 2 * SHARE_BATCH) {
        add_sample(&compares, compare_pairs(&host, gfns + first));
        add_sample(&shares, share_pairs(&host, gfns + first + SHARE_BATCH));
        memcpy(shared + count, gfns + first + SHARE_BATCH, SHARE_BATCH * sizeof *shared);
        count += SHARE_BATCH;
    }
    write_shared(&host, shared, count, &breaks);
    double compare_us = quantile_us(&compares, 0.5) / SHARE_BATCH;
    double share_us = quantile_us(&shares, 0.5) / SHARE_BATCH;
    printf(", \"share\": {\"us\": %.3f, \"memcmp_us\": %.3f, \"verification_apart\": %.3f}", share_us,
           compare_us, (share_us > compare_us ? share_us - compare_us : 0) / compare_us);
    printf(", \"cow_break\": {\"us\": %.3f}", quantile_us(&breaks, 0.5));
    free_host(&host);
    free(gfns);
    free(shared);
}

static struct de_compress_context *lz4;

static uint64_t time_compress(bool ours, const uint8_t *page, uint8_t *out, size_t *bytes)
{
    uint64_t begin_ns = now_ns();
    if (ours)
        *bytes = de_compress_page(lz4, page, out, DE_PAGE_SIZE - 1);
    else
        *bytes =
            (size_t)LZ4_compress_default((const char *)page, (char *)out, DE_PAGE_SIZE, DE_PAGE_SIZE - 1);
    return now_ns() - begin_ns;
}

static uint64_t time_decompress(bool ours, const uint8_t *payload, size_t bytes, uint8_t *out)
{
    uint64_t begin_ns = now_ns();
    if (ours)
        require(de_decompress_page(lz4, payload, bytes, out), "a page does not decompress:");
    else if (LZ4_decompress_safe((const char *)payload, (char *)out, (int)bytes, DE_PAGE_SIZE) !=
             DE_PAGE_SIZE)
        die("a page does not decompress", "with LZ4");
    return now_ns() - begin_ns;
}

/* [0]: the peer, [1]: ours. Both take their turn at being first. */
static void bench_compression(const struct corpus *corpus)
{
    struct samples compress[2] = {{.name = "compress"}, {.name = "compress"}};
    struct samples decompress[2] = {{.name = "decompress"}, {.name = "decompress"}};
    uint8_t page[DE_PAGE_SIZE], payload[DE_PAGE_SIZE], out[DE_PAGE_SIZE];
    require(de_compress_create(DE_COMPRESS_LZ4, 1, &lz4), "cannot use LZ4:");
    for (size_t i = 0; i < corpus->count; i++) {
        size_t bytes = 0;
        memcpy(page, corpus->pages[i], DE_PAGE_SIZE);
        for (unsigned turn = 0; turn < 2; turn++) {
            bool ours = (i + turn) % 2;
            add_sample(&compress[ours], time_compress(ours, page, payload, &bytes));
        }
        for (unsigned turn = 0; turn < 2 && bytes > 0; turn++) {
            bool ours = (i + turn) % 2;
            add_sample(&decompress[ours], time_decompress(ours, payload, bytes, out));
            if (memcmp(page, out, DE_PAGE_SIZE) != 0)
                die("a page came out", "wrong");
        }
    }
    de_compress_free(lz4);
    struct samples *both[2] = {compress, decompress};
    for (unsigned i = 0; i < 2; i++) {
        double peer_us = quantile_us(&both[i][0], 0.5), us = quantile_us(&both[i][1], 0.5);
        printf(", \"%s\": {\"us\": %.3f, \"peer_us\": %.3f, \"ratio\": %.3f}", both[i]->name, us, peer_us,
               us / peer_us);
    }
}

static void bench_patches(const struct corpus *corpus)
{
    struct samples patch = {.name = "patch"}, unpatch = {.name = "unpatch"};
    struct de_patch_encoder *encoder;
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], payload[DE_PAGE_SIZE], out[DE_PAGE_SIZE];
    require(de_patch_encoder_create(&encoder), "cannot make an encoder:");
    for (size_t i = 0; i < corpus->count; i++) {
        if (corpus->references[i] == DE_NONE)
            continue;
        memcpy(page, corpus->pages[i], DE_PAGE_SIZE);
        memcpy(reference, corpus->pages[corpus->references[i]], DE_PAGE_SIZE);
        uint64_t begin_ns = now_ns();
        de_patch_load_reference(encoder, reference);
        size_t bytes = de_patch_encode(encoder, page, payload, DE_PAGE_SIZE - 1);
        uint64_t end_ns = now_ns();
        if (bytes == 0)
            continue;
        add_sample(&patch, end_ns - begin_ns);
        begin_ns = now_ns();
        require(de_patch_decode(payload, bytes, reference, out), "a patch does not apply:");
        add_sample(&unpatch, now_ns() - begin_ns);
        if (memcmp(page, out, DE_PAGE_SIZE) != 0)
            die("a page came out", "wrong");
    }
    de_patch_encoder_free(encoder);
    printf(", \"patch\": {\"us\": %.3f, \"count\": %zu}, \"unpatch\": {\"us\": %.3f}",
           quantile_us(&patch, 0.5), patch.count, quantile_us(&unpatch, 0.5));
}

struct swapped {
    struct de_swap *swap;
    struct de_swap_channel *channel;
    struct de_swap_place places[SWAP_PAGES];
    struct samples out, in;
};

static void swap_out(struct swapped *swapped, const struct corpus *corpus, size_t count)
{
    uint8_t payload[DE_PAGE_SIZE];
    int statuses[DE_STORE_SWAP_BATCH];
    for (size_t first = 0; first < count; first += DE_STORE_SWAP_BATCH) {
        uint64_t ns = 0, begin_ns;
        for (size_t i = first; i < first + DE_STORE_SWAP_BATCH; i++) {
            int bytes = LZ4_compress_default((const char *)corpus->pages[i], (char *)payload, DE_PAGE_SIZE,
                                             DE_PAGE_SIZE - 1);
            const uint8_t *content = bytes > 0 ? payload : corpus->pages[i];
            begin_ns = now_ns();
            require(de_swap_add(swapped->channel, content, bytes > 0 ? (uint32_t)bytes : DE_PAGE_SIZE,
                                bytes > 0 ? DE_ENCODING_LZ4 : DE_ENCODING_RAW, &swapped->places[i]),
                    "cannot swap out:");
            ns += now_ns() - begin_ns;
        }
        begin_ns = now_ns();
        if (de_swap_flush(swapped->channel, statuses) != DE_STORE_SWAP_BATCH)
            die("cannot write to", "the swap file");
        add_sample(&swapped->out, ns + now_ns() - begin_ns);
        for (unsigned i = 0; i < DE_STORE_SWAP_BATCH; i++)
            require(statuses[i], "cannot swap out:");
    }
}

static void swap_in(struct swapped *swapped, const struct corpus *corpus, size_t count)
{
    uint8_t out[DE_PAGE_SIZE];
    uint64_t state = SEED;
    for (size_t turn = 0; turn < count; turn++) {
        size_t i = (size_t)(next_random(&state) % count);
        const struct de_swap_place *place = &swapped->places[i];
        const uint8_t *payload = de_swap_channel_page(swapped->channel, 0);
        uint64_t begin_ns = now_ns();
        require(de_swap_read(swapped->channel, place, 0), "cannot swap in:");
        if (place->encoding == DE_ENCODING_RAW)
            memcpy(out, payload, DE_PAGE_SIZE);
        else if (LZ4_decompress_safe((const char *)payload, (char *)out, place->payload_bytes,
                                     DE_PAGE_SIZE) != DE_PAGE_SIZE)
            die("a page does not", "decompress");
        add_sample(&swapped->in, now_ns() - begin_ns);
        if (memcmp(out, corpus->pages[i], DE_PAGE_SIZE) != 0)
            die("a page came out", "wrong");
    }
}

static void bench_swap(const struct corpus *corpus, const char *name, const char *directory)
{
    static struct swapped swapped;
    char path[4096];
    size_t count = corpus->count < SWAP_PAGES ? corpus->count : SWAP_PAGES;
    count -= count % DE_STORE_SWAP_BATCH;
    snprintf(path, sizeof path, "%s/table2-bench-%ld.swap", directory, (long)getpid());
    struct de_swap_options options = {.path = path, .bytes = (uint64_t)count * DE_PAGE_SIZE};
    swapped = (struct swapped){.out = {.name = "swap out"}, .in = {.name = "swap in"}};
    int status = de_swap_open(&options, &swapped.swap);
    if (status == DE_OK)
        status = de_swap_channel_create(swapped.swap, DE_STORE_SWAP_BATCH, &swapped.channel);
    unlink(path); /* open it stays until it is closed, and is gone however this program ends */
    require(status, "cannot make a swap file:");
    swap_out(&swapped, corpus, count);
    swap_in(&swapped, corpus, count);
    de_swap_channel_free(swapped.channel);
    de_swap_close(swapped.swap);
    printf(", \"swap_out_%s\": {\"us\": %.3f}, \"swap_in_%s\": {\"us\": %.3f}", name,
           quantile_us(&swapped.out, 0.5) / DE_STORE_SWAP_BATCH, name, quantile_us(&swapped.in, 0.5));
}

int main(int argc, char **argv)
{
    const char *directory = ".";
    int option;
    while ((option = getopt(argc, argv, "d:")) != -1)
        directory = option == 'd' ? optarg : NULL;
    if (optind >= argc || directory == NULL)
        die("usage:", "table2_bench [-d SWAP_DIRECTORY] IMAGE...");
    struct corpus corpus = collect(argv + optind, argc - optind, MOST_PAGES);
    if (corpus.count < 2 * SHARE_BATCH)
        die("too few different pages in", "the images");
    printf("{\"benchmark\": \"table2\", \"pages\": %zu", corpus.count);
    bench_sharing(&corpus);
    bench_compression(&corpus);
    bench_patches(&corpus);
    bench_swap(&corpus, "memory", "/dev/shm");
    bench_swap(&corpus, "disk", directory);
    puts("}");
    return 0;
}
