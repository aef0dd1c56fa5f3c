/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A budget of bytes per second that several threads draw on, a bit at a time:
 * what each has used puts off when the next may go on, whosever that is. What
 * was left unused is not made up for. Any thread.
 */
#ifndef QUIRE_MIGRATE_PACE_H
#define QUIRE_MIGRATE_PACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct pace {
	uint64_t bytes_per_s; /* 0: no limit */
	_Atomic bool released;
	pthread_mutex_t lock; /* the two below */
	pthread_cond_t changed;
	uint64_t free_at_ns;
};

void pace_init(struct pace *p, uint64_t bytes_per_s);
void pace_fini(struct pace *p);

/* There is no limit any more, and nobody waits. */
void pace_release(struct pace *p);

/* So many were used. Returns when (clock_now_ns()) to go on; 0: now. */
__must_check uint64_t pace_use(struct pace *p, uint64_t bytes);
/* Until then, or a release. True: it was long enough. */
__must_check bool pace_wait_until(struct pace *p, uint64_t ns);

#endif
