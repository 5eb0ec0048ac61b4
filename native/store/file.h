/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file file.h
 * A store's memory as a sparse file.
 */
#ifndef DIFFENGINE_STORE_FILE_H
#define DIFFENGINE_STORE_FILE_H

#include <diffengine/store_memory.h>

/** Around a file, which becomes the memory's: DE_OK or DE_NO_MEMORY. */
int de_store_file_create(int fd, struct de_store_memory *memory);
/** Let go of the memory without closing its file. */
void de_store_file_release(struct de_store_memory *memory);
/** Its descriptor; -1: it is no file. */
int de_store_file_fd(const struct de_store_memory *memory);

#endif
