/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory cgroups that this process is in, its own and those above, and what
 * their limits leave. v2 (memory.max, memory.high) and v1 (limit_in_bytes).
 *
 * A limit of any of them kills: what goes beyond memory.max and cannot be
 * reclaimed ends in the cgroup's OOM killer, not in an error. memory.high does
 * not kill but slows whoever is above it to a crawl; to fill memory beyond it
 * is as good as refused, so it counts as a limit.
 *
 * The files stay open, so that asking again costs a few reads; limits may
 * change at any time. What cannot be read limits nothing.
 *
 * Threads: after memcg_open() any, at once. Source:
 * Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, proc(5) for
 * mountinfo, cgroups(7).
 */
#ifndef QUIRE_MEM_MEMCG_H
#define QUIRE_MEM_MEMCG_H

#include <stdbool.h>
#include <stdint.h>

#define MEMCG_MAX_LEVELS 32 /* deeper ones than these are left out */

struct memcg_level {
	char *dir; /* "/sys/fs/cgroup/a/b", without the root it is below */
	int max_fd, high_fd, usage_fd, stat_fd; /* -1: not there */
};

struct memcg {
	bool v2;
	unsigned int num_levels; /* own cgroup first */
	struct memcg_level levels[MEMCG_MAX_LEVELS];
};

/* The limit that leaves least. */
struct memcg_room {
	uint64_t left_bytes; /* UINT64_MAX: nothing limits */
	uint64_t limit_bytes;
	const char *dir;  /* borrowed from struct memcg; NULL without a limit */
	const char *file; /* "memory.max" */
};

/* root is put before /proc and before where cgroups are mounted: "". */
void memcg_open(struct memcg *ret, const char *root);
void memcg_close(struct memcg *cg);

/*
 * What may still be taken: limit less usage and, where that alone is less than
 * need_bytes, page cache that can be reclaimed for it.
 */
void memcg_room(const struct memcg *cg, uint64_t need_bytes,
		struct memcg_room *ret);

#endif
