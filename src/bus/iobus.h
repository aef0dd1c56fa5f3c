/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An address space of device registers: one instance for ports, one for MMIO.
 *
 * Threads: any vCPU thread may read or write at any time and the bus holds no
 * lock while a device runs, so devices lock themselves. Ranges are added and
 * moved under the bus's own lock (a guest may move a BAR while others run). Who
 * frees what a range belongs to removes the range, then calls iobus_quiesce().
 *
 * An access that no range claims reads as all ones and its write is dropped,
 * as on a PC. An access that starts inside a range and ends outside of it is
 * treated the same way: a device never sees offset + len beyond its size.
 */
#ifndef QUIRE_BUS_IOBUS_H
#define QUIRE_BUS_IOBUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct iobus_ops {
	const char *name;
	/* offset + len <= size of the range; len is 1, 2, 4 or 8. */
	void (*read)(void *dev, uint64_t offset, void *data, uint32_t len);
	void (*write)(void *dev, uint64_t offset, const void *data,
		      uint32_t len);
};

struct iobus;

__must_check int iobus_new(struct iobus **ret_bus);
void iobus_free(struct iobus *bus);

/* -EEXIST when it would overlap, -EINVAL on an empty or wrapping range. */
__must_check int iobus_add(struct iobus *bus, uint64_t base, uint64_t size,
			   const struct iobus_ops *ops, void *dev);
/*
 * Remove the range that starts at base and belongs to dev. Accesses that found
 * it before may still be under way.
 */
void iobus_remove(struct iobus *bus, uint64_t base, void *dev);

/*
 * Wait until every access that began before the call has ended: what was
 * removed before is then reached by nobody. Never from inside an access to this
 * bus. Returns at once where no vCPU runs.
 */
void iobus_quiesce(struct iobus *bus);

/* False when nothing claimed the access (data is then all ones / dropped). */
bool iobus_read(struct iobus *bus, uint64_t addr, void *data, uint32_t len);
bool iobus_write(struct iobus *bus, uint64_t addr, const void *data,
		 uint32_t len);

#endif
