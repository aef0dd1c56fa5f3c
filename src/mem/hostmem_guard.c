/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/hostmem_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "mem/hostmem.h"
#include "mem/memcg.h"

/* Half of what hostmem_check() wants beyond the guest: page tables grow. */
#define CGROUP_RESERVE (8 * MIB)

/* Of a longer name the end is shown. */
#define GROUP_NAME_MAX 200

struct guard_node {
	int node;
	int fd; /* its meminfo, or -1 */
};

struct hostmem_guard {
	const struct ram *ram;
	bool unlimited; /* hugetlb */

	pthread_mutex_t lock;
	pthread_cond_t done;
	uint64_t in_flight; /* granted and not done; under lock */
	/*
	 * What may be granted without another look at the host and at the node
	 * of nodes[i - 1] (0: at no certain one); under lock.
	 */
	uint64_t credit[RAM_MAX_PARTS + 1];

	int meminfo_fd; /* or -1 */
	struct memcg cg;
	unsigned int num_nodes;
	struct guard_node nodes[RAM_MAX_PARTS];
};

/*
 * meminfo costs tens of microseconds, limits of cgroups a few. The former is
 * taken for true until an eighth of what it showed is granted: that far from
 * the end, others would have to take the rest within some chunks. Limits change
 * by a write, so they are read each time.
 */
#define CREDIT_SHIFT 3

/* What is left where it is least, and for the message the rest. */
struct room {
	uint64_t left;
	char text[400];
};

static int open_below(const char *root, const char *path)
{
	char full[PATH_MAX];

	if (snprintf(full, sizeof(full), "%s%s", root, path) >= PATH_MAX)
		return -1;
	return open(full, O_RDONLY | O_CLOEXEC);
}

static void open_nodes(struct hostmem_guard *guard, const char *root)
{
	const struct numa_nodes *bound = &guard->ram->bound;

	for (int node = numa_nodes_next(bound, 0);
	     node >= 0 && guard->num_nodes < RAM_MAX_PARTS;
	     node = numa_nodes_next(bound, (unsigned int)node + 1)) {
		char path[64];

		snprintf(path, sizeof(path),
			 "/sys/devices/system/node/node%d/meminfo", node);
		guard->nodes[guard->num_nodes++] = (struct guard_node){
			.node = node,
			.fd = open_below(root, path),
		};
	}
}

int hostmem_guard_new(struct hostmem_guard **ret, const struct ram *ram,
		      const char *root)
{
	struct hostmem_guard *guard = calloc(1, sizeof(*guard));

	if (!guard)
		return -ENOMEM;
	guard->ram = ram;
	guard->unlimited = ram->page == RAM_PAGE_2M || ram->page == RAM_PAGE_1G;
	pthread_mutex_init(&guard->lock, NULL);
	pthread_cond_init(&guard->done, NULL);
	guard->meminfo_fd = open_below(root, "/proc/meminfo");
	memcg_open(&guard->cg, root);
	open_nodes(guard, root);
	*ret = guard;
	return 0;
}

void hostmem_guard_free(struct hostmem_guard *guard)
{
	if (!guard)
		return;
	for (unsigned int i = 0; i < guard->num_nodes; i++)
		close_fd(&guard->nodes[i].fd);
	memcg_close(&guard->cg);
	close_fd(&guard->meminfo_fd);
	pthread_cond_destroy(&guard->done);
	pthread_mutex_destroy(&guard->lock);
	free(guard);
}

static uint64_t beyond(uint64_t bytes, uint64_t reserve)
{
	return bytes > reserve ? bytes - reserve : 0;
}

static void look_at_host(const struct hostmem_guard *guard, struct room *room)
{
	uint64_t total = 0, available, reserve, left;
	char text[4096];

	if (guard->meminfo_fd < 0 ||
	    io_pread_text(guard->meminfo_fd, text, sizeof(text)) < 0 ||
	    !hostmem_field(text, "MemAvailable:", &available))
		return;
	(void)hostmem_field(text, "MemTotal:", &total);
	reserve = hostmem_reserve(total);
	left = beyond(available, reserve);
	if (left >= room->left)
		return;
	room->left = left;
	snprintf(room->text, sizeof(room->text),
		 "the host has %llu MiB available, %llu MiB of them reserved",
		 (unsigned long long)(available / MIB),
		 (unsigned long long)(reserve / MIB));
}

static void look_at_cgroups(const struct hostmem_guard *guard, uint64_t need,
			    struct room *room)
{
	struct memcg_room cg;
	uint64_t left;
	size_t skip;

	memcg_room(&guard->cg, need + CGROUP_RESERVE, &cg);
	left = beyond(cg.left_bytes, CGROUP_RESERVE);
	if (!cg.dir || left >= room->left)
		return;
	room->left = left;
	skip = beyond(strlen(cg.dir), GROUP_NAME_MAX);
	snprintf(room->text, sizeof(room->text),
		 "memory cgroup %s: %llu MiB left of %s %llu MiB",
		 cg.dir + skip, (unsigned long long)(cg.left_bytes / MIB),
		 cg.file, (unsigned long long)(cg.limit_bytes / MIB));
}

/*
 * Nodes have no MemAvailable. Free memory, page cache and half of what slab
 * caches call reclaimable comes close; the reserve is above the watermarks.
 */
static bool node_left(const struct guard_node *node, uint64_t *ret)
{
	uint64_t total, unused, active, inactive, slab;
	char text[4096];

	if (node->fd < 0 || io_pread_text(node->fd, text, sizeof(text)) < 0 ||
	    !hostmem_field(text, " MemTotal:", &total) ||
	    !hostmem_field(text, " MemFree:", &unused) ||
	    !hostmem_field(text, " Active(file):", &active) ||
	    !hostmem_field(text, " Inactive(file):", &inactive) ||
	    !hostmem_field(text, " SReclaimable:", &slab))
		return false;
	*ret = beyond(unused + active + inactive + slab / 2,
		      hostmem_reserve(total));
	return true;
}

/* The node that owns gpa, or all together where any of them may give. */
static void look_at_nodes(const struct hostmem_guard *guard, struct gpa gpa,
			  struct room *room)
{
	int owner = ram_node(guard->ram, gpa);
	struct numa_nodes asked = { { 0 } };
	uint64_t left = 0, one;
	char list[64];

	for (unsigned int i = 0; i < guard->num_nodes; i++) {
		const struct guard_node *node = &guard->nodes[i];

		if (owner >= 0 && node->node != owner)
			continue;
		/* Not known: no reason to refuse. */
		if (!node_left(node, &one))
			return;
		left += one;
		numa_nodes_add(&asked, (unsigned int)node->node);
	}
	if (!numa_nodes_count(&asked) || left >= room->left)
		return;
	room->left = left;
	snprintf(room->text, sizeof(room->text),
		 "node %s, which it is bound to, has %llu MiB left",
		 numa_nodes_format(&asked, list, sizeof(list)),
		 (unsigned long long)(left / MIB));
}

/* Which credit pays for gpa. */
static uint64_t *credit_for(struct hostmem_guard *guard, struct gpa gpa)
{
	int owner = ram_node(guard->ram, gpa);

	for (unsigned int i = 0; i < guard->num_nodes; i++) {
		if (guard->nodes[i].node == owner)
			return &guard->credit[i + 1];
	}
	return &guard->credit[0];
}

/* Less than need may be left; how much more is not looked into. */
static void look(struct hostmem_guard *guard, struct gpa gpa, uint64_t need,
		 uint64_t cost, struct room *room)
{
	uint64_t *credit = credit_for(guard, gpa), shares;

	room->left = UINT64_MAX;
	if (*credit >= cost) {
		*credit -= cost;
	} else {
		look_at_host(guard, room);
		look_at_nodes(guard, gpa, room);
		/* All credits together are what one would be. */
		shares = guard->num_nodes ? guard->num_nodes : 1;
		*credit = (room->left >> CREDIT_SHIFT) / shares;
	}
	look_at_cgroups(guard, need, room);
}

int hostmem_guard_take(struct hostmem_guard *guard, struct gpa gpa,
		       uint64_t bytes, struct err *err)
{
	uint64_t cost = hostmem_cost(bytes);
	struct room room;
	int r = 0;

	if (guard->unlimited)
		return 0;
	pthread_mutex_lock(&guard->lock);
	for (;;) {
		look(guard, gpa, guard->in_flight + cost, cost, &room);
		if (room.left < cost || room.left - cost >= guard->in_flight)
			break;
		/* Fits, unless those in flight have taken nothing yet. */
		pthread_cond_wait(&guard->done, &guard->lock);
	}
	if (room.left >= cost)
		guard->in_flight += cost;
	else
		r = err_set(err, ENOMEM, "%s; %llu MiB are wanted next",
			    room.text, (unsigned long long)(bytes / MIB));
	pthread_mutex_unlock(&guard->lock);
	return r;
}

void hostmem_guard_done(struct hostmem_guard *guard, uint64_t bytes)
{
	if (guard->unlimited)
		return;
	pthread_mutex_lock(&guard->lock);
	guard->in_flight -= hostmem_cost(bytes);
	pthread_cond_broadcast(&guard->done);
	pthread_mutex_unlock(&guard->lock);
}
