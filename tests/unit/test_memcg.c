/* SPDX-License-Identifier: Apache-2.0 */
/* mem/memcg.c on made-up hosts: which limit counts, and what it leaves. */
#include "host_tree.h"

#include "base/arith.h"
#include "mem/memcg.h"

#define V2_MOUNT "24 1 0:21 / /cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
#define V1_MOUNTS                                                         \
	"31 1 0:28 / /cg rw - tmpfs tmpfs rw\n"                           \
	"32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n"                \
	"35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory\n" \
	"41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n"

static void put_group(const struct host_tree *t, const char *dir,
		      const char *max, const char *current)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/memory.max", dir);
	host_tree_put(t, path, max);
	snprintf(path, sizeof(path), "%s/memory.current", dir);
	host_tree_put(t, path, current);
}

static struct memcg_room room_of(const struct host_tree *t, struct memcg *cg,
				 uint64_t need)
{
	struct memcg_room room;

	memcg_open(cg, t->root);
	memcg_room(cg, need, &room);
	return room;
}

static void test_tightest_level(void **state)
{
	struct host_tree *t = *state;
	struct memcg_room room;
	struct memcg cg;

	host_tree_put(t, "/proc/self/cgroup", "0::/a/b/c\n");
	host_tree_put(t, "/proc/self/mountinfo", V2_MOUNT);
	put_group(t, "/cg/a", "1000000\n", "900000\n");
	put_group(t, "/cg/a/b", "max\n", "800000\n");
	put_group(t, "/cg/a/b/c", "700000\n", "500000\n");
	room = room_of(t, &cg, 1);
	assert_true(cg.v2);
	assert_int_equal(cg.num_levels, 3); /* the root has no limit */
	assert_int_equal(room.left_bytes, 100000);
	assert_int_equal(room.limit_bytes, 1000000);
	assert_string_equal(room.dir, "/cg/a");
	assert_string_equal(room.file, "memory.max");
	/* lowered while it is open */
	host_tree_put(t, "/cg/a/b/c/memory.max", "499999\n");
	memcg_room(&cg, 1, &room);
	assert_int_equal(room.left_bytes, 0);
	assert_string_equal(room.dir, "/cg/a/b/c");
	host_tree_put(t, "/cg/a/b/c/memory.max", "max\n");
	host_tree_put(t, "/cg/a/memory.max", "max\n");
	memcg_room(&cg, 1, &room);
	assert_int_equal(room.left_bytes, UINT64_MAX);
	assert_null(room.dir);
	memcg_close(&cg);
	memcg_close(&cg);
}

static void test_high_counts(void **state)
{
	struct host_tree *t = *state;
	struct memcg_room room;
	struct memcg cg;

	host_tree_put(t, "/proc/self/cgroup", "0::/a\n");
	host_tree_put(t, "/proc/self/mountinfo", V2_MOUNT);
	put_group(t, "/cg/a", "max\n", "100\n");
	host_tree_put(t, "/cg/a/memory.high", "300\n");
	room = room_of(t, &cg, 1);
	assert_int_equal(room.left_bytes, 200);
	assert_string_equal(room.file, "memory.high");
	host_tree_put(t, "/cg/a/memory.max", "250\n");
	memcg_room(&cg, 1, &room);
	assert_int_equal(room.left_bytes, 150);
	assert_string_equal(room.file, "memory.max");
	memcg_close(&cg);
}

/* Page cache counts once it is needed, and never for more than is used. */
static void test_page_cache(void **state)
{
	struct host_tree *t = *state;
	struct memcg_room room;
	struct memcg cg;

	host_tree_put(t, "/proc/self/cgroup", "0::/a\n");
	host_tree_put(t, "/proc/self/mountinfo", V2_MOUNT);
	put_group(t, "/cg/a", "1000\n", "900\n");
	host_tree_put(t, "/cg/a/memory.stat",
		      "anon 1\nfile 900\nworkingset_refault_file 7\n"
		      "inactive_file 300\nactive_file 200\n");
	room = room_of(t, &cg, 100);
	assert_int_equal(room.left_bytes, 100);
	memcg_room(&cg, 101, &room);
	assert_int_equal(room.left_bytes, 600);
	/* above a limit that was lowered: what the cache does not cover is 0 */
	host_tree_put(t, "/cg/a/memory.max", "300\n");
	memcg_room(&cg, 1, &room);
	assert_int_equal(room.left_bytes, 0);
	host_tree_put(t, "/cg/a/memory.max", "1000\n");
	host_tree_put(t, "/cg/a/memory.stat",
		      "inactive_file 18446744073709551615\nactive_file 9\n");
	memcg_room(&cg, 1000, &room);
	assert_int_equal(room.left_bytes, 100);
	host_tree_put(t, "/cg/a/memory.stat", "inactive_file x\n");
	memcg_room(&cg, 1000, &room);
	assert_int_equal(room.left_bytes, 100);
	memcg_close(&cg);
}

static void test_v1(void **state)
{
	struct host_tree *t = *state;
	struct memcg_room room;
	struct memcg cg;

	host_tree_put(t, "/proc/self/cgroup",
		      "9:name=systemd:/\n4:cpu,memory:/vm\n0::/other\n");
	host_tree_put(t, "/proc/self/mountinfo", V1_MOUNTS);
	host_tree_put(t, "/cg/memory/memory.limit_in_bytes",
		      "9223372036854771712\n");
	host_tree_put(t, "/cg/memory/memory.usage_in_bytes", "123456\n");
	host_tree_put(t, "/cg/memory/vm/memory.limit_in_bytes", "1000\n");
	host_tree_put(t, "/cg/memory/vm/memory.usage_in_bytes", "700\n");
	host_tree_put(t, "/cg/memory/vm/memory.stat",
		      "active_file 9\ninactive_file 9\ntotal_active_file 30\n"
		      "total_inactive_file 20\n");
	room = room_of(t, &cg, 500);
	assert_false(cg.v2);
	assert_int_equal(cg.num_levels, 2);
	assert_int_equal(room.left_bytes, 350);
	assert_string_equal(room.dir, "/cg/memory/vm");
	assert_string_equal(room.file, "memory.limit_in_bytes");
	memcg_close(&cg);
}

/* A container sees a part of the tree, mounted elsewhere. */
static void test_partial_mount(void **state)
{
	static const struct {
		const char *cgroup, *root, *dir;
	} cases[] = {
		{ "0::/pod/vm\n", "/pod", "/m x/vm" },
		{ "0::/pod\n", "/pod", "/m x" },
		{ "0::/podium/vm\n", "/pod", "/m x" }, /* not below it */
		{ "0::/../vm\n", "/", "/m x" },	       /* out of sight */
		{ "0::/vm\n", "/", "/m x/vm" },
	};
	struct host_tree *t = *state;

	put_group(t, "/m x", "2000\n", "10\n");
	put_group(t, "/m x/vm", "1000\n", "10\n");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct memcg_room room;
		char mounts[128];
		struct memcg cg;

		snprintf(mounts, sizeof(mounts),
			 "24 1 0:21 %s /m\\040x rw - cgroup2 cgroup2 rw\n",
			 cases[i].root);
		host_tree_put(t, "/proc/self/cgroup", cases[i].cgroup);
		host_tree_put(t, "/proc/self/mountinfo", mounts);
		room = room_of(t, &cg, 1);
		assert_string_equal(room.dir, cases[i].dir);
		memcg_close(&cg);
	}
}

/* What cannot be read or understood limits nothing, and breaks nothing. */
static void test_rubbish(void **state)
{
	static const char *const cgroups[] = {
		"",	   "\n",      ":\n",
		"::\n",	   "0:",      "0::\n",
		"0::vm\n", "x:y:z\n", "0::/gone (deleted)\n",
	};
	static const char *const mounts[] = {
		"",
		"\n",
		" - cgroup2 \n",
		"24 1 0:21 / - cgroup2 cgroup2 rw\n",
		"24 1 0:21 / /cg rw - cgroup2\n",
		"24 1 0:21 / /cg rw - cgroup2 cgroup2 rw",
		"24 1 0:21 /\\ /cg\\9 rw - cgroup2 x\n",
	};
	struct host_tree *t = *state;
	struct memcg_room room;
	struct memcg cg;

	/* neither file */
	room = room_of(t, &cg, 1);
	assert_int_equal(cg.num_levels, 0);
	assert_int_equal(room.left_bytes, UINT64_MAX);
	memcg_close(&cg);
	for (size_t i = 0; i < ARRAY_SIZE(cgroups); i++) {
		for (size_t j = 0; j < ARRAY_SIZE(mounts); j++) {
			host_tree_put(t, "/proc/self/cgroup", cgroups[i]);
			host_tree_put(t, "/proc/self/mountinfo", mounts[j]);
			room = room_of(t, &cg, 1);
			assert_int_equal(room.left_bytes, UINT64_MAX);
			memcg_close(&cg);
		}
	}
	host_tree_put(t, "/proc/self/cgroup", "0::/a\n");
	host_tree_put(t, "/proc/self/mountinfo", V2_MOUNT);
	put_group(t, "/cg/a", "12x\n", "5\n");
	assert_int_equal(room_of(t, &cg, 1).left_bytes, UINT64_MAX);
	memcg_close(&cg);
	put_group(t, "/cg/a", "12\n", "\n");
	assert_int_equal(room_of(t, &cg, 1).left_bytes, 12);
	memcg_close(&cg);
}

/* Levels beyond the table are left out. */
static void test_deep_tree(void **state)
{
	struct host_tree *t = *state;
	char line[256] = "0::", dir[256] = "/cg";
	struct memcg cg;

	for (int i = 0; i < MEMCG_MAX_LEVELS + 4; i++) {
		strcat(line, "/g");
		strcat(dir, "/g");
		put_group(t, dir, "max\n", "1\n");
	}
	strcat(line, "\n");
	host_tree_put(t, "/proc/self/cgroup", line);
	host_tree_put(t, "/proc/self/mountinfo", V2_MOUNT);
	memcg_open(&cg, t->root);
	assert_int_equal(cg.num_levels, MEMCG_MAX_LEVELS);
	assert_string_equal(cg.levels[0].dir, dir);
	memcg_close(&cg);
}

/* This host's own: whatever it is, it can be asked. */
static void test_here(void **state)
{
	struct memcg_room room;
	struct memcg cg;

	memcg_open(&cg, "");
	memcg_room(&cg, UINT64_MAX, &room);
	assert_true(room.dir || room.left_bytes == UINT64_MAX);
	memcg_close(&cg);
}

#define TREE(fn) \
	cmocka_unit_test_setup_teardown(fn, host_tree_setup, host_tree_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREE(test_tightest_level), TREE(test_high_counts),
		TREE(test_page_cache),	   TREE(test_v1),
		TREE(test_partial_mount),  TREE(test_rubbish),
		TREE(test_deep_tree),	   cmocka_unit_test(test_here),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
