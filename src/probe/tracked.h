/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A probe guest with dirty tracking prepared, for the bench and the test of it.
 * Threads as in probe/probe.h and mem/dirty.h.
 */
#ifndef QUIRE_PROBE_TRACKED_H
#define QUIRE_PROBE_TRACKED_H

#include "mem/dirty.h"
#include "probe/probe.h"

struct probe_tracked {
	struct probe *probe;
	struct dirty_tracker *tracker;
	const struct dirty_config *cfg; /* while it is built */
};

/* cfg's hooks are taken: vm_setup, on_exit and ctx must be NULL. */
__must_check int probe_tracked_init(struct probe_tracked *pt,
				    const struct probe_config *cfg,
				    const struct dirty_config *dirty,
				    struct err *err);
/* Stops whatever runs. Fine on a zeroed struct. */
void probe_tracked_fini(struct probe_tracked *pt);

/* dirty_start() for the probe's memory. */
__must_check int probe_tracked_start(struct probe_tracked *pt, struct err *err);

#endif
