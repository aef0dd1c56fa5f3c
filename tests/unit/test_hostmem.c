/* SPDX-License-Identifier: Apache-2.0 */
/* mem/hostmem.c on made-up hosts: what is read, and what is refused. */
#include "host_tree.h"

#include "base/arith.h"
#include "mem/hostmem.h"

#define POOL_2M "/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define POOL_1G "/sys/kernel/mm/hugepages/hugepages-1048576kB/"
#define THP	"/sys/kernel/mm/transparent_hugepage/enabled"

static void test_read(void **state)
{
	struct host_tree *t = *state;
	struct hostmem host;

	host_tree_put(t, "/proc/meminfo",
		      "MemTotal: 999 kB\nMemFree: 1 kB\n"
		      "MemAvailable:    2048 kB\n");
	host_tree_put(t, THP, "always [madvise] never\n");
	host_tree_put(t, POOL_2M "nr_hugepages", "100\n");
	host_tree_put(t, POOL_2M "free_hugepages", "30\n");
	host_tree_put(t, POOL_2M "resv_hugepages", "10\n");
	host_tree_put(t, POOL_2M "nr_overcommit_hugepages", "7\n");
	host_tree_put(t, POOL_2M "surplus_hugepages", "2\n");
	hostmem_read(&host, t->root);
	assert_int_equal(host.available_bytes, 2 * MIB);
	assert_int_equal(host.total_bytes, 999 * KIB);
	assert_int_equal(host.cgroup.left_bytes, UINT64_MAX);
	assert_false(host.thp_never);
	assert_true(host.pool_2m.exists);
	assert_int_equal(host.pool_2m.total, 100);
	assert_int_equal(host.pool_2m.idle, 20);
	assert_int_equal(host.pool_2m.growth, 5);
	assert_false(host.pool_1g.exists);

	host_tree_put(t, THP, "always madvise [never]\n");
	host_tree_put(t, POOL_1G "nr_hugepages", "1\n");
	host_tree_put(t, POOL_1G "free_hugepages", "1\n");
	host_tree_put(t, POOL_1G "resv_hugepages", "9\n"); /* not below 0 */
	hostmem_read(&host, t->root);
	assert_true(host.thp_never);
	assert_true(host.pool_1g.exists);
	assert_int_equal(host.pool_1g.idle, 0);
}

/* What cannot be known is no reason to refuse; pages that do not exist are. */
static void test_unknown_host(void **state)
{
	struct host_tree *t = *state;
	struct err err = ERR_INIT;
	struct hostmem host;

	host_tree_put(t, "/proc/meminfo", "rubbish\n");
	hostmem_read(&host, t->root);
	assert_int_equal(host.available_bytes, UINT64_MAX);
	assert_true(host.thp_never);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, TIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_2M, MIB, &err), -ENOMEM);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_1G, GIB, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "no huge pages of 1024 MiB"));
}

static void test_memory_is_checked(void **state)
{
	struct hostmem host = {
		.available_bytes = GIB,
		.cgroup.left_bytes = UINT64_MAX,
	};
	struct err err = ERR_INIT;

	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, 512 * MIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_THP, 512 * MIB, &err),
			 0);
	/* something is left for page tables and others */
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, GIB, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "1024 MiB are available"));
	assert_int_equal(hostmem_check(&host, RAM_PAGE_THP, GIB, &err),
			 -ENOMEM);
	/* a large host keeps more: 1/128 of it */
	host.total_bytes = 64 * GIB;
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, 512 * MIB, &err),
			 -ENOMEM);
	host.available_bytes = GIB + 100 * MIB;
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, 512 * MIB, &err), 0);
	host.available_bytes = UINT64_MAX;
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, UINT64_MAX, &err),
			 -ENOMEM);
}

static void test_cgroup_is_checked(void **state)
{
	struct host_tree *t = *state;
	struct err err = ERR_INIT;
	struct hostmem host;

	host_tree_put(t, "/proc/self/cgroup", "0::/vm\n");
	host_tree_put(t, "/proc/self/mountinfo",
		      "24 1 0:21 / /cg rw - cgroup2 cgroup2 rw\n");
	host_tree_put(t, "/cg/vm/memory.max", "629145600\n"); /* 600 MiB */
	host_tree_put(t, "/cg/vm/memory.current", "104857600\n");
	host_tree_put(t, "/cg/vm/memory.stat",
		      "anon 5\nactive_file 10485760\ninactive_file "
		      "41943040\n");
	hostmem_read(&host, t->root);
	assert_int_equal(host.cgroup.limit_bytes, 600 * MIB);
	assert_int_equal(host.cgroup.left_bytes, 550 * MIB);
	assert_string_equal(host.cgroup.file, "/cg/vm/memory.max");
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, 512 * MIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_THP, 540 * MIB, &err),
			 -ENOMEM);
	assert_non_null(strstr(err.text, "558 MiB of memory are needed, and "
					 "/cg/vm/memory.max leaves 550 MiB of "
					 "its 600 MiB"));
	/* the pool's pages are not the cgroup's */
	host.pool_2m = (struct hostmem_pool){ .exists = true, .idle = 1024 };
	assert_int_equal(hostmem_check(&host, RAM_PAGE_2M, GIB, &err), 0);
	/* what is short first is named first */
	host.available_bytes = MIB;
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, GIB, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "1 MiB are available"));
}

/* The end of a name too long for the message. */
static void test_long_cgroup_name(void **state)
{
	struct host_tree *t = *state;
	char name[201], text[512], path[512];
	struct hostmem host;

	memset(name, 'x', sizeof(name) - 1);
	name[200] = '\0';
	snprintf(text, sizeof(text), "0::/%s/%s\n", name, name);
	host_tree_put(t, "/proc/self/cgroup", text);
	host_tree_put(t, "/proc/self/mountinfo",
		      "24 1 0:21 / /cg rw - cgroup2 cgroup2 rw\n");
	snprintf(path, sizeof(path), "/cg/%s/%s/memory.max", name, name);
	host_tree_put(t, path, "4096\n");
	snprintf(path, sizeof(path), "/cg/%s/%s/memory.current", name, name);
	host_tree_put(t, path, "4096\n");
	hostmem_read(&host, t->root);
	assert_int_equal(host.cgroup.left_bytes, 0);
	assert_int_equal(strlen(host.cgroup.file),
			 sizeof(host.cgroup.file) - 1);
	assert_non_null(strstr(host.cgroup.file, "xx/memory.max"));
}

static void test_field(void **state)
{
	uint64_t bytes = 7;

	assert_true(hostmem_field("A: 3 kB\nBc:    2 kB\n", "Bc:", &bytes));
	assert_int_equal(bytes, 2 * KIB);
	assert_false(hostmem_field("A: x kB\n", "A:", &bytes));
	assert_false(hostmem_field("", "A:", &bytes));
	assert_false(
		hostmem_field("A: 18446744073709551615 kB\n", "A:", &bytes));
}

static void test_pools_are_checked(void **state)
{
	struct hostmem host = {
		.pool_2m = { .exists = true, .total = 100, .idle = 20 },
		.pool_1g = { .exists = true, .total = 2, .growth = 3 },
	};
	struct err err = ERR_INIT;

	assert_int_equal(hostmem_check(&host, RAM_PAGE_2M, 40 * MIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_2M, 40 * MIB + 1, &err),
			 -ENOMEM);
	/* 80 in use, 21 needed */
	assert_non_null(strstr(err.text, "21 free huge pages of 2 MiB"));
	assert_non_null(strstr(err.text, "echo 101 > " POOL_2M));
	assert_int_equal(hostmem_check(&host, RAM_PAGE_1G, 3 * GIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_1G, 4 * GIB, &err),
			 -ENOMEM);
	assert_non_null(strstr(err.text, POOL_1G "nr_hugepages"));
}

#define TREE(fn) \
	cmocka_unit_test_setup_teardown(fn, host_tree_setup, host_tree_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREE(test_read),
		TREE(test_unknown_host),
		TREE(test_cgroup_is_checked),
		TREE(test_long_cgroup_name),
		cmocka_unit_test(test_field),
		cmocka_unit_test(test_memory_is_checked),
		cmocka_unit_test(test_pools_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
