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
	struct hostmem host = { .available_bytes = GIB };
	struct err err = ERR_INIT;

	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, 512 * MIB, &err), 0);
	assert_int_equal(hostmem_check(&host, RAM_PAGE_THP, 512 * MIB, &err),
			 0);
	/* something is left for page tables and others */
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, GIB, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "1024 MiB are available"));
	assert_int_equal(hostmem_check(&host, RAM_PAGE_THP, GIB, &err),
			 -ENOMEM);
	host.available_bytes = UINT64_MAX;
	assert_int_equal(hostmem_check(&host, RAM_PAGE_4K, UINT64_MAX, &err),
			 -ENOMEM);
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
		cmocka_unit_test(test_memory_is_checked),
		cmocka_unit_test(test_pools_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
