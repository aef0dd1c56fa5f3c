/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A part of an image on its way: read, with what is zero told apart, and
 * written.
 *
 * A struct disk_unit belongs to one thread.
 */
#ifndef QUIRE_MIGRATE_DISK_UNIT_H
#define QUIRE_MIGRATE_DISK_UNIT_H

#include "block/blockdev.h"
#include "migrate/wire.h"

#define DISK_UNIT_CLUSTERS 32u /* of 64 KiB: 2 MiB, one stream's */

/* Clusters that follow each other. */
struct disk_run {
	uint64_t offset, len; /* the last one of an image may be shorter */
	const char *data;     /* in the unit's buffer; NULL: all zero */
};

struct disk_unit {
	char *buffer; /* WIRE_UNIT_BYTES, as aligned as direct I/O may want */
	/* Of the image that is being read: known to be a hole. */
	uint64_t hole_start, hole_end;
	struct disk_run runs[DISK_UNIT_CLUSTERS];
	unsigned int num_runs;
};

/* All zero is fine for fini. -ENOMEM. */
__must_check int disk_unit_init(struct disk_unit *u);
void disk_unit_fini(struct disk_unit *u);

/*
 * Bits of another image, or newer ones, come next: what was a hole may not be
 * any more.
 */
void disk_unit_forget(struct disk_unit *u);
/* The clusters at start, a multiple of 2 MiB, whose bits are set: into runs. */
__must_check int disk_unit_read(struct disk_unit *u, const struct blockdev *dev,
				uint64_t start, uint32_t bits, struct err *err);

/* len at offset, out of the buffer or (not data) zero. */
__must_check int disk_unit_write(struct disk_unit *u,
				 const struct blockdev *dev, uint64_t offset,
				 uint64_t len, bool data, struct err *err);

#endif
