/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event counts of one thread, by perf_event_open(2): hardware counters where
 * the processor, or the hypervisor below, has them. A counter is a descriptor;
 * close(2) ends it. Any thread may read it.
 */
#ifndef QUIRE_BASE_PERF_H
#define QUIRE_BASE_PERF_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/compiler.h"

/*
 * Start counting an event (PERF_TYPE_*, PERF_COUNT_*) of thread tid (0: the
 * caller's). guest_only: only what the thread does inside a VM, as told by the
 * hardware; a KVM without hardware virtualization then counts nothing. Returns
 * the descriptor or a negative errno: -ENOENT: no such counter here; -EACCES:
 * not permitted (/proc/sys/kernel/perf_event_paranoid).
 */
__must_check int perf_open(uint32_t type, uint64_t config, pid_t tid,
			   bool guest_only);

/*
 * Count since perf_open(). Where events took turns on the hardware's counters
 * it is scaled up to the whole time. -ENODATA: it never had one.
 */
__must_check int perf_read(int fd, uint64_t *ret);

#endif
