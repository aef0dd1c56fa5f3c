/* SPDX-License-Identifier: Apache-2.0 */
/* Monotonic time. Nanoseconds since an arbitrary start; never goes back. */
#ifndef QUIRE_BASE_CLOCK_H
#define QUIRE_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NSEC_PER_SEC  1000000000ull
#define NSEC_PER_MSEC 1000000ull

static inline uint64_t clock_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

static inline double clock_ns_to_s(uint64_t ns)
{
	return (double)ns / (double)NSEC_PER_SEC;
}

#endif
