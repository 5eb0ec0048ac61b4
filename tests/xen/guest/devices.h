/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file devices.h
 * Regions' pages through a disk and a network interface, so that devices read and write pages that no CPU of
 * the guest touches. Functions return 0 or a negative errno value.
 */
#ifndef GUEST_DEVICES_H
#define GUEST_DEVICES_H

#include "regions.h"

/** Loads the drivers in the initramfs. One that finds no device is no error. */
int load_modules(void);

/** Writes the region's pages to a disk, from page 0 on, past the kernel's cache. counts->writes: pages. */
int disk_write(const char *path, int region, struct access_counts *counts);
/**
 * Reads as many pages as @p region has from the disk into the pages of @p into, which has as many or more,
 * and compares them with what @p region must hold. What @p into must hold is lost: free it.
 */
int disk_read(const char *path, int region, int into, struct access_counts *counts);
/** The same without the comparison, so no CPU of the guest touches a page. */
int disk_fetch(const char *path, int region, int into);
/** Compares the pages of @p into with what @p region must hold. */
void compare_regions(int region, int into, struct access_counts *counts);

/**
 * Sends the region's pages to UDP port 7 of @p peer, which is expected to send them back, and compares what
 * arrived with what the region must hold. It is put into @p into, as by disk_read(). eth0 gets the address @p
 * own of a /24 net. -ETIMEDOUT: nothing came back for a minute, in spite of sending again.
 */
int net_echo(const char *own, const char *peer, int region, int into, struct access_counts *counts);

#endif
