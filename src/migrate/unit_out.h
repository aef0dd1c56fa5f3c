/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Units of the VM on their way out on a data stream: which of their pages are
 * sent, and as what; and clusters of the images of its disks.
 *
 * A unit is read where it is, while the guest may write it: what is torn was
 * written after it was taken out of the log, so it is dirty again and comes
 * with a later round. One thread's, but for the counters.
 */
#ifndef QUIRE_MIGRATE_UNIT_OUT_H
#define QUIRE_MIGRATE_UNIT_OUT_H

#include "mem/hints.h"
#include "migrate/disk_unit.h"
#include "migrate/disks.h"
#include "migrate/stream_out.h"
#include "snapshot/unit_pages.h"

struct unit_out {
	struct stream_out stream; /* its link: the caller's to set up */
	const struct ram *ram;
	const struct mem_hints *hints;	   /* NULL: there are none */
	const struct migrate_disks *disks; /* may be none */
	struct unit_pages pages;
	struct disk_unit disk; /* with disks */
	/* Left out, since nobody needs it; of disks. */
	_Atomic uint64_t unused_bytes, disk_bytes, disk_zero_bytes;
};

/*
 * ram, hints and disks stay the caller's. All else is zero before, but for what
 * unit_out_clear() set and the link. On the thread that sends; fini is fine
 * also if it fails.
 */
__must_check int unit_out_init(struct unit_out *u, enum pack_method pack);
void unit_out_clear(struct unit_out *u);
void unit_out_fini(struct unit_out *u);

/*
 * The pages of where, a unit, whose bits are set. In the first round, without
 * faulting in what the guest never touched, those that are not zero and that
 * it needs; later all, for each was written.
 */
__must_check int unit_out_memory(struct unit_out *u,
				 const struct mem_range *where,
				 const uint64_t *bits, bool first,
				 struct err *err);

/* Bits of another image, or newer ones, come next. */
void unit_out_next_disk(struct unit_out *u);
/*
 * The clusters at start, a multiple of 2 MiB, whose bits are set. Holes and
 * zeroes are told, for nobody knows what is there.
 */
__must_check int unit_out_disk(struct unit_out *u, unsigned int disk,
			       uint64_t start, uint32_t bits, struct err *err);

#endif
