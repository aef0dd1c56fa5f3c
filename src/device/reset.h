/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two classic ways to reset a PC: the reset control register (0xcf9, also
 * the FADT's reset register) and the keyboard controller's pulse-reset command
 * (0xfe to 0x64). There is no keyboard: status and data read as zero, "ready
 * for a command, nothing to read".
 *
 * 0xcf9 lies among the PCI host bridge's ports; the bridge forwards byte
 * writes to reset_control_write (pci_host_set_reset_hook).
 *
 * Source: Intel ICH9 data sheet, sections 13.7.4 and 13.7.5. No state, no lock.
 */
#ifndef QUIRE_DEVICE_RESET_H
#define QUIRE_DEVICE_RESET_H

#include <stdint.h>

#include "base/compiler.h"
#include "device/device.h"

struct iobus;
struct reset_ctl;

#define RESET_CPU 0x04 /* RST_CPU in 0xcf9: reset now */

__must_check int reset_ctl_new(struct reset_ctl **ret, struct iobus *pio,
			       const struct machine_hooks *hooks);
void reset_ctl_free(struct reset_ctl *ctl);

/* The guest wrote value to 0xcf9. */
void reset_control_write(struct reset_ctl *ctl, uint8_t value);

#endif
