/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include "file.h"
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_BYTES ((uint64_t)1 << 44)

uint64_t de_store_id_limit(uint64_t max_bytes)
{
    uint64_t ids = max_bytes / de_class_bytes(DE_CLASS_MIN);
    return ids < DE_NONE ? ids : DE_NONE;
}

int de_store_make(const struct de_store_memory *memory, uint64_t max_bytes, struct de_store **store)
{
    /* The epochs' cache lines are aligned, so plain malloc() will not do. */
    struct de_store *made = aligned_alloc(_Alignof(struct de_store), sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    memset(made, 0, sizeof(*made));
    de_epochs_init(&made->epochs);
    de_models_init(&made->models);
    made->free_id = DE_NONE;
    pthread_mutex_init(&made->lock, NULL);
    int status = de_arena_create(&made->arena, memory, max_bytes);
    if (status == DE_OK) {
        status = de_growing_create(&made->ids, sizeof(uint64_t), de_store_id_limit(max_bytes));
        if (status != DE_OK)
            de_arena_free(&made->arena);
    }
    if (status != DE_OK) {
        free(made);
        return status;
    }
    *store = made;
    return DE_OK;
}

void de_store_unmake(struct de_store *store)
{
    de_arena_free(&store->arena);
    de_growing_free(&store->ids);
    de_growing_free(&store->dependants);
    de_epochs_free(&store->epochs);
    de_models_free(&store->models);
    pthread_mutex_destroy(&store->lock);
    free(store);
}

static int make_memory_file(const char *path)
{
    if (path)
        return open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int fd = memfd_create("diffengine-store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* A file that shrank under its mapping would kill the process. */
    if (fd >= 0)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    return fd;
}

int de_store_create_in(const struct de_store_memory *memory, uint64_t max_bytes, struct de_store **store)
{
    if (max_bytes < DE_STORE_CHUNK || max_bytes > MAX_BYTES)
        return DE_INVALID;
    return de_store_make(memory, max_bytes, store);
}

int de_store_create(const char *path, uint64_t max_bytes, struct de_store **store)
{
    struct de_store_memory memory;
    int fd = make_memory_file(path);
    if (fd < 0)
        return DE_SYSTEM;
    int status = de_store_file_create(fd, &memory);
    if (status != DE_OK) {
        close(fd);
    } else {
        status = de_store_create_in(&memory, max_bytes, store);
        if (status != DE_OK) {
            int error = errno;
            memory.operations->leave(memory.context);
            errno = error;
        }
    }
    if (status != DE_OK && path) {
        int error = errno;
        unlink(path);
        errno = error;
    }
    return status;
}

void de_store_close(struct de_store *store)
{
    if (!store)
        return;
    struct de_store_memory memory = store->arena.memory;
    de_store_unmake(store);
    memory.operations->leave(memory.context);
}

int de_store_fd(const struct de_store *store)
{
    return de_store_file_fd(&store->arena.memory);
}

bool de_store_read_at(const struct de_store *store, uint64_t place, uint32_t id, struct de_object *object)
{
    uint32_t found;
    return de_object_read(de_arena_slot(&store->arena, place), de_arena_slot_bytes(&store->arena, place),
                          &found, object) &&
           found == id;
}

void de_store_account(struct de_store *store, const struct de_object *object, int sign)
{
    store->objects += (uint64_t)(int64_t)sign;
    if (object->encoding == DE_ENCODING_SWAPPED)
        store->swapped += (uint64_t)(int64_t)sign;
    store->payload_bytes += (uint64_t)((int64_t)sign * (int64_t)object->payload_bytes);
    store->header_bytes += (uint64_t)((int64_t)sign * (int64_t)de_object_bytes(object->reference_count, 0));
}

int de_store_check_references(const struct de_store *store, const struct de_object *object, uint8_t *depth)
{
    *depth = 0;
    for (uint32_t i = 0; i < object->reference_count; i++) {
        uint64_t entry = de_store_lookup(store, object->references[i]);
        struct de_object reference;
        if (entry & DE_ENTRY_ABSENT)
            return DE_NOT_FOUND;
        if (!de_store_read_at(store, de_entry_place(entry), object->references[i], &reference))
            return DE_CORRUPT;
        bool model_expected = de_object_codec(object) == DE_ENCODING_DENSE && i == 0;
        if ((reference.encoding == DE_ENCODING_MODEL) != model_expected)
            return DE_INVALID;
        if (!model_expected && reference.depth >= *depth)
            *depth = reference.depth + 1;
    }
    return *depth <= DE_STORE_MAX_DEPTH ? DE_OK : DE_INVALID;
}

void de_store_retire(struct de_store *store, uint64_t place, uint32_t id)
{
    store->limbo_bytes += de_arena_slot_bytes(&store->arena, place);
    de_epochs_retire(&store->epochs, place, id);
}

static void push_free_id(struct de_store *store, uint32_t id)
{
    atomic_store(de_store_entry(store, id), DE_ENTRY_ABSENT | store->free_id);
    store->free_id = id;
}

void de_store_reclaim(struct de_store *store)
{
    if (de_epochs_limbo_empty(&store->epochs))
        return;
    uint64_t before = de_epochs_oldest(&store->epochs);
    struct de_retired retired;
    while (de_epochs_reclaim(&store->epochs, before, &retired)) {
        store->limbo_bytes -= de_arena_slot_bytes(&store->arena, retired.place);
        de_object_erase(de_arena_slot(&store->arena, retired.place));
        de_arena_give(&store->arena, retired.place);
        de_models_remove(&store->models, retired.id);
        /* Not before: two headers with one id would puzzle a successor. */
        if (retired.id != DE_NONE)
            push_free_id(store, retired.id);
    }
}

/* Take one from an id's count. @return whether it is 0 now. */
static bool count_down(struct de_store *store, uint32_t id)
{
    uint64_t entry = de_store_lookup(store, id);
    if ((entry & DE_ENTRY_ABSENT) || !de_entry_count(entry))
        return false;
    atomic_store(de_store_entry(store, id), entry - 1);
    return de_entry_count(entry) == 1;
}

uint64_t de_store_drop(struct de_store *store, uint32_t id)
{
    /* What hangs below one object is at most DE_STORE_MAX_DEPTH levels deep, and one more for a model: taking
     * the last one noted down first, no more than its references per level are ever waiting. */
    uint32_t waiting[(DE_STORE_MAX_DEPTH + 2) * DE_STORE_MAX_REFERENCES];
    uint32_t count = 0;
    uint64_t dropped = 0;
    waiting[count++] = id;
    while (count) {
        uint32_t next = waiting[--count];
        uint64_t place = de_entry_place(de_store_lookup(store, next));
        struct de_object object;
        if (!de_epochs_prepare(&store->epochs))
            break; /* stays, with count 0, until the next sweep */
        /* A damaged header does not say what it refers to, nor how long it is: the one is kept, the other
         * stays counted. */
        bool readable = de_store_read_at(store, place, next, &object);
        atomic_store(de_store_entry(store, next), DE_ENTRY_ABSENT | DE_NONE);
        de_store_retire(store, place, next);
        dropped++;
        if (!readable) {
            store->objects--;
            continue;
        }
        de_store_account(store, &object, -1);
        de_store_count_dependant(store, &object, -1);
        if (object.encoding == DE_ENCODING_SWAPPED && store->swap)
            de_swap_give(store->swap, de_object_swap_place(&object).slot);
        for (uint32_t i = 0; i < object.reference_count; i++)
            if (count < sizeof(waiting) / sizeof(*waiting) && count_down(store, object.references[i]))
                waiting[count++] = object.references[i];
    }
    return dropped;
}

/* The id that the next object gets, which is not yet taken. */
static int next_id(struct de_store *store, uint32_t *id)
{
    *id = store->free_id;
    if (*id != DE_NONE)
        return DE_OK;
    *id = atomic_load_explicit(&store->ids_used, memory_order_relaxed);
    return de_growing_reach(&store->ids, (uint64_t)*id + 1);
}

static void take_id(struct de_store *store, uint32_t id, uint64_t entry)
{
    if (id == store->free_id)
        store->free_id = (uint32_t)atomic_load(de_store_entry(store, id));
    atomic_store(de_store_entry(store, id), entry);
    if (id == atomic_load_explicit(&store->ids_used, memory_order_relaxed))
        atomic_store_explicit(&store->ids_used, id + 1, memory_order_release);
}

/* A rebuild that takes two reads of the disk is not what a new patch is for. */
static bool references_in_memory(const struct de_store *store, const struct de_object *object)
{
    struct de_object reference;
    for (uint32_t i = 0; store->swapped && i < object->reference_count; i++)
        if (de_store_read_at(store, de_entry_place(de_store_lookup(store, object->references[i])),
                             object->references[i], &reference) &&
            reference.encoding == DE_ENCODING_SWAPPED)
            return false;
    return true;
}

static bool references_countable(const struct de_store *store, const struct de_object *object)
{
    for (uint32_t i = 0; i < object->reference_count; i++)
        if (de_entry_count(de_store_lookup(store, object->references[i])) >
            DE_STORE_MAX_COUNT - DE_STORE_MAX_REFERENCES)
            return false;
    return true;
}

int de_store_add_model(struct de_store *store, uint32_t id, const struct de_object *object)
{
    struct de_dense_model *model;
    int status = de_dense_model_load(object->payload, object->payload_bytes, &model);
    if (status != DE_OK)
        return status;
    status = de_models_add(&store->models, id, model);
    if (status != DE_OK)
        de_dense_model_free(model);
    return status;
}

static int put_locked(struct de_store *store, const struct de_object *given, uint32_t *id)
{
    struct de_object object = *given;
    uint64_t place;
    int status = de_store_check_references(store, &object, &object.depth);
    if (status == DE_OK && !references_countable(store, &object))
        status = DE_FULL;
    if (status == DE_OK && !references_in_memory(store, &object))
        status = DE_BUSY;
    de_store_reclaim(store);
    uint32_t new_id = DE_NONE;
    if (status == DE_OK)
        status = next_id(store, &new_id);
    if (status == DE_OK)
        status = de_store_reach_dependants(store, (uint64_t)new_id + 1);
    if (status == DE_OK)
        status = de_arena_take(&store->arena, de_object_bytes(object.reference_count, object.payload_bytes),
                               &place);
    if (status != DE_OK)
        return status;
    if (object.encoding == DE_ENCODING_MODEL) {
        status = de_store_add_model(store, new_id, &object);
        if (status != DE_OK) {
            de_arena_give(&store->arena, place);
            return status;
        }
    }
    de_object_write(de_arena_slot(&store->arena, place), new_id, &object);
    for (uint32_t i = 0; i < object.reference_count; i++)
        atomic_fetch_add(de_store_entry(store, object.references[i]), 1);
    de_store_count_dependant(store, &object, 1);
    take_id(store, new_id, de_entry(place, 1));
    de_store_account(store, &object, 1);
    *id = new_id;
    return DE_OK;
}

int de_store_put(struct de_store *store, const struct de_object *object, uint32_t *id)
{
    if (object->encoding == DE_ENCODING_SWAPPED || !de_object_shape_valid(object))
        return DE_INVALID;
    pthread_mutex_lock(&store->lock);
    int status = put_locked(store, object, id);
    pthread_mutex_unlock(&store->lock);
    return status;
}

int de_store_retain(struct de_store *store, uint32_t id)
{
    pthread_mutex_lock(&store->lock);
    uint64_t entry = de_store_lookup(store, id);
    int status = DE_OK;
    if (entry & DE_ENTRY_ABSENT)
        status = DE_NOT_FOUND;
    else if (de_entry_count(entry) == DE_STORE_MAX_COUNT)
        status = DE_FULL;
    else
        atomic_store(de_store_entry(store, id), entry + 1);
    pthread_mutex_unlock(&store->lock);
    return status;
}

int de_store_release(struct de_store *store, uint32_t id)
{
    pthread_mutex_lock(&store->lock);
    uint64_t entry = de_store_lookup(store, id);
    int status = entry & DE_ENTRY_ABSENT ? DE_NOT_FOUND : DE_OK;
    if (status == DE_OK && (!de_entry_count(entry) || count_down(store, id)))
        de_store_drop(store, id);
    de_store_reclaim(store);
    pthread_mutex_unlock(&store->lock);
    return status;
}

uint32_t de_store_count(const struct de_store *store, uint32_t id)
{
    uint64_t entry = de_store_lookup(store, id);
    return entry & DE_ENTRY_ABSENT ? 0 : de_entry_count(entry);
}

void de_store_statistics(const struct de_store *store, struct de_store_statistics *statistics)
{
    struct de_store *locked = (struct de_store *)store;
    pthread_mutex_lock(&locked->lock);
    de_store_reclaim(locked);
    *statistics = (struct de_store_statistics){
        .objects = store->objects,
        .payload_bytes = store->payload_bytes,
        .header_bytes = store->header_bytes,
        .populated_bytes = store->arena.frames * DE_FRAME_BYTES,
        .table_bytes = sizeof(*store) + (uint64_t)store->ids_used * sizeof(uint64_t) +
                       de_arena_table_bytes(&store->arena) + de_epochs_bytes(&store->epochs) +
                       de_models_bytes(&store->models) +
                       (store->swap ? (uint64_t)store->ids_used * sizeof(uint32_t) : 0),
        .limbo_bytes = store->limbo_bytes,
        .swapped = store->swapped,
    };
    pthread_mutex_unlock(&locked->lock);
}

int de_store_reader_create(struct de_store *store, struct de_store_reader **reader)
{
    struct de_store_reader *made = malloc(sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    *made = (struct de_store_reader){.store = store, .number = de_epochs_join(&store->epochs)};
    if (made->number < 0) {
        free(made);
        return DE_FULL;
    }
    *reader = made;
    return DE_OK;
}

void de_store_reader_free(struct de_store_reader *reader)
{
    if (reader)
        de_epochs_part(&reader->store->epochs, reader->number);
    free(reader);
}

void de_store_enter(struct de_store_reader *reader)
{
    de_epochs_enter(&reader->store->epochs, reader->number);
}

void de_store_leave(struct de_store_reader *reader)
{
    de_epochs_leave(&reader->store->epochs, reader->number);
}

int de_store_get(struct de_store_reader *reader, uint32_t id, struct de_object *object)
{
    uint64_t entry = de_store_lookup(reader->store, id);
    if (entry & DE_ENTRY_ABSENT)
        return DE_NOT_FOUND;
    return de_store_read_at(reader->store, de_entry_place(entry), id, object) ? DE_OK : DE_CORRUPT;
}

const struct de_dense_model *de_store_model(struct de_store_reader *reader, uint32_t id)
{
    return de_models_find(&reader->store->models, id);
}
