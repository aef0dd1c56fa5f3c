/* SPDX-License-Identifier: Apache-2.0 */
/* mem/hostmem_guard.c on made-up hosts: what it grants, refuses, waits for. */
#include "host_tree.h"

#include <pthread.h>

#include "base/arith.h"
#include "mem/hostmem.h"
#include "mem/hostmem_guard.h"

#define NODE0 "/sys/devices/system/node/node0/meminfo"
#define NODE1 "/sys/devices/system/node/node1/meminfo"

static void put_meminfo(const struct host_tree *t, uint64_t available_mib)
{
	char text[128];

	snprintf(text, sizeof(text),
		 "MemTotal: 4194304 kB\nMemAvailable: %llu kB\n",
		 (unsigned long long)(available_mib * KIB));
	host_tree_put(t, "/proc/meminfo", text);
}

static void put_group(const struct host_tree *t, uint64_t max_mib,
		      uint64_t current_mib)
{
	char text[64];

	host_tree_put(t, "/proc/self/cgroup", "0::/vm\n");
	host_tree_put(t, "/proc/self/mountinfo",
		      "24 1 0:21 / /cg rw - cgroup2 cgroup2 rw\n");
	snprintf(text, sizeof(text), "%llu\n",
		 (unsigned long long)(max_mib * MIB));
	host_tree_put(t, "/cg/vm/memory.max", text);
	snprintf(text, sizeof(text), "%llu\n",
		 (unsigned long long)(current_mib * MIB));
	host_tree_put(t, "/cg/vm/memory.current", text);
}

static void put_node(const struct host_tree *t, const char *path,
		     uint64_t free_mib)
{
	char text[256];

	snprintf(
		text, sizeof(text),
		"Node 0 MemTotal: 2097152 kB\nNode 0 MemFree: %llu kB\n"
		"Node 0 Active(file): 1024 kB\nNode 0 Inactive(file): 2048 kB\n"
		"Node 0 SReclaimable: 2048 kB\n",
		(unsigned long long)(free_mib * KIB));
	host_tree_put(t, path, text);
}

static struct hostmem_guard *guard_for(const struct host_tree *t,
				       const struct ram *ram)
{
	struct hostmem_guard *guard = NULL;

	assert_int_equal(hostmem_guard_new(&guard, ram, t->root), 0);
	return guard;
}

/* One chunk, granted or not, and done. */
static int ask(struct hostmem_guard *guard, uint64_t gpa, uint64_t bytes,
	       struct err *err)
{
	int r = hostmem_guard_take(guard, GPA(gpa), bytes, err);

	if (!r)
		hostmem_guard_done(guard, bytes);
	return r;
}

static void test_unknown_host_grants(void **state)
{
	struct ram ram = { .page = RAM_PAGE_4K };
	struct hostmem_guard *guard = guard_for(*state, &ram);
	struct err err = ERR_INIT;

	assert_int_equal(ask(guard, 0, TIB, &err), 0);
	hostmem_guard_free(guard);
	hostmem_guard_free(NULL);
}

static void test_host_keeps_a_reserve(void **state)
{
	struct ram ram = { .page = RAM_PAGE_THP };
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;

	put_meminfo(*state, 64 + 17); /* page tables are counted */
	guard = guard_for(*state, &ram);
	assert_int_equal(ask(guard, 0, 16 * MIB, &err), 0);
	put_meminfo(*state, 64 + 16);
	assert_int_equal(ask(guard, 0, 16 * MIB, &err), -ENOMEM);
	assert_string_equal(err.text, "the host has 80 MiB available, 64 MiB "
				      "of them reserved; 16 MiB are wanted "
				      "next");
	assert_int_equal(ask(guard, 0, 15 * MIB, &err), 0);
	put_meminfo(*state, 10);
	assert_int_equal(ask(guard, 0, 4 * MIB, &err), -ENOMEM);
	hostmem_guard_free(guard);
}

/* Far from the end the host is asked now and then, near it each time. */
static void test_host_is_asked_again(void **state)
{
	struct ram ram = { .page = RAM_PAGE_4K };
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;
	int granted = 0;

	put_meminfo(*state, 64 + 1024);
	guard = guard_for(*state, &ram);
	assert_int_equal(ask(guard, 0, 16 * MIB, &err), 0);
	put_meminfo(*state, 0); /* somebody took it all at once */
	while (granted < 100 && !ask(guard, 0, 16 * MIB, &err))
		granted++;
	assert_int_equal(granted, 7); /* 128 MiB, page tables included */
	assert_non_null(strstr(err.text, "the host has 0 MiB available"));
	hostmem_guard_free(guard);
}

static void test_cgroup_limit(void **state)
{
	struct ram ram = { .page = RAM_PAGE_4K };
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;

	put_meminfo(*state, 2048);
	put_group(*state, 200, 100);
	host_tree_put(*state, "/cg/vm/memory.stat", "inactive_file 0\n");
	guard = guard_for(*state, &ram);
	assert_int_equal(ask(guard, 0, 64 * MIB, &err), 0);
	/* lowered meanwhile */
	put_group(*state, 150, 100);
	assert_int_equal(ask(guard, 0, 64 * MIB, &err), -ENOMEM);
	assert_string_equal(err.text, "memory cgroup /cg/vm: 50 MiB left of "
				      "memory.max 150 MiB; 64 MiB are wanted "
				      "next");
	/* page cache gives way */
	host_tree_put(*state, "/cg/vm/memory.stat", "inactive_file 31457280\n");
	assert_int_equal(ask(guard, 0, 64 * MIB, &err), 0);
	put_group(*state, 150, 147);
	host_tree_put(*state, "/cg/vm/memory.stat", "inactive_file 0\n");
	assert_int_equal(ask(guard, 0, PAGE_4K, &err), -ENOMEM);
	hostmem_guard_free(guard);
}

static void test_hugetlb_is_not_looked_at(void **state)
{
	struct ram ram = { .page = RAM_PAGE_2M };
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;

	put_meminfo(*state, 1);
	put_group(*state, 1, 1);
	guard = guard_for(*state, &ram);
	assert_int_equal(ask(guard, 0, GIB, &err), 0);
	hostmem_guard_free(guard);
}

static void test_bound_memory_is_the_nodes(void **state)
{
	struct ram ram = {
		.page = RAM_PAGE_4K,
		.num_segments = 2,
		.segments = { { GPA(0), GIB, 0 }, { GPA(GIB), GIB, 1 } },
	};
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;

	numa_nodes_add(&ram.bound, 0);
	numa_nodes_add(&ram.bound, 1);
	put_meminfo(*state, 2048);
	put_node(*state, NODE0, 1000);
	put_node(*state, NODE1, 90);
	guard = guard_for(*state, &ram);
	assert_int_equal(ask(guard, 0, 64 * MIB, &err), 0);
	/* free, 3 MiB of cache, half of 2 MiB of slab, less 64 MiB */
	assert_int_equal(ask(guard, GIB, 29 * MIB, &err), 0);
	assert_int_equal(ask(guard, GIB, 30 * MIB, &err), -ENOMEM);
	assert_string_equal(err.text, "node 1, which it is bound to, has 30 "
				      "MiB left; 30 MiB are wanted next");
	/* with no owner any of them may give */
	ram.segments[1].node = -1;
	put_node(*state, NODE0, 100);
	assert_int_equal(ask(guard, GIB, 64 * MIB, &err), 0);
	put_node(*state, NODE0, 80);
	assert_int_equal(ask(guard, GIB, 64 * MIB, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "node 0-1"));
	/* a text that is none refuses nothing */
	host_tree_put(*state, NODE0, "rubbish\n");
	assert_int_equal(ask(guard, GIB, 64 * MIB, &err), 0);
	hostmem_guard_free(guard);
}

/*
 * Threads that ask at once, on a host where the files tell what was taken: the
 * limit is reached exactly and never passed.
 */
struct race {
	const struct host_tree *tree;
	struct hostmem_guard *guard;
	pthread_mutex_t lock;
	uint64_t taken_mib;
	unsigned int granted, refused;
};

#define RACE_CHUNK_MIB 10
#define RACE_MAX_MIB   (500 + 8)

static void *race_worker(void *arg)
{
	struct race *race = arg;

	for (int i = 0; i < 100; i++) {
		struct err err = ERR_INIT;
		char text[64];
		int r = hostmem_guard_take(race->guard, GPA(0),
					   RACE_CHUNK_MIB * MIB, &err);

		pthread_mutex_lock(&race->lock);
		if (r) {
			race->refused++;
			pthread_mutex_unlock(&race->lock);
			return NULL;
		}
		race->granted++;
		race->taken_mib += RACE_CHUNK_MIB;
		snprintf(text, sizeof(text), "%020llu\n",
			 (unsigned long long)(race->taken_mib * MIB));
		/* in place: a reader never sees an empty file */
		{
			char path[128];
			int fd;

			snprintf(path, sizeof(path), "%s/cg/vm/memory.current",
				 race->tree->root);
			fd = open(path, O_WRONLY | O_CLOEXEC);
			assert_true(fd >= 0);
			assert_int_equal(io_write_full(fd, text, strlen(text)),
					 0);
			close(fd);
		}
		pthread_mutex_unlock(&race->lock);
		hostmem_guard_done(race->guard, RACE_CHUNK_MIB * MIB);
	}
	return NULL; /* the count will tell */
}

static void test_workers_together(void **state)
{
	struct ram ram = { .page = RAM_PAGE_4K };
	struct race race = { .tree = *state };
	pthread_t threads[8];

	put_meminfo(*state, 2048);
	put_group(*state, RACE_MAX_MIB, 0);
	race.guard = guard_for(*state, &ram);
	pthread_mutex_init(&race.lock, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, race_worker,
						&race),
				 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	/* 500 MiB less the page tables of the last: 49 chunks */
	assert_int_equal(race.granted, 49);
	assert_int_equal(race.refused, ARRAY_SIZE(threads));
	pthread_mutex_destroy(&race.lock);
	hostmem_guard_free(race.guard);
}

/* What the check before the start accepts, the guard grants to the end. */
static void test_agrees_with_the_check(void **state)
{
	struct ram ram = { .page = RAM_PAGE_4K };
	struct hostmem_guard *guard;
	struct err err = ERR_INIT;
	struct hostmem host;
	uint64_t guest_mib = 512, at = 0;

	put_meminfo(*state, 2048);
	put_group(*state, guest_mib + 2 + 16, 0);
	hostmem_read(&host, ((struct host_tree *)*state)->root);
	assert_int_equal(
		hostmem_check(&host, RAM_PAGE_4K, guest_mib * MIB, &err), 0);
	guard = guard_for(*state, &ram);
	for (; at < guest_mib; at += 16) {
		put_group(*state, guest_mib + 2 + 16, at + at / 256);
		assert_int_equal(ask(guard, at * MIB, 16 * MIB, &err), 0);
	}
	put_group(*state, guest_mib + 2 + 16, at + at / 256);
	assert_int_equal(ask(guard, at * MIB, 16 * MIB, &err), -ENOMEM);
	hostmem_guard_free(guard);
}

#define TREE(fn) \
	cmocka_unit_test_setup_teardown(fn, host_tree_setup, host_tree_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREE(test_unknown_host_grants),
		TREE(test_host_keeps_a_reserve),
		TREE(test_host_is_asked_again),
		TREE(test_cgroup_limit),
		TREE(test_hugetlb_is_not_looked_at),
		TREE(test_bound_memory_is_the_nodes),
		TREE(test_workers_together),
		TREE(test_agrees_with_the_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
