/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "layout.h"
#include <stdatomic.h>
#include <string.h>

/* The state word: payload bytes 0-15, encoding 16-18, references 19-21, depth 22-23, tag 24-31. */
#define STATE_ENCODING 16
#define STATE_REFERENCES 19
#define STATE_DEPTH 22
#define STATE_TAG 24

enum header_word { WORD_ID, WORD_CHECKSUM, WORD_STATE };

uint32_t de_class_of(uint32_t object_bytes)
{
    uint32_t class_index = (object_bytes + DE_CLASS_STEP - 1) / DE_CLASS_STEP;
    if (class_index < DE_CLASS_MIN)
        return DE_CLASS_MIN;
    if (class_index <= DE_CLASS_PAGES)
        return class_index;
    uint32_t above = object_bytes - DE_CLASS_PAGES * DE_CLASS_STEP;
    return DE_CLASS_PAGES + (above + DE_MODEL_STEP - 1) / DE_MODEL_STEP;
}

uint32_t de_class_bytes(uint32_t class_index)
{
    if (class_index <= DE_CLASS_PAGES)
        return class_index * DE_CLASS_STEP;
    return DE_CLASS_PAGES * DE_CLASS_STEP + (class_index - DE_CLASS_PAGES) * DE_MODEL_STEP;
}

static bool reference_count_valid(const struct de_object *object)
{
    switch (object->encoding) {
    case DE_ENCODING_PATCH:
        return object->reference_count == 1;
    case DE_ENCODING_DENSE:
        return object->reference_count >= 1 && object->reference_count <= DE_STORE_MAX_REFERENCES;
    case DE_ENCODING_SWAPPED: /* see swapped_valid() */
        return object->reference_count <= DE_STORE_MAX_REFERENCES;
    default:
        return object->reference_count == 0;
    }
}

static bool payload_size_valid(const struct de_object *object)
{
    switch (object->encoding) {
    case DE_ENCODING_RAW:
        return object->payload_bytes == DE_PAGE_SIZE;
    case DE_ENCODING_FILL:
        return object->payload_bytes == sizeof(uint64_t);
    case DE_ENCODING_MODEL:
        return object->payload_bytes >= 1 && object->payload_bytes <= DE_STORE_MODEL_MAX_BYTES;
    case DE_ENCODING_SWAPPED:
        return object->payload_bytes == sizeof(struct de_swap_place);
    default:
        return object->payload_bytes >= 1 && object->payload_bytes <= DE_PAGE_SIZE;
    }
}

bool de_object_shape_valid(const struct de_object *object)
{
    return (unsigned)object->encoding <= DE_ENCODING_SWAPPED && reference_count_valid(object) &&
           payload_size_valid(object);
}

struct de_swap_place de_object_swap_place(const struct de_object *object)
{
    struct de_swap_place place;
    memcpy(&place, object->payload, sizeof(place));
    return place;
}

enum de_encoding de_object_codec(const struct de_object *object)
{
    if (object->encoding != DE_ENCODING_SWAPPED)
        return object->encoding;
    return (enum de_encoding)de_object_swap_place(object).encoding;
}

/* What lies in swap must be an object that might lie here. */
static bool swapped_valid(const struct de_object *object)
{
    struct de_object inner = *object;
    struct de_swap_place place = de_object_swap_place(object);
    inner.encoding = (enum de_encoding)place.encoding;
    inner.payload_bytes = place.payload_bytes;
    return place.encoding < DE_ENCODING_MODEL && de_object_shape_valid(&inner);
}

/* Ties the state to the rest of the header, so that one of mixed origin is known for what it is. Never 0, so
 * that a state word of 0 is "free". */
static uint32_t header_tag(uint32_t id, const struct de_object *object, uint32_t state)
{
    const uint64_t odd = 0xd6e8feb86659fd93u;
    uint64_t mixed = (((uint64_t)id << 32) | object->checksum) ^ state * odd;
    for (uint32_t i = 0; i < object->reference_count; i++)
        mixed = (mixed ^ mixed >> 29 ^ object->references[i]) * odd;
    mixed *= odd;
    mixed ^= mixed >> 32;
    mixed *= odd;
    return 1 + (uint32_t)((mixed >> 40) % 255);
}

static uint32_t state_word(uint32_t id, const struct de_object *object)
{
    uint32_t state = object->payload_bytes | (uint32_t)object->encoding << STATE_ENCODING |
                     (uint32_t)object->reference_count << STATE_REFERENCES |
                     (uint32_t)object->depth << STATE_DEPTH;
    return state | header_tag(id, object, state) << STATE_TAG;
}

static _Atomic uint32_t *slot_words(const uint8_t *slot)
{
    return (_Atomic uint32_t *)(uintptr_t)slot;
}

void de_object_write(uint8_t *slot, uint32_t id, const struct de_object *object)
{
    size_t reference_bytes = sizeof(uint32_t) * object->reference_count;
    _Atomic uint32_t *words = slot_words(slot);
    atomic_store_explicit(&words[WORD_ID], id, memory_order_relaxed);
    atomic_store_explicit(&words[WORD_CHECKSUM], object->checksum, memory_order_relaxed);
    memcpy(slot + DE_HEADER_BYTES, object->references, reference_bytes);
    memcpy(slot + DE_HEADER_BYTES + reference_bytes, object->payload, object->payload_bytes);
    atomic_store_explicit(&words[WORD_STATE], state_word(id, object), memory_order_release);
}

void de_object_erase(uint8_t *slot)
{
    atomic_store_explicit(&slot_words(slot)[WORD_STATE], 0, memory_order_release);
}

bool de_object_claimed(const uint8_t *slot)
{
    return atomic_load_explicit(&slot_words(slot)[WORD_STATE], memory_order_acquire) != 0;
}

bool de_object_read(const uint8_t *untrusted_slot, uint32_t slot_bytes, uint32_t *id,
                    struct de_object *object)
{
    /* Each word is fetched once: what is checked is what is used. */
    _Atomic uint32_t *untrusted_words = slot_words(untrusted_slot);
    uint32_t state = atomic_load_explicit(&untrusted_words[WORD_STATE], memory_order_acquire);
    *id = atomic_load_explicit(&untrusted_words[WORD_ID], memory_order_relaxed);
    object->checksum = atomic_load_explicit(&untrusted_words[WORD_CHECKSUM], memory_order_relaxed);
    object->payload_bytes = state & 0xffff;
    object->encoding = (enum de_encoding)(state >> STATE_ENCODING & 7);
    object->reference_count = state >> STATE_REFERENCES & 7;
    object->depth = state >> STATE_DEPTH & 3;
    if (!de_object_shape_valid(object) ||
        de_object_bytes(object->reference_count, object->payload_bytes) > slot_bytes)
        return false;
    memcpy(object->references, untrusted_slot + DE_HEADER_BYTES, sizeof(uint32_t) * object->reference_count);
    object->payload = untrusted_slot + de_object_bytes(object->reference_count, 0);
    return state == state_word(*id, object) &&
           (object->encoding != DE_ENCODING_SWAPPED || swapped_valid(object));
}
