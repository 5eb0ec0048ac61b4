/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file guest_calls.h
 * Put before the guest programs' sources, after threads.h: what a guest does takes its time.
 */
#ifndef DIFFENGINE_SIMULATION_GUEST_CALLS_H
#define DIFFENGINE_SIMULATION_GUEST_CALLS_H

#include "replacements.h"

#include <diffengine/machine.h>

#define de_machine_guest_read(vcpu, gfn, offset, buffer, len)                                                \
    simulation_guest_read(vcpu, gfn, offset, buffer, len)
#define de_machine_guest_write(vcpu, gfn, offset, buffer, len)                                               \
    simulation_guest_write(vcpu, gfn, offset, buffer, len)

#endif
