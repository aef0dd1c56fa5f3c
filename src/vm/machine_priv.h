/* SPDX-License-Identifier: Apache-2.0 */
/* Between machine.c and the files that hold parts of a machine's life. */
#ifndef QUIRE_VM_MACHINE_PRIV_H
#define QUIRE_VM_MACHINE_PRIV_H

#include "vm/machine.h"

/* devices.c: those of the configuration, while building. */
__must_check int machine_build_devices(struct machine *m, struct err *err);
void machine_free_devices(struct machine *m);
/* The guest let the device in slot go; ctx is the machine. */
void machine_device_ejected(void *ctx, unsigned int slot);

/*
 * machine.c: not started, and paused from the beginning, at this instant. Its
 * clocks go on from now on the host's; kvmclock from kvmclock_ns.
 */
void machine_begin_paused(struct machine *m, bool has_kvmclock,
			  uint64_t kvmclock_ns);

#endif
