/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the service manager is told, where one started the pager (sd_notify's protocol: a datagram to
 * NOTIFY_SOCKET). libsystemd is not linked: it would bring its own libraries into the one process that guests
 * wait for. */
#ifndef DIFFENGINE_PAGER_PROCESS_NOTIFY_H
#define DIFFENGINE_PAGER_PROCESS_NOTIFY_H

/** Sends `state`, such as "READY=1". Does nothing where nobody is to be told; a failure changes nothing. */
void notify_manager(const char *state);

#endif
