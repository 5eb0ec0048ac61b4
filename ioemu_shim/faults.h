/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file faults.h
 * How the shim hears that an empty page of a window is touched: over userfaultfd, which hears of the kernel's
 * touches, too; or, if told so, by SIGSEGV, where the kernel's fail with EFAULT.
 *
 * One thread reads userfaultfd and never waits for anything else, since whoever moves registered memory waits
 * for it; others serve the faults, as many as it takes that none waits for another's.
 */
#ifndef DIFFENGINE_IOEMU_FAULTS_H
#define DIFFENGINE_IOEMU_FAULTS_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Open userfaultfd while the process may. */
void faults_open(void);
/** Start the threads, once. @return whether windows are possible. */
bool faults_start(void);
/** Address space without frames, of which touches are heard. @param address,flags As for mmap(). MAP_FAILED.
 */
void *faults_reserve(void *address, size_t bytes, int protection, int flags);
/** Put the same in the place of frames, at once as far as others see. */
bool faults_empty(void *address, size_t bytes, int protection);
/** Whoever waits for a page of this range is to look again. */
void faults_wake(uintptr_t from, size_t bytes);
/** The process's own handler of SIGSEGV or SIGBUS, which gets what is not ours. @return whether this signal
 * is one that the shim handles; else nothing was done. */
bool faults_chain(int signal, const struct sigaction *action, struct sigaction *former);

/** What a thread would block, without the signals that its touches of windows may give: blocked, they would
 * end the process. */
sigset_t faults_blockable(const sigset_t *set);

#endif
