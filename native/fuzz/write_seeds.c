/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * write_seeds PATCH_DIRECTORY DENSE_DIRECTORY IMAGE
 *
 * Where fuzzing begins: payloads that both encoders really make of guest pages, each behind the byte by which
 * the fuzz target knows that it is to be decoded. From nothing, a fuzzer would take days to meet a payload
 * whose parts fit together, and would test hardly more than the header. Exit 1 if a file can't be read or
 * written.
 */
#include <diffengine/dense.h>
#include <diffengine/patch.h>
#include <diffengine/similarity.h>
#include <diffengine/status.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SEEDS_OF_A_KIND = 300,
    DECODE_PATCH = 0,      /* fuzz_patch.c: its first byte modulo 3 */
    DECODE_ALONE = 0,      /* fuzz_dense.c: the valid model, no reference */
    DECODE_REFERENCED = 4, /* fuzz_dense.c: the valid model, the last reference */
};

struct image {
    const uint8_t **pages; /* without those of one repeated byte */
    uint32_t *references;
    size_t count;
};

struct encoders {
    struct de_patch_encoder *patch;
    struct de_dense_encoder *dense;
    struct de_dense_model *model;
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "write_seeds: %s %s\n", what, name);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        die("no memory for", "the seeds");
    return memory;
}

static struct image read_image(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)DE_PAGE_SIZE)
        die("cannot use image", path);
    size_t count = (size_t)status.st_size / DE_PAGE_SIZE;
    const uint8_t *bytes = mmap(NULL, count * DE_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (bytes == MAP_FAILED)
        die("cannot map", path);
    struct image image = {.pages = allocate(count, sizeof *image.pages)};
    for (size_t i = 0; i < count; i++, bytes += DE_PAGE_SIZE)
        if (memcmp(bytes, bytes + 1, DE_PAGE_SIZE - 1) != 0)
            image.pages[image.count++] = bytes;
    if (image.count == 0)
        die("nothing to encode in", path);
    return image;
}

static void find_references(struct image *image)
{
    size_t count = image->count;
    uint32_t *features = allocate(count * DE_SHIFT_MAX_FEATURES, sizeof *features);
    uint32_t *numbers = allocate(count, sizeof *numbers);
    uint8_t *feature_counts = allocate(count, 1), *depths = allocate(count, 1);
    struct de_shift_index *index;
    image->references = allocate(count, sizeof *image->references);
    for (size_t i = 0; i < count; i++)
        numbers[i] = (uint32_t)i;
    if (de_shift_index_create(count * 32 + DE_PAGE_SIZE, 1, &index) != DE_OK)
        die("no memory for", "the index");
    de_shift_features(1, image->pages, count, features, feature_counts);
    de_shift_index_pass(index, features, feature_counts, numbers, count, depths, image->references);
    de_shift_index_free(index);
    free(features);
    free(numbers);
    free(feature_counts);
    free(depths);
}

static void write_seed(const char *directory, const char *kind, size_t page, uint8_t choice,
                       const uint8_t *payload, size_t count)
{
    char path[4096];
    if (count == 0) /* did not fit: nothing to decode */
        return;
    if ((size_t)snprintf(path, sizeof path, "%s/seed-%s-%zu", directory, kind, page) >= sizeof path)
        die("too long a name:", directory);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fputc(choice, file) == EOF || fwrite(payload, 1, count, file) != count ||
        fclose(file) != 0)
        die("cannot write", path);
}

static void write_page(const struct image *image, struct encoders *encoders, size_t page,
                       const char *patch_directory, const char *dense_directory)
{
    static uint8_t out[DE_PAGE_SIZE];
    const uint8_t *bytes = image->pages[page], *reference = NULL;
    if (image->references[page] != DE_NONE) {
        reference = image->pages[image->references[page]];
        de_patch_load_reference(encoders->patch, reference);
        size_t count = de_patch_encode(encoders->patch, bytes, out, DE_PATCH_MAX_BYTES);
        write_seed(patch_directory, "patch", page, DECODE_PATCH, out, count);
    }
    size_t count = de_dense_encode(encoders->dense, encoders->model, bytes, reference, out, sizeof out);
    write_seed(dense_directory, reference ? "referenced" : "alone", page,
               reference ? DECODE_REFERENCED : DECODE_ALONE, out, count);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        die("usage:", "write_seeds PATCH_DIRECTORY DENSE_DIRECTORY IMAGE");
    struct image image = read_image(argv[3]);
    struct encoders encoders;
    find_references(&image);
    if (de_patch_encoder_create(&encoders.patch) != DE_OK ||
        de_dense_encoder_create(&encoders.dense) != DE_OK || de_dense_model_default(&encoders.model) != DE_OK)
        die("no memory for", "the encoders");
    size_t seen[2] = {0}, found[2] = {0}; /* pages alone, pages with a reference */
    for (size_t i = 0; i < image.count; i++)
        found[image.references[i] != DE_NONE]++;
    for (size_t i = 0; i < image.count; i++) {
        unsigned kind = image.references[i] != DE_NONE;
        size_t step = found[kind] / SEEDS_OF_A_KIND + 1;
        if (seen[kind]++ % step == 0)
            write_page(&image, &encoders, i, argv[1], argv[2]);
    }
    de_dense_model_free(encoders.model);
    de_dense_encoder_free(encoders.dense);
    de_patch_encoder_free(encoders.patch);
    free(image.references);
    free(image.pages);
    return 0;
}
