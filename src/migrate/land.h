/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory on its way in, and disks: a thread for each data stream puts what it
 * reads where it belongs, and maps memory in the second stage ahead of the
 * guest. What of disks has landed when land_finish() returns is durable.
 */
#ifndef QUIRE_MIGRATE_LAND_H
#define QUIRE_MIGRATE_LAND_H

#include "base/thread_class.h"
#include "migrate/disks.h"
#include "migrate/link.h"
#include "vm/vmm.h"

extern const struct thread_class migrate_land_thread_class;

struct land;

struct land_config {
	struct vmm_landing landing;
	struct migrate_disks disks; /* as the source numbers them */
	const int *fds;		/* in the order of streams; stay the caller's */
	struct tls *const *tls; /* of fds, each may be NULL; NULL: none */
	unsigned int num;
	uint64_t features;    /* of what comes, WIRE_FEATURE_* */
	uint64_t patience_ns; /* for anything to come, on any of them */
	/* Asked by the streams while they wait; any thread. NULL: never. */
	bool (*given_up)(void *ctx);
	/*
	 * All streams have come to the end of a round more, and all of it is in
	 * its place: called by the last of them, which fails when it does.
	 * NULL: nobody wants to know.
	 */
	int (*landed)(void *ctx, struct err *err);
	void *ctx;
};

__must_check int land_start(struct land **ret, const struct land_config *cfg,
			    struct err *err);

/*
 * Has a stream failed, or is there nothing for patience_ns, until
 * land_finish()? Then err (may be NULL) has the first. Any thread.
 */
bool land_failed(struct land *l, struct err *err);

/*
 * All streams have come to their ends: *ret is what they brought. Waits for
 * that, as long as the streams do.
 */
__must_check int land_finish(struct land *l, struct vm_landed *ret,
			     struct err *err);

/* The threads are gone, whatever they were at. NULL is fine. */
void land_free(struct land *l);

#endif
