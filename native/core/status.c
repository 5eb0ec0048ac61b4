/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/status.h>

const char *de_status_text(int status)
{
    switch ((enum de_status)status) {
    case DE_OK:
        return "no error";
    case DE_NO_MEMORY:
        return "out of memory";
    case DE_INVALID:
        return "an argument is out of range";
    case DE_FULL:
        return "a fixed limit is reached";
    case DE_CORRUPT:
        return "the data are damaged";
    case DE_NOT_FOUND:
        return "no such object";
    case DE_BUSY:
        return "in use by somebody else";
    case DE_SYSTEM:
        return "a system call failed";
    }
    return "unknown status";
}
