/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages a machine's memory got new content in since certain moments, for
 * snapshots that hold just those.
 *
 * A point is the moment of a snapshot, known by its id, and has a bit for each
 * page that was written between it and the next point. KVM and the accessors
 * (mem/dirty.h) log into a map of their own; vm_track_collect() moves that into
 * the newest point. So an older point still counts after a newer one was made,
 * and a snapshot that failed after all is no loss.
 *
 * Control thread, with the machine standing still unless a function says
 * otherwise. A zeroed struct with ram and dirty set is one without points.
 */
#ifndef QUIRE_VM_TRACK_H
#define QUIRE_VM_TRACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/dirty.h"
#include "mem/ram.h"

#define VM_TRACK_POINTS	  4u
#define VM_TRACK_ID_CHARS 36 /* of a UUID */

struct vm_track_point {
	char id[VM_TRACK_ID_CHARS + 1];
	uint64_t *bits; /* of all regions, each begins with a word */
};

struct vm_track {
	struct ram *ram;
	struct dirty_tracker *dirty; /* NULL: this KVM has no log */
	unsigned int num;
	struct vm_track_point points[VM_TRACK_POINTS]; /* oldest first */
};

/* Any time. */
bool vm_track_has(const struct vm_track *t, const char *id);

/*
 * Have everything that was written so far in the newest point. Nothing to do
 * without points.
 */
__must_check int vm_track_collect(struct vm_track *t, struct err *err);

/*
 * Which pages were written since the point id, as of the last collect: a bit
 * each, regions one after the other, each beginning with a word
 * (ram_region_words()). The caller frees. -ENOENT: no such point.
 */
__must_check int vm_track_since(const struct vm_track *t, const char *id,
				uint64_t **ret, struct err *err);

/*
 * This moment is a point, too; tracking begins with the first. With too many
 * the oldest goes. Everything was collected. -ENOTSUP: no log. On failure the
 * points are as before, but for the oldest.
 */
__must_check int vm_track_add(struct vm_track *t, const char *id,
			      struct err *err);

/*
 * Forget the point, if it is there; what was written after it counts for the
 * one before. Without any, tracking ends. Any time.
 */
void vm_track_drop(struct vm_track *t, const char *id);

/* Forget all; tracking ends. Any time. */
void vm_track_end(struct vm_track *t);

/* The machine is gone, and with it what it logged. */
void vm_track_fini(struct vm_track *t);

#endif
