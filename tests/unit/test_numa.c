/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/numa.c, and the segments and placement of mem/ram.c that come of it, on
 * whatever nodes this host has. tests/lab/test_numa.py has a host with two.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "base/arith.h"
#include "mem/numa.h"
#include "mem/ram.h"

static struct numa_nodes nodes_of(const char *text)
{
	struct numa_config cfg;
	struct err err = ERR_INIT;
	char full[64];

	snprintf(full, sizeof(full), "bind:%s", text);
	assert_int_equal(numa_config_parse(&cfg, full, &err), 0);
	return cfg.nodes;
}

static void test_parse(void **state)
{
	static const struct {
		const char *text, *nodes; /* NULL: refused */
	} cases[] = {
		{ "bind:0", "0" },
		{ "interleave:0-1", "0-1" },
		{ "split:0+2", "0,2" },
		{ "preferred:7+1-3+2", "1-3,7" },
		{ "bind:1023", "1023" },
		{ "bind", "none" }, /* all, to be asked for later */
		{ "none", "none" },
		{ "none:0", NULL },
		{ "bind:", NULL },
		{ "bind:+1", NULL },
		{ "bind:1+", NULL },
		{ "bind:1++2", NULL },
		{ "bind:3-1", NULL },
		{ "bind:0,1", NULL },
		{ "bind:-1", NULL },
		{ "bind:0x1", NULL },
		{ "bind:1024", NULL },
		{ "bind:0-99999999999", NULL },
		{ "bindings:0", NULL },
		{ "interleaveinterleave", NULL },
		{ "", NULL },
		{ ":0", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct numa_config cfg = { .policy = NUMA_SPLIT };
		struct err err = ERR_INIT;
		int r = numa_config_parse(&cfg, cases[i].text, &err);
		char list[64];

		if (!cases[i].nodes) {
			assert_int_equal(r, -EINVAL);
			assert_true(err.text[0]);
			assert_int_equal(cfg.policy, NUMA_SPLIT);
			continue;
		}
		assert_int_equal(r, 0);
		assert_int_equal(cfg.has_nodes,
				 strchr(cases[i].text, ':') != NULL);
		assert_string_equal(numa_nodes_format(&cfg.nodes, list,
						      sizeof(list)),
				    cases[i].nodes);
	}
}

static void test_nodes(void **state)
{
	struct numa_nodes nodes = nodes_of("0+63-65+1023");
	char tiny[6];

	assert_int_equal(numa_nodes_count(&nodes), 5);
	assert_int_equal(numa_nodes_next(&nodes, 0), 0);
	assert_int_equal(numa_nodes_next(&nodes, 1), 63);
	assert_int_equal(numa_nodes_next(&nodes, 66), 1023);
	assert_int_equal(numa_nodes_next(&nodes, 1024), -1);
	assert_false(numa_nodes_has(&nodes, 62));
	assert_false(numa_nodes_has(&nodes, 4096));
	/* cut, not overrun */
	assert_string_equal(numa_nodes_format(&nodes, tiny, sizeof(tiny)),
			    "0,63-");
}

/* Without policies in the kernel nothing below has a meaning. */
static void need_policies(void)
{
	if (numa_available() < 0) {
		print_message("skip: this kernel has no NUMA policies\n");
		skip();
	}
}

static void test_resolve(void **state)
{
	struct numa_config cfg = { .policy = NUMA_BIND };
	struct numa_nodes nodes;
	struct err err = ERR_INIT;

	need_policies();
	assert_int_equal(numa_resolve(&cfg, &nodes, &err), 0);
	assert_true(numa_nodes_count(&nodes) >= 1);
	/* the first of them again, by name */
	cfg.has_nodes = true;
	numa_nodes_add(&cfg.nodes, (unsigned int)numa_nodes_next(&nodes, 0));
	assert_int_equal(numa_resolve(&cfg, &nodes, &err), 0);
	assert_memory_equal(&nodes, &cfg.nodes, sizeof(nodes));
	/* no host is that large */
	numa_nodes_add(&cfg.nodes, 1023);
	assert_int_equal(numa_resolve(&cfg, &nodes, &err), -ENODEV);
	assert_non_null(strstr(err.text, "no node 1023"));
	/* no policy, no questions */
	cfg.policy = NUMA_NONE;
	assert_int_equal(numa_resolve(&cfg, &nodes, &err), 0);
	assert_int_equal(numa_nodes_count(&nodes), 0);
}

static int make(struct ram *ram, const char *numa, uint64_t size, bool shared,
		struct err *err)
{
	struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_THP,
		.shared = shared,
	};

	assert_int_equal(numa_config_parse(&cfg.numa, numa, err), 0);
	return ram_init(ram, &cfg, err);
}

/* What the kernel says about the page at gpa. */
static int mode_at(const struct ram *ram, uint64_t gpa, struct numa_nodes *ret)
{
	int mode = -1;

	assert_int_equal(get_mempolicy(&mode, ret->bits, NUMA_MAX_NODES + 1,
				       ram->base + gpa, MPOL_F_ADDR),
			 0);
	return mode;
}

static void test_policy_reaches_the_mapping(void **state)
{
	static const struct {
		const char *numa;
		int mode;
	} cases[] = {
		{ "none", MPOL_DEFAULT },
		{ "bind:0", MPOL_BIND },
		{ "interleave:0", MPOL_INTERLEAVE },
		{ "preferred:0", MPOL_PREFERRED },
		{ "split:0", MPOL_BIND },
	};

	need_policies();
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		const char *numa = cases[i / 2].numa;
		struct numa_nodes nodes;
		struct err err = ERR_INIT;
		struct ram ram;

		assert_int_equal(make(&ram, numa, 5 * GIB, i % 2, &err), 0);
		for (unsigned int j = 0; j < ram.num_regions; j++) {
			uint64_t base = ram.regions[j].base.v;
			uint64_t last = base + ram.regions[j].size - 1;

			assert_int_equal(mode_at(&ram, base, &nodes),
					 cases[i / 2].mode);
			assert_int_equal(mode_at(&ram, last, &nodes),
					 cases[i / 2].mode);
			assert_int_equal(numa_nodes_has(&nodes, 0), i / 2 != 0);
		}
		ram_fini(&ram);
	}
}

/* All of RAM, in order, without overlap, within regions. */
static void check_cover(const struct ram *ram)
{
	uint64_t at = 0, sum = 0;

	for (unsigned int i = 0; i < ram_num_segments(ram); i++) {
		const struct ram_segment *seg = ram_segment(ram, i);

		assert_true(seg->size > 0);
		assert_true(seg->base.v >= at);
		at = seg->base.v + seg->size;
		sum += seg->size;
		assert_non_null(
			mem_map_range(ram, seg->base, seg->size, MEM_READ));
	}
	assert_int_equal(sum, ram_size(ram));
}

static void test_segments_of_one_owner(void **state)
{
	static const struct {
		const char *numa;
		int node;
	} cases[] = {
		{ "none", -1 },	      { "interleave:0", -1 }, { "bind:0", 0 },
		{ "preferred:0", 0 }, { "split:0", 0 },
	};
	struct err err = ERR_INIT;
	struct ram ram;

	need_policies();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(
			make(&ram, cases[i].numa, 5 * GIB, false, &err), 0);
		assert_int_equal(ram_num_segments(&ram), 2);
		assert_int_equal(ram_segment(&ram, 0)->node, cases[i].node);
		assert_int_equal(ram_segment(&ram, 1)->node, cases[i].node);
		check_cover(&ram);
		ram_fini(&ram);
		assert_int_equal(ram_num_segments(&ram), 0);
	}
}

static void test_unknown_node_leaves_nothing(void **state)
{
	struct err err = ERR_INIT;
	struct ram ram;

	need_policies();
	assert_int_equal(make(&ram, "split:0+1023", GIB, true, &err), -ENODEV);
	assert_null(ram.base);
	assert_int_equal(ram.fd, -1);
}

static void need_two_nodes(void)
{
	need_policies();
	if (numa_max_node() < 1) {
		print_message("skip: this host has one node\n");
		skip();
	}
}

static void expect_segment(const struct ram *ram, unsigned int i, uint64_t base,
			   uint64_t size, int node)
{
	const struct ram_segment *seg = ram_segment(ram, i);

	assert_int_equal(seg->base.v, base);
	assert_int_equal(seg->size, size);
	assert_int_equal(seg->node, node);
}

static void test_split_is_equal_and_aligned(void **state)
{
	struct err err = ERR_INIT;
	struct ram ram;

	need_two_nodes();
	/* around the hole, and not whole GiB each */
	assert_int_equal(make(&ram, "split", 5 * GIB, false, &err), 0);
	assert_int_equal(ram_num_segments(&ram), 3);
	expect_segment(&ram, 0, 0, 5 * GIB / 2, 0);
	expect_segment(&ram, 1, 5 * GIB / 2, GIB / 2, 1);
	expect_segment(&ram, 2, 4 * GIB, 2 * GIB, 1);
	check_cover(&ram);
	ram_fini(&ram);
	/* a cut at the hole makes no empty segment */
	assert_int_equal(make(&ram, "split:0-1", 6 * GIB, true, &err), 0);
	assert_int_equal(ram_num_segments(&ram), 2);
	expect_segment(&ram, 0, 0, 3 * GIB, 0);
	expect_segment(&ram, 1, 4 * GIB, 3 * GIB, 1);
	ram_fini(&ram);
	/* an odd number of 2M pages, and a rest that is none */
	assert_int_equal(make(&ram, "split", 70 * MIB + PAGE_4K, false, &err),
			 0);
	expect_segment(&ram, 0, 0, 36 * MIB, 0);
	expect_segment(&ram, 1, 36 * MIB, 34 * MIB + PAGE_4K, 1);
	check_cover(&ram);
	ram_fini(&ram);
	assert_int_equal(make(&ram, "split", 2 * MIB, false, &err), -EINVAL);
	assert_non_null(strstr(err.text, "cannot be split over 2 nodes"));
	assert_null(ram.base);
}

/* How many 4K pages of RAM are on each of the nodes 0 and 1. */
static void count_pages(const struct ram *ram, unsigned int counts[2])
{
	counts[0] = counts[1] = 0;
	for (uint64_t at = 0; at < ram_size(ram); at += PAGE_4K) {
		void *page = ram->base + at;
		int status = -1;

		assert_int_equal(numa_move_pages(0, 1, &page, NULL, &status, 0),
				 0);
		assert_in_range(status, 0, 1);
		counts[status]++;
	}
}

/* Pages go where the policy says, from whichever node they are touched. */
static void test_pages_are_placed(void **state)
{
	static const struct {
		const char *numa;
		unsigned int expected[2];
	} cases[] = {
		{ "bind:0", { 16384, 0 } },
		{ "bind:1", { 0, 16384 } },
		{ "preferred:1", { 0, 16384 } },
		{ "interleave", { 8192, 8192 } },
		{ "split", { 8192, 8192 } },
	};

	need_two_nodes();
	for (size_t i = 0; i < 4 * ARRAY_SIZE(cases); i++) {
		struct numa_binding binding = { .before = { .set = NULL } };
		unsigned int counts[2];
		struct err err = ERR_INIT;
		struct ram ram;

		assert_int_equal(make(&ram, cases[i / 4].numa, 64 * MIB, i % 2,
				      &err),
				 0);
		numa_bind_thread(&binding, i % 4 / 2);
		memset(ram.base, 1, 64 * MIB);
		numa_unbind_thread(&binding);
		count_pages(&ram, counts);
		assert_int_equal(counts[0], cases[i / 4].expected[0]);
		assert_int_equal(counts[1], cases[i / 4].expected[1]);
		if (i / 4 == 4) { /* split: which half, too */
			void *first_of_1 = ram.base + 32 * MIB;
			int node = -1;

			assert_int_equal(numa_move_pages(0, 1, &first_of_1,
							 NULL, &node, 0),
					 0);
			assert_int_equal(node, 1);
		}
		ram_fini(&ram);
	}
}

static void test_thread_moves_to_the_node(void **state)
{
	struct numa_binding binding = { .before = { .set = NULL } };
	unsigned int cpu, node;

	need_two_nodes();
	for (unsigned int i = 0; i < 4; i++) {
		numa_bind_thread(&binding, (int)(i % 2));
		assert_int_equal(getcpu(&cpu, &node), 0);
		assert_int_equal(node, i % 2);
	}
	numa_unbind_thread(&binding);
}

static unsigned int cpus_now(void)
{
	return cpus_allowed();
}

/* A thread of its own: the affinity dies with it. */
static void *bind_and_back(void *arg)
{
	struct numa_binding binding = { .before = { .set = NULL } };
	struct cpus_mask all, got;

	assert_int_equal(cpus_mask_get(&all), 0);
	/* never bound: nothing to undo */
	numa_unbind_thread(&binding);
	numa_bind_thread(&binding, -1);
	assert_null(binding.before.set);
	/* a node without CPUs, or that is not there: as before */
	numa_bind_thread(&binding, 1023);
	assert_int_equal(cpus_now(), CPU_COUNT_S(all.bytes, all.set));
	numa_bind_thread(&binding, 0);
	assert_in_range(cpus_now(), 1, CPU_COUNT_S(all.bytes, all.set));
	/* away from it again */
	numa_bind_thread(&binding, -1);
	assert_int_equal(cpus_now(), CPU_COUNT_S(all.bytes, all.set));
	numa_bind_thread(&binding, 0);
	numa_unbind_thread(&binding);
	assert_null(binding.before.set);
	assert_int_equal(cpus_mask_get(&got), 0);
	assert_true(CPU_EQUAL_S(all.bytes, all.set, got.set));
	cpus_mask_free(&all);
	cpus_mask_free(&got);
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, bind_and_back, NULL), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_nodes),
		cmocka_unit_test(test_resolve),
		cmocka_unit_test(test_policy_reaches_the_mapping),
		cmocka_unit_test(test_segments_of_one_owner),
		cmocka_unit_test(test_unknown_node_leaves_nothing),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_split_is_equal_and_aligned),
		cmocka_unit_test(test_pages_are_placed),
		cmocka_unit_test(test_thread_moves_to_the_node),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
