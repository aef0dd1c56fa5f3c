/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The images that go along with a VM: those of disks that are not read-only, in
 * the order of the machine's devices (struct wire_machine has the same).
 *
 * The machine is held, so no disk comes, or goes. Control thread, but for what
 * says otherwise.
 */
#ifndef QUIRE_MIGRATE_DISKS_H
#define QUIRE_MIGRATE_DISKS_H

#include "block/blockdev.h"
#include "migrate/wire.h"

struct machine;

struct migrate_disks {
	struct blockdev *list[VM_MAX_DEVICES];
	unsigned int num;
};

/* Of devices[i]; NULL: there is none that goes along. */
struct blockdev *migrate_disk_of(const struct machine *m, unsigned int i);
void migrate_disks_of(const struct machine *m, struct migrate_disks *ret);

/*
 * Ours, in the order in which the source's are numbered: after
 * wire_machine_compare().
 */
void migrate_disks_arrange(const struct migrate_disks *ours,
			   const struct wire_machine *shape,
			   const struct wire_machine *theirs,
			   struct migrate_disks *ret);

/*
 * All of them is dirty, and what is written is noted. -EBUSY: a guest was asked
 * to let one go, and may do so any time. After a failure nothing is noted.
 */
__must_check int migrate_disks_track(const struct machine *m,
				     const struct migrate_disks *disks,
				     struct err *err);
/* Any thread, while the machine is held. */
void migrate_disks_untrack(const struct migrate_disks *disks);
/* Bytes that are dirty, in whole clusters. Likewise. */
uint64_t migrate_disks_dirty(const struct migrate_disks *disks);

#endif
