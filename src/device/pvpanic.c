/* SPDX-License-Identifier: Apache-2.0 */
#include "device/pvpanic.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bus/iobus.h"
#include "x86/layout.h"

struct pvpanic {
	struct iobus *pio;
	struct machine_hooks hooks;
};

static void pvpanic_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	memset(data, PVPANIC_EVENTS, len); /* len is 1: there is one port */
}

static void pvpanic_write(void *dev, uint64_t offset, const void *data,
			  uint32_t len)
{
	struct pvpanic *p = dev;
	unsigned int events = *(const uint8_t *)data & PVPANIC_EVENTS;

	if (events)
		p->hooks.event(p->hooks.ctx, MACHINE_PANIC, events);
}

static const struct iobus_ops pvpanic_ops = {
	.name = "pvpanic",
	.read = pvpanic_read,
	.write = pvpanic_write,
};

int pvpanic_new(struct pvpanic **ret, struct iobus *pio,
		const struct machine_hooks *hooks)
{
	struct pvpanic *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->pio = pio;
	p->hooks = *hooks;
	r = iobus_add(pio, PORT_PVPANIC, 1, &pvpanic_ops, p);
	if (r) {
		free(p);
		return r;
	}
	*ret = p;
	return 0;
}

void pvpanic_free(struct pvpanic *p)
{
	if (!p)
		return;
	iobus_remove(p->pio, PORT_PVPANIC, p);
	free(p);
}
