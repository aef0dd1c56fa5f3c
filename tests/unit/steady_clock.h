/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A monotonic clock for a whole test program, in the place of the C library's,
 * that does not notice when the machine stands still: between two looks at it
 * no more than STEADY_STEP_NS go by. So what counts the seconds of a silent
 * peer counts those in which it could have spoken.
 *
 * Of use where somebody looks all the time, and sleeps for spans. Waiting until
 * an instant of the kernel's clock is over too early once this one is behind.
 */
#ifndef QUIRE_TESTS_STEADY_CLOCK_H
#define QUIRE_TESTS_STEADY_CLOCK_H

#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define STEADY_STEP_NS (NSEC_PER_SEC / 4)

/* Sanitizers look at the clock as well, where they must not be called. */
#ifdef __clang__
#define STEADY_PLAIN __attribute__((disable_sanitizer_instrumentation))
#else
#define STEADY_PLAIN
#endif

static struct {
	int lock;
	uint64_t seen_ns, still_ns;
} steady;

STEADY_PLAIN static uint64_t steady_ns(uint64_t ns)
{
	/* Who resumes after a pause has no look in between. */
	while (__atomic_exchange_n(&steady.lock, 1, __ATOMIC_ACQUIRE))
		syscall(SYS_sched_yield);
	if (steady.seen_ns && ns > steady.seen_ns + STEADY_STEP_NS)
		steady.still_ns += ns - steady.seen_ns - STEADY_STEP_NS;
	if (ns > steady.seen_ns)
		steady.seen_ns = ns;
	ns -= steady.still_ns;
	__atomic_store_n(&steady.lock, 0, __ATOMIC_RELEASE);
	return ns;
}

STEADY_PLAIN int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int r = (int)syscall(SYS_clock_gettime, clock, ts);
	uint64_t ns;

	if (r || clock != CLOCK_MONOTONIC)
		return r;
	ns = steady_ns((uint64_t)ts->tv_sec * NSEC_PER_SEC +
		       (uint64_t)ts->tv_nsec);
	ts->tv_sec = (time_t)(ns / NSEC_PER_SEC);
	ts->tv_nsec = (long)(ns % NSEC_PER_SEC);
	return 0;
}

#endif
