/* SPDX-License-Identifier: Apache-2.0 */
#include "device/debug_exit.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "bus/iobus.h"
#include "x86/layout.h"

#define DEBUG_EXIT_PORTS 4

struct debug_exit {
	struct iobus *pio;
	struct machine_hooks hooks;
};

static void debug_exit_read(void *dev, uint64_t offset, void *data,
			    uint32_t len)
{
	memset(data, 0, len);
}

static void debug_exit_write(void *dev, uint64_t offset, const void *data,
			     uint32_t len)
{
	struct debug_exit *d = dev;
	uint8_t code[4] = { 0 };

	/* The range is four ports only so that a wide write fits. */
	if (offset != 0)
		return;
	memcpy(code, data, MIN(len, 4u));
	d->hooks.event(d->hooks.ctx, MACHINE_DEBUG_EXIT, le32_load(code));
}

static const struct iobus_ops debug_exit_ops = {
	.name = "debug-exit",
	.read = debug_exit_read,
	.write = debug_exit_write,
};

int debug_exit_new(struct debug_exit **ret, struct iobus *pio,
		   const struct machine_hooks *hooks)
{
	struct debug_exit *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	d->pio = pio;
	d->hooks = *hooks;
	r = iobus_add(pio, PORT_DEBUG_EXIT, DEBUG_EXIT_PORTS, &debug_exit_ops,
		      d);
	if (r) {
		free(d);
		return r;
	}
	*ret = d;
	return 0;
}

void debug_exit_free(struct debug_exit *d)
{
	if (!d)
		return;
	iobus_remove(d->pio, PORT_DEBUG_EXIT, d);
	free(d);
}
