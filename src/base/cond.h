/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for a condition until a time of clock.h's. Condition variables need
 * no clock of their own for it: pthread_cond_clockwait(3) names it.
 */
#ifndef QUIRE_BASE_COND_H
#define QUIRE_BASE_COND_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/clock.h"

/*
 * With the lock, which is held again on return. False: ns has come. True: it
 * was woken, perhaps for nothing.
 */
static inline bool cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock,
				   uint64_t ns)
{
	const struct timespec until = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	return pthread_cond_clockwait(cond, lock, CLOCK_MONOTONIC, &until) !=
	       ETIMEDOUT;
}

#endif
