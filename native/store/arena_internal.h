/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file arena_internal.h
 * What the arena's own files share.
 */
#ifndef DIFFENGINE_STORE_ARENA_INTERNAL_H
#define DIFFENGINE_STORE_ARENA_INTERNAL_H

#include "arena.h"

/** Where the class table has a chunk's entry, in bytes from the memory's start. */
uint64_t de_arena_table_offset(uint32_t chunk);
/** Write a chunk's entry, whose frame exists since the chunk was first used. */
void de_arena_write_class(struct de_arena *arena, uint32_t number, uint32_t class_index);

/** Make the memory, the class table long enough. @return DE_OK, DE_FULL or DE_SYSTEM. */
int de_arena_reach_memory(struct de_arena *arena, uint64_t bytes);
int de_arena_reach_table(struct de_arena *arena, uint32_t number);

/** Make one missing frame, or give whole pieces back, without any bookkeeping. */
int de_arena_populate_at(const struct de_arena *arena, uint64_t offset);
bool de_arena_punch(const struct de_arena *arena, uint64_t offset, uint64_t bytes);

/** Make a slot's missing frames, all or none. @return DE_OK, DE_FULL or DE_SYSTEM. */
int de_arena_populate_slot(struct de_arena *arena, uint32_t number, uint32_t slot);
/** Give back those of some frames that no taken slot overlaps. */
void de_arena_punch_unused(struct de_arena *arena, uint32_t number, uint32_t first, uint32_t last);

/** Set a chunk's number of warm slots. */
void de_arena_set_warm(struct de_arena *arena, struct de_chunk *chunk, uint32_t warm_free);

/** Into a list, or into the one that its free slots call for. */
void de_arena_enlist(struct de_arena *arena, uint32_t number, enum de_chunk_list list);
void de_arena_relist(struct de_arena *arena, uint32_t number);

/** Let a chunk from the pool serve a class; put an empty one into the pool. */
int de_arena_assign_chunk(struct de_arena *arena, uint32_t number, uint32_t class_index);
void de_arena_retire_chunk(struct de_arena *arena, uint32_t number);

#endif
