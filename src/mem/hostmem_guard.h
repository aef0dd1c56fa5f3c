/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asked before each chunk while guest RAM is filled: is there memory for it?
 *
 * The kernel's answer to a populate beyond a cgroup's limit or beyond the
 * host's memory is the OOM killer, here or at a neighbour, so somebody has to
 * stop before: memory shrinks, limits are lowered and others grow while
 * gigabytes are filled. The guard looks at the memory cgroups, at available
 * memory, and for bound RAM (numa=bind, split) at the node, and keeps
 * hostmem_reserve() for others, in cgroups 8 MiB.
 *
 * It counts what it granted and is not done yet, so that workers that ask at
 * once are not promised the same bytes; when those stand in the way, a worker
 * waits for them, as they may turn out to be counted twice. It refuses only
 * what would not fit alone. A peer process is not seen before it has taken
 * memory.
 *
 * Hugetlb RAM is granted without a look: its pages are reserved by mmap(2) and
 * no cgroup's memory. A few microseconds per question, under a lock: cgroups
 * are read each time, the host and its nodes anew once an eighth of what they
 * had left is granted.
 *
 * Threads: take and done from any, at once.
 */
#ifndef QUIRE_MEM_HOSTMEM_GUARD_H
#define QUIRE_MEM_HOSTMEM_GUARD_H

#include <stdint.h>

#include "base/err.h"
#include "mem/ram.h"

struct hostmem_guard;

/*
 * For ram, which stays the caller's and outlives the guard. root is put before
 * /proc and /sys: normally "". -ENOMEM: out of memory.
 */
__must_check int hostmem_guard_new(struct hostmem_guard **ret,
				   const struct ram *ram, const char *root);
/* NULL is fine. */
void hostmem_guard_free(struct hostmem_guard *guard);

/*
 * May [gpa, gpa + bytes) be filled now? 0: yes, and hostmem_guard_done() for
 * the same bytes follows, filled or not. -ENOMEM: no; err says what is short
 * and how much of it is left, to be put behind the name of the range. A range
 * that is there already may be asked for as well, and counts as if it were not.
 */
__must_check int hostmem_guard_take(struct hostmem_guard *guard, struct gpa gpa,
				    uint64_t bytes, struct err *err);
void hostmem_guard_done(struct hostmem_guard *guard, uint64_t bytes);

#endif
