/* SPDX-License-Identifier: Apache-2.0 */
#include "device/reset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bus/iobus.h"
#include "x86/layout.h"

#define I8042_DATA	  PORT_I8042
#define I8042_COMMAND	  (PORT_I8042 + 4)
#define I8042_PULSE_RESET 0xfe /* pulse output line 0, wired to RESET */

struct reset_ctl {
	struct iobus *pio;
	struct machine_hooks hooks;
};

static void i8042_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	memset(data, 0, len);
}

static void i8042_data_write(void *dev, uint64_t offset, const void *data,
			     uint32_t len)
{
	/* Meant for a keyboard, and there is none. */
}

static void i8042_command_write(void *dev, uint64_t offset, const void *data,
				uint32_t len)
{
	struct reset_ctl *ctl = dev;

	if (*(const uint8_t *)data == I8042_PULSE_RESET)
		ctl->hooks.event(ctl->hooks.ctx, MACHINE_RESET, 0);
}

static const struct iobus_ops i8042_data_ops = {
	.name = "i8042-data",
	.read = i8042_read,
	.write = i8042_data_write,
};

static const struct iobus_ops i8042_command_ops = {
	.name = "i8042-command",
	.read = i8042_read,
	.write = i8042_command_write,
};

int reset_ctl_new(struct reset_ctl **ret, struct iobus *pio,
		  const struct machine_hooks *hooks)
{
	struct reset_ctl *ctl = calloc(1, sizeof(*ctl));
	int r;

	if (!ctl)
		return -ENOMEM;
	ctl->pio = pio;
	ctl->hooks = *hooks;
	r = iobus_add(pio, I8042_DATA, 1, &i8042_data_ops, ctl);
	if (!r)
		r = iobus_add(pio, I8042_COMMAND, 1, &i8042_command_ops, ctl);
	if (r) {
		reset_ctl_free(ctl);
		return r;
	}
	*ret = ctl;
	return 0;
}

void reset_ctl_free(struct reset_ctl *ctl)
{
	if (!ctl)
		return;
	/* On a half-built object the bus ignores what is not there. */
	iobus_remove(ctl->pio, I8042_COMMAND, ctl);
	iobus_remove(ctl->pio, I8042_DATA, ctl);
	free(ctl);
}

void reset_control_write(struct reset_ctl *ctl, uint8_t value)
{
	/*
	 * Hardware resets on the bit's change from 0 to 1. It is never 1 for
	 * longer than that: the reset clears it.
	 */
	if (value & RESET_CPU)
		ctl->hooks.event(ctl->hooks.ctx, MACHINE_RESET, 0);
}
