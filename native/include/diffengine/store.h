/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file store.h
 * The content store: reference-counted objects in one memory file (or other memory: store_memory.h), from
 * which evicted pages are rebuilt.
 *
 * An object is one page's content in some encoding. A patch names the objects it needs (its references); the
 * store keeps those alive as long as the patch is. Object headers in the file are the truth: reference counts
 * held by patches, free lists and the id table are derived from them, and rebuilt by de_store_open().
 *
 * Layout: the file is cut into chunks of DE_STORE_CHUNK bytes. A chunk serves one size class; sizes are so
 * close that rounding costs about 1 %. Memory is only populated when a slot is first written, so a fresh
 * chunk's tail costs nothing; a 4-KiB frame of a chunk without a live slot is given back to the system
 * (fallocate PUNCH_HOLE). So the file is sparse, and its length says nothing. A process that locks its memory
 * must do so with MCL_ONFAULT.
 *
 * Threads: any number of readers, each with its own de_store_reader; any number of writers (one per domain),
 * which serialise on an internal lock that readers never take. A reader between enter and leave sees every
 * object it gets unchanged: released slots are reused only after every reader that might see them has left
 * (epochs).
 */
#ifndef DIFFENGINE_STORE_H
#define DIFFENGINE_STORE_H

#include <diffengine/page.h>
#include <stdbool.h>

#define DE_STORE_CHUNK 524288u
/** The largest MODEL. */
#define DE_STORE_MODEL_MAX_BYTES 32768u
/** The largest reference count of one object. */
#define DE_STORE_MAX_COUNT 0xffffffu
/** Pages a patch may refer to, plus one for the model of a DENSE object (always its first reference). */
#define DE_STORE_MAX_REFERENCES 5u
/** How many rebuilds deep a patch may stand on other patches: 0 = needs no reference. */
#define DE_STORE_MAX_DEPTH 3u

/** How an object's payload encodes its page. Stored on disk: never renumber. */
enum de_encoding {
    DE_ENCODING_RAW = 0,     /**< 4096 bytes */
    DE_ENCODING_FILL = 1,    /**< 8 bytes: the repeated word */
    DE_ENCODING_LZ4 = 2,     /**< one LZ4 block */
    DE_ENCODING_ZSTD = 3,    /**< one zstd frame without magic, size or checksum */
    DE_ENCODING_PATCH = 4,   /**< patch.h, exactly one reference */
    DE_ENCODING_DENSE = 5,   /**< dense.h: first reference its MODEL, then 0 to 4 pages */
    DE_ENCODING_MODEL = 6,   /**< not a page: the statistics that DENSE objects were coded with (dense.h) */
    DE_ENCODING_SWAPPED = 7, /**< a struct de_swap_place: the payload is in the swap file (swap.h) */
};

/** One object as a writer gives it and a reader sees it. */
struct de_object {
    enum de_encoding encoding;
    uint32_t checksum; /**< de_page_checksum() of the page it rebuilds to (of the payload, for a MODEL) */
    uint8_t reference_count;
    uint8_t
        depth; /**< 1 + the deepest page reference's; 0 without (a MODEL does not count). Set by the store. */
    uint32_t references[DE_STORE_MAX_REFERENCES];
    const uint8_t *payload;
    uint32_t payload_bytes;
};

struct de_store;
struct de_store_reader;

struct de_store_statistics {
    uint64_t objects;
    uint64_t payload_bytes;   /**< of live objects */
    uint64_t header_bytes;    /**< object and reference headers of live objects */
    uint64_t populated_bytes; /**< memory the file really takes, in whole frames: equals st_blocks * 512 */
    uint64_t table_bytes;     /**< id table, chunk table, free lists: anonymous memory beside the file */
    uint64_t limbo_bytes;     /**< released, waiting for readers to leave */
    uint64_t swapped;         /**< live objects whose payload is in the swap file */
};

/**
 * Make a new, empty store.
 * @param path      A file to make (0600), or NULL for a memfd. An existing file is refused (DE_SYSTEM,
 * EEXIST).
 * @param max_bytes Limit of the file's populated memory, rounded down to frames; DE_STORE_CHUNK to 2^44.
 * Several times as much address space is reserved, but no memory.
 * @return DE_OK, DE_INVALID, DE_NO_MEMORY or DE_SYSTEM (errno).
 */
int de_store_create(const char *path, uint64_t max_bytes, struct de_store **store);

/**
 * Take over the store in @p fd (a memfd or file that de_store_create() made and whose last writer is gone,
 * however it went): check every header, rebuild what is derived. A slot whose header is torn or whose
 * references are missing counts as free.
 *
 * Ids stay. Each object's count is the number of references to it in live objects' headers; what pages the
 * caller's own table names is for the caller to say again: one de_store_retain() per page that names an
 * object, then one de_store_sweep(). Until then, objects with count 0 are kept, and readers can get them.
 * Ownership of @p fd passes to the store on success.
 * @return DE_OK, DE_CORRUPT (not a store), DE_NO_MEMORY, DE_SYSTEM.
 */
int de_store_open(int fd, struct de_store **store);

/**
 * Drop every object with count 0, and what only those refer to. Needed only after de_store_open(): otherwise
 * nothing has count 0 (but for a release that found no memory to note it down).
 * @return how many objects went.
 */
uint64_t de_store_sweep(struct de_store *store);

struct de_swap;
struct de_swap_channel;

/**
 * Let objects move to @p swap, which outlives the store. After de_store_open(), before the sweep: slots that
 * objects name are marked as used. @return DE_OK, DE_BUSY (has one) or DE_NO_MEMORY.
 */
int de_store_attach_swap(struct de_store *store, struct de_swap *swap);

#define DE_STORE_SWAP_BATCH 64u
/** Objects up to this size stay: in swap they would take as much memory. */
#define DE_STORE_SWAP_MIN_BYTES 64u

/**
 * Move payloads to the swap file. Ids, counts and references stay; an object that has gone to swap keeps what
 * it refers to, but no longer keeps it in memory. Takes a disk write per batch of DE_STORE_SWAP_BATCH.
 * @param channel Of at least DE_STORE_SWAP_BATCH pages.
 * @param[out] statuses Per object: DE_OK; DE_NOT_FOUND; DE_BUSY: an object in memory refers to it, which must
 * go first; DE_INVALID: in swap already, too small, or a MODEL; DE_FULL: no slot, or no room in the store for
 * what stays; DE_CORRUPT: its header is damaged; DE_SYSTEM: the disk; DE_NO_MEMORY.
 */
void de_store_swap_out(struct de_store *store, struct de_store_reader *reader,
                       struct de_swap_channel *channel, const uint32_t *ids, size_t count, int *statuses);

/** Unmap and close; the file, if it has a name, stays. No reader may be left. */
void de_store_close(struct de_store *store);

/** The store's file descriptor (for passing on to a successor), -1 if it lies in no file. Owned by the store.
 */
int de_store_fd(const struct de_store *store);

/**
 * Put an object; its reference count is 1, and each of its references gains one.
 * @param object encoding, checksum, references and payload are used; payload_bytes <= DE_PAGE_SIZE, or up to
 *               DE_STORE_MODEL_MAX_BYTES for a MODEL. The payload is copied.
 * @param[out] id The new object's id: stable for its life, never DE_NONE; ids are reused after release.
 * @return DE_OK, DE_INVALID (sizes, too deep, wrong number of references for the encoding, SWAPPED),
 * DE_NOT_FOUND (a reference does not exist), DE_BUSY (a reference is in the swap file), DE_CORRUPT (a
 * reference's header is damaged, or a MODEL's payload is no model), DE_FULL (the store, its models, or a
 * reference's count), DE_NO_MEMORY or DE_SYSTEM (the memory file can't grow).
 */
int de_store_put(struct de_store *store, const struct de_object *object, uint32_t *id);

/**
 * Count one more user of an object.
 * @return DE_OK, DE_NOT_FOUND, or DE_FULL: the count is DE_STORE_MAX_COUNT; put the content a second time
 * instead.
 */
int de_store_retain(struct de_store *store, uint32_t id);

/**
 * Count one user fewer. At zero the object goes, and so may its references; its memory comes back when no
 * reader is left that might see it. An object that nobody claimed since de_store_open() (count 0) goes at
 * once.
 * @return DE_OK or DE_NOT_FOUND.
 */
int de_store_release(struct de_store *store, uint32_t id);

/** An object's present reference count, 0 if there is none. */
uint32_t de_store_count(const struct de_store *store, uint32_t id);

void de_store_statistics(const struct de_store *store, struct de_store_statistics *statistics);

/**
 * Move objects out of sparsely used chunks of each size class, so that whole chunks go back. Readers may be
 * active: an object's old slot stays until they have left. Ids do not change.
 * @return bytes of populated memory given back.
 */
uint64_t de_store_compact(struct de_store *store);

/** A reader belongs to one thread. At most 64 at a time per store. DE_OK, DE_FULL or DE_NO_MEMORY. */
int de_store_reader_create(struct de_store *store, struct de_store_reader **reader);
void de_store_reader_free(struct de_store_reader *reader);

/** Between these two, everything de_store_get() returned stays as it is. Wait-free, no allocation, no
 * nesting. */
void de_store_enter(struct de_store_reader *reader);
void de_store_leave(struct de_store_reader *reader);

/**
 * Look an object up; @p object->payload points into the store, valid until de_store_leave().
 * @return DE_OK, DE_NOT_FOUND, or DE_CORRUPT (its header does not make sense: the memory was damaged).
 */
int de_store_get(struct de_store_reader *reader, uint32_t id, struct de_object *object);

struct de_dense_model;

/** The code tables of the MODEL object @p id, or NULL if it is none; valid until de_store_leave(). */
const struct de_dense_model *de_store_model(struct de_store_reader *reader, uint32_t id);

#endif
