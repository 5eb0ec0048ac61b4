/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file status.h
 * The one error type of the C code. Functions that can fail return `int`: DE_OK or one of the negative
 * values.
 */
#ifndef DIFFENGINE_STATUS_H
#define DIFFENGINE_STATUS_H

enum de_status {
    DE_OK = 0,
    DE_NO_MEMORY = -1, /**< allocation failed; nothing changed */
    DE_INVALID = -2,   /**< an argument is outside its documented range; nothing changed */
    DE_FULL = -3,      /**< a fixed limit (table, store, output buffer) is reached; nothing changed */
    DE_CORRUPT = -4,   /**< untrusted bytes do not decode, or a checksum differs */
    DE_NOT_FOUND = -5, /**< no such object */
    DE_BUSY = -6,      /**< in use by somebody else; may work later */
    DE_SYSTEM = -7,    /**< a system call failed; errno says which way */
};

/** A short English text for @p status, never NULL. Any thread. */
const char *de_status_text(int status);

#endif
