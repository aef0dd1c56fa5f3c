/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which NUMA nodes guest RAM comes from, and threads that fill it from there.
 *
 * A policy is set on the mapping (mbind(2)) before anything populates it, so it
 * holds for population, guest faults and device writes alike, whichever thread
 * they happen on; for a memfd it belongs to the file. An explicit policy also
 * takes the range out of automatic NUMA balancing, which unmaps pages to see
 * who uses them and thereby zaps the second stage: memory under any policy but
 * none stays populated.
 *
 * Page tables, the host's and KVM's, are not guest RAM: they come from the node
 * of the thread that makes them. Hence numa_bind_thread().
 *
 * Threads: any; the host is asked each time. Source:
 * Documentation/admin-guide/mm/numa_memory_policy.rst, mbind(2).
 */
#ifndef QUIRE_MEM_NUMA_H
#define QUIRE_MEM_NUMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cpus.h"
#include "base/err.h"

enum numa_policy {
	NUMA_NONE,	 /* what the process has, by default the local node */
	NUMA_BIND,	 /* from these nodes only */
	NUMA_INTERLEAVE, /* page by page from each in turn */
	NUMA_PREFERRED,	 /* from these nodes while they have any */
	NUMA_SPLIT,	 /* an equal part of RAM bound to each, in order */
};

extern const char *const numa_policy_names[5];

/* Above what any x86 kernel is built for. */
#define NUMA_MAX_NODES 1024

struct numa_nodes {
	unsigned long bits[NUMA_MAX_NODES / (8 * sizeof(unsigned long))];
};

struct numa_config {
	enum numa_policy policy;
	bool has_nodes; /* otherwise all that this process may use */
	struct numa_nodes nodes;
};

/* "bind", "split:0-1", "interleave:0+2". *ret is untouched on failure. */
__must_check int numa_config_parse(struct numa_config *ret, const char *text,
				   struct err *err);

/*
 * The nodes that cfg means on this host. Refuses nodes that are not there, have
 * no memory or are closed to this process, and hosts without NUMA policies;
 * with NUMA_NONE it asks nothing and *ret is empty.
 */
__must_check int numa_resolve(const struct numa_config *cfg,
			      struct numa_nodes *ret, struct err *err);

/* Set policy on [hva, hva + len): whole pages of one mapping or several. */
__must_check int numa_apply(void *hva, uint64_t len, enum numa_policy policy,
			    const struct numa_nodes *nodes, struct err *err);

/*
 * Do these nodes together have bytes in free hugetlb pages of page_bytes? The
 * reservation that mmap(2) makes counts over all nodes, so that a bound page
 * may be missing later, when that is a SIGBUS.
 */
__must_check int numa_check_pool(const struct numa_nodes *nodes,
				 uint64_t page_bytes, uint64_t bytes,
				 struct err *err);

void numa_nodes_add(struct numa_nodes *nodes, unsigned int node);
bool numa_nodes_has(const struct numa_nodes *nodes, unsigned int node);
unsigned int numa_nodes_count(const struct numa_nodes *nodes);
/* The first member from node on, or -1. */
int numa_nodes_next(const struct numa_nodes *nodes, unsigned int node);
/* "0-1,4". Returns buf. */
const char *numa_nodes_format(const struct numa_nodes *nodes, char *buf,
			      size_t size);

/* What a thread was allowed before it was bound. Zeroed: it is not bound. */
struct numa_binding {
	struct cpus_mask before;
};

/*
 * Keep the calling thread on those CPUs of node that it may use. Where there
 * are none, or node is -1, it may run as before. Again, for another node: the
 * CPUs are those allowed before the first time. A hint: nothing fails.
 */
void numa_bind_thread(struct numa_binding *binding, int node);

/* Let the calling thread run where it could before. Fine when not bound. */
void numa_unbind_thread(struct numa_binding *binding);

#endif
