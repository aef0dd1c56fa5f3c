/* SPDX-License-Identifier: Apache-2.0 */
#include "device/milestone.h"

#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "x86/layout.h"

static void milestone_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	memset(data, 0, len);
}

static void milestone_write(void *dev, uint64_t offset, const void *data,
			    uint32_t len)
{
	struct milestone *m = dev;
	uint8_t value = *(const uint8_t *)data;
	uint64_t unset = 0;

	if (value < MILESTONE_MAX)
		atomic_compare_exchange_strong(&m->at_ns[value], &unset,
					       clock_now_ns());
}

static const struct iobus_ops milestone_ops = {
	.name = "milestone",
	.read = milestone_read,
	.write = milestone_write,
};

int milestone_attach(struct milestone *m, struct iobus *pio)
{
	for (int i = 0; i < MILESTONE_MAX; i++)
		atomic_store(&m->at_ns[i], 0);
	return iobus_add(pio, PORT_MILESTONE, 1, &milestone_ops, m);
}
