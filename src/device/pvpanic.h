/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The panic port, as QEMU's ISA pvpanic: the guest reads which events the port
 * takes and writes those that happened. In the DSDT it is PEVT, QEMU0001; Linux
 * drives it with pvpanic-mmio.
 *
 * Threads: vCPU threads; no state. The guest may write as often as it likes:
 * who takes the event bounds what it does about it.
 * Source: QEMU, docs/specs/pvpanic.
 */
#ifndef QUIRE_DEVICE_PVPANIC_H
#define QUIRE_DEVICE_PVPANIC_H

#include "base/compiler.h"
#include "device/device.h"

struct iobus;
struct pvpanic;

#define PVPANIC_PANICKED     1u /* and nothing in the guest deals with it */
#define PVPANIC_CRASH_LOADED 2u /* its own crash kernel takes over */
#define PVPANIC_EVENTS	     (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED)

/* A write becomes MACHINE_PANIC with the known bits, if there are any. */
__must_check int pvpanic_new(struct pvpanic **ret, struct iobus *pio,
			     const struct machine_hooks *hooks);
void pvpanic_free(struct pvpanic *p);

#endif
