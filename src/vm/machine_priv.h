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

#endif
