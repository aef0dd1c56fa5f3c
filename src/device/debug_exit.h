/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port whose write ends the VM with the value as its code. For tests and the
 * probe guest; absent unless asked for. 1, 2 or 4 bytes; reads as zero.
 * No state, no lock.
 */
#ifndef QUIRE_DEVICE_DEBUG_EXIT_H
#define QUIRE_DEVICE_DEBUG_EXIT_H

#include "base/compiler.h"
#include "device/device.h"

struct debug_exit;
struct iobus;

__must_check int debug_exit_new(struct debug_exit **ret, struct iobus *pio,
				const struct machine_hooks *hooks);
void debug_exit_free(struct debug_exit *dev);

#endif
