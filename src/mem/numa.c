/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/numa.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/kvlist.h"
#include "base/numlist.h"

/* Not in every numaif.h; Linux 5.15. */
#define MPOL_PREFERRED_MANY_NODES 5

#define NODE_DIR  "/sys/devices/system/node/node%d"
#define POOL_DIR  NODE_DIR "/hugepages/hugepages-%llukB"
#define LONG_BITS (8 * sizeof(unsigned long))

/* The kernel takes the number of bits and one more. */
#define MAX_NODE_ARG (NUMA_MAX_NODES + 1)

const char *const numa_policy_names[5] = {
	[NUMA_NONE] = "none",
	[NUMA_BIND] = "bind",
	[NUMA_INTERLEAVE] = "interleave",
	[NUMA_PREFERRED] = "preferred",
	[NUMA_SPLIT] = "split",
};

void numa_nodes_add(struct numa_nodes *nodes, unsigned int node)
{
	BUG_ON(node >= NUMA_MAX_NODES);
	nodes->bits[node / LONG_BITS] |= 1ul << (node % LONG_BITS);
}

bool numa_nodes_has(const struct numa_nodes *nodes, unsigned int node)
{
	return node < NUMA_MAX_NODES &&
	       (nodes->bits[node / LONG_BITS] >> (node % LONG_BITS) & 1);
}

int numa_nodes_next(const struct numa_nodes *nodes, unsigned int node)
{
	for (; node < NUMA_MAX_NODES; node++) {
		if (numa_nodes_has(nodes, node))
			return (int)node;
	}
	return -1;
}

unsigned int numa_nodes_count(const struct numa_nodes *nodes)
{
	unsigned int count = 0;

	for (size_t i = 0; i < ARRAY_SIZE(nodes->bits); i++)
		count += (unsigned int)__builtin_popcountl(nodes->bits[i]);
	return count;
}

const char *numa_nodes_format(const struct numa_nodes *nodes, char *buf,
			      size_t size)
{
	int node = numa_nodes_next(nodes, 0);
	size_t used = 0;

	snprintf(buf, size, "none");
	while (node >= 0 && used < size) {
		int last = node;

		while (numa_nodes_has(nodes, (unsigned int)last + 1))
			last++;
		used += (size_t)snprintf(buf + used, size - used, "%s%d",
					 used ? "," : "", node);
		if (last > node && used < size)
			used += (size_t)snprintf(buf + used, size - used, "-%d",
						 last);
		node = numa_nodes_next(nodes, (unsigned int)last + 1);
	}
	return buf;
}

/* "0-1+4" into nodes; '+' because ',' ends the value of a key. */
static int parse_nodes(struct numa_nodes *nodes, const char *text,
		       struct err *err)
{
	const char *p = text;
	unsigned int first, last;

	while (numlist_next(&p, &first, &last)) {
		if (last >= NUMA_MAX_NODES)
			return err_set(err, EINVAL, "node numbers end at %d",
				       NUMA_MAX_NODES - 1);
		while (first <= last)
			numa_nodes_add(nodes, first++);
		if (!*p)
			return 0;
		if (*p++ != '+')
			break;
	}
	return err_set(err, EINVAL, "'%s' names no nodes (write 0, 0-1 or 0+2)",
		       text);
}

int numa_config_parse(struct numa_config *ret, const char *text,
		      struct err *err)
{
	size_t len = strcspn(text, ":");
	struct numa_config cfg = { .has_nodes = text[len] == ':' };
	char name[16];
	int v = 0, r;

	snprintf(name, sizeof(name), "%.*s", (int)MIN(len, sizeof(name)), text);
	r = kvlist_enum(name, numa_policy_names, ARRAY_SIZE(numa_policy_names),
			&v, err);
	if (r)
		return r;
	cfg.policy = (enum numa_policy)v;
	if (cfg.has_nodes && cfg.policy == NUMA_NONE)
		return err_set(err, EINVAL, "none takes no nodes");
	if (cfg.has_nodes) {
		r = parse_nodes(&cfg.nodes, text + len + 1, err);
		if (r)
			return r;
	}
	*ret = cfg;
	return 0;
}

static int refuse_node(unsigned int node, const struct numa_nodes *allowed,
		       struct err *err)
{
	long long bytes = numa_node_size64((int)node, NULL);
	char list[64];

	numa_nodes_format(allowed, list, sizeof(list));
	if (bytes < 0)
		return err_set(err, ENODEV,
			       "--memory numa=: this host has no node %u; "
			       "there is memory to use on: %s",
			       node, list);
	if (bytes == 0)
		return err_set(err, ENODEV,
			       "--memory numa=: node %u has no memory; there "
			       "is memory to use on: %s",
			       node, list);
	return err_set(err, EACCES,
		       "--memory numa=: this process may not use memory of "
		       "node %u (its cpuset allows: %s)",
		       node, list);
}

int numa_resolve(const struct numa_config *cfg, struct numa_nodes *ret,
		 struct err *err)
{
	struct numa_nodes allowed = { { 0 } };

	if (cfg->policy == NUMA_NONE) {
		*ret = allowed;
		return 0;
	}
	if (numa_available() < 0 ||
	    get_mempolicy(NULL, allowed.bits, MAX_NODE_ARG, NULL,
			  MPOL_F_MEMS_ALLOWED) ||
	    !numa_nodes_count(&allowed))
		return err_set(err, ENOTSUP,
			       "--memory numa=%s: this kernel has no NUMA "
			       "policies; leave numa= out",
			       numa_policy_names[cfg->policy]);
	if (!cfg->has_nodes) {
		*ret = allowed;
		return 0;
	}
	for (int node = numa_nodes_next(&cfg->nodes, 0); node >= 0;
	     node = numa_nodes_next(&cfg->nodes, (unsigned int)node + 1)) {
		if (!numa_nodes_has(&allowed, (unsigned int)node))
			return refuse_node((unsigned int)node, &allowed, err);
	}
	*ret = cfg->nodes;
	return 0;
}

static int policy_mode(enum numa_policy policy, unsigned int num_nodes)
{
	switch (policy) {
	case NUMA_BIND:
	case NUMA_SPLIT:
		return MPOL_BIND;
	case NUMA_INTERLEAVE:
		return MPOL_INTERLEAVE;
	case NUMA_PREFERRED:
		return num_nodes > 1 ? MPOL_PREFERRED_MANY_NODES
				     : MPOL_PREFERRED;
	case NUMA_NONE:
		break;
	}
	return MPOL_DEFAULT;
}

int numa_apply(void *hva, uint64_t len, enum numa_policy policy,
	       const struct numa_nodes *nodes, struct err *err)
{
	unsigned int num = numa_nodes_count(nodes);
	char list[64];

	if (policy == NUMA_NONE)
		return 0;
	if (!mbind(hva, len, policy_mode(policy, num), nodes->bits,
		   MAX_NODE_ARG, 0))
		return 0;
	if (errno == EINVAL && policy == NUMA_PREFERRED && num > 1)
		return err_set(err, ENOTSUP,
			       "--memory numa=preferred: this kernel prefers "
			       "one node only (several: Linux 5.15)");
	return err_errno(err, errno, "--memory numa=%s: mbind to node %s",
			 numa_policy_names[policy],
			 numa_nodes_format(nodes, list, sizeof(list)));
}

/* 0 for a pool that is not there. */
static uint64_t pool_number(int node, uint64_t page_bytes, const char *file)
{
	uint64_t value = 0;
	char path[160];

	snprintf(path, sizeof(path), POOL_DIR "/%s", node,
		 (unsigned long long)(page_bytes / KIB), file);
	return io_read_u64(path, &value) ? 0 : value;
}

int numa_check_pool(const struct numa_nodes *nodes, uint64_t page_bytes,
		    uint64_t bytes, struct err *err)
{
	uint64_t need = div_round_up(bytes, page_bytes), have = 0, total;
	int first = numa_nodes_next(nodes, 0);
	char list[64];

	for (int node = first; node >= 0;
	     node = numa_nodes_next(nodes, (unsigned int)node + 1))
		have += pool_number(node, page_bytes, "free_hugepages");
	if (need <= have)
		return 0;
	total = pool_number(first, page_bytes, "nr_hugepages");
	return err_set(err, ENOMEM,
		       "%llu free huge pages of %llu MiB are needed on node "
		       "%s, which has %llu; as root: echo %llu > " POOL_DIR
		       "/nr_hugepages",
		       (unsigned long long)need,
		       (unsigned long long)(page_bytes / MIB),
		       numa_nodes_format(nodes, list, sizeof(list)),
		       (unsigned long long)have,
		       (unsigned long long)(total + need - have), first,
		       (unsigned long long)(page_bytes / KIB));
}

/* The thread's CPUs of node. */
static int node_cpus(const struct cpus_mask *allowed, int node,
		     struct cpus_mask *ret)
{
	char path[64], list[4096];
	ssize_t len;

	if (node < 0)
		return -ENOENT;
	snprintf(path, sizeof(path), NODE_DIR "/cpulist", node);
	len = io_read_text(path, list, sizeof(list));
	return len < 0 ? (int)len : cpus_mask_pick(ret, allowed, list);
}

void numa_bind_thread(struct numa_binding *binding, int node)
{
	struct cpus_mask mask;

	if (!binding->before.set &&
	    (node < 0 || cpus_mask_get(&binding->before)))
		return;
	if (node_cpus(&binding->before, node, &mask)) {
		/* Not to stay with the node of the last time. */
		(void)!cpus_mask_apply(&binding->before);
		return;
	}
	(void)!cpus_mask_apply(&mask);
	cpus_mask_free(&mask);
}

void numa_unbind_thread(struct numa_binding *binding)
{
	if (binding->before.set)
		(void)!cpus_mask_apply(&binding->before);
	cpus_mask_free(&binding->before);
}
