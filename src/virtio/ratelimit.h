/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token buckets: so many bytes, and so many operations, in a time.
 *
 * A bucket holds up to size tokens and fills from empty to full in refill_ms; a
 * one-time burst is spent first and never comes back. An operation may start
 * while there is a token in each bucket, and may take more than there are: the
 * debt is paid before the next one. So the long-term rate is exact, and the
 * size of what comes (a frame from the network) need not be known before.
 *
 * Pure bookkeeping on times that the caller gives. Any thread: a lock inside.
 */
#ifndef QUIRE_VIRTIO_RATELIMIT_H
#define QUIRE_VIRTIO_RATELIMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define RATELIMIT_MAX_REFILL_MS (24ull * 3600 * 1000)

/* size 0: no limit. */
struct ratelimit_bucket_config {
	uint64_t size;
	uint64_t one_time_burst;
	uint64_t refill_ms;
};

struct ratelimit_config {
	struct ratelimit_bucket_config bw;  /* tokens are bytes */
	struct ratelimit_bucket_config ops; /* tokens are operations */
};

struct ratelimit_bucket {
	uint64_t size, burst, refill_ns;
	/* Tokens as the time they take to come; refill_ns: full, < 0: debt. */
	int64_t level_ns;
	uint64_t rest; /* of the division by size, for the next take */
};

struct ratelimit {
	bool on;
	pthread_mutex_t lock; /* the rest */
	uint64_t last_ns;
	struct ratelimit_bucket bw, ops;
};

/*
 * Does size go with refill_ms, within bounds? name ("bw") is for the message:
 * "bw_size= wants bw_refill_time=".
 */
__must_check int
ratelimit_check_bucket(const struct ratelimit_bucket_config *cfg,
		       const char *name, struct err *err);

/* Full buckets at now_ns. cfg has been checked. */
void ratelimit_init(struct ratelimit *r, const struct ratelimit_config *cfg,
		    uint64_t now_ns);
void ratelimit_fini(struct ratelimit *r);

/* Nanoseconds until the next operation may start; 0: now. */
uint64_t ratelimit_wait(struct ratelimit *r, uint64_t now_ns);

/* One operation of so many bytes was started. */
void ratelimit_take(struct ratelimit *r, uint64_t bytes, uint64_t now_ns);

#endif
