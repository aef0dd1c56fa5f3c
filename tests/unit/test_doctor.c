/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire doctor, mostly without KVM: parsing of /proc and /sys texts, probes
 * against a made-up file tree, verdicts, and both forms of the report.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/io.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"
#include "host_tree.h"

static struct doctor_report *run(const struct host_tree *t)
{
	struct doctor_env env = {
		.kvm_path = "/nonexistent/kvm",
		.directory = t->root,
		.root = t->root,
	};
	struct doctor_report *report;

	assert_int_equal(doctor_run(&report, &env), 0);
	return report;
}

static const struct doctor_row *find(const struct doctor_report *report,
				     const char *name)
{
	for (size_t i = 0; i < report->num_rows; i++)
		if (!strcmp(report->rows[i].name, name))
			return &report->rows[i];
	fail_msg("no row \"%s\"", name);
	return NULL;
}

static void expect(const struct doctor_report *report, const char *name,
		   enum doctor_status status, const char *fact)
{
	const struct doctor_row *row = find(report, name);

	assert_string_equal(row->fact, fact);
	assert_int_equal(row->status, status);
}

/* ---- texts ---- */

static void test_choice(void **state)
{
	char word[16];

	assert_int_equal(sysfs_choice("always [madvise] never", word, 16), 0);
	assert_string_equal(word, "madvise");
	assert_int_equal(sysfs_choice("[a]", word, 16), 0);
	assert_string_equal(word, "a");
	assert_int_equal(sysfs_choice("always never", word, 16), -EINVAL);
	assert_int_equal(sysfs_choice("always [never", word, 16), -EINVAL);
	assert_int_equal(sysfs_choice("[madvise]", word, 7), -ENAMETOOLONG);
}

static void test_field(void **state)
{
	const char *text = "Name:\tcat\nCpus_allowed:\t3\n"
			   "Cpus_allowed_list:\t0-1\n";
	char value[8];

	assert_int_equal(sysfs_field(text, "Cpus_allowed_list:", value, 8), 0);
	assert_string_equal(value, "0-1");
	assert_int_equal(sysfs_field(text, "Name:", value, 8), 0);
	assert_string_equal(value, "cat");
	assert_int_equal(sysfs_field(text, "Name:", value, 3), -ENAMETOOLONG);
	assert_int_equal(sysfs_field(text, "allowed:", value, 8), -ENOENT);
	assert_int_equal(sysfs_field("", "Name:", value, 8), -ENOENT);
}

static void test_has_word(void **state)
{
	assert_true(sysfs_has_word("cpuset cpu io", "cpu"));
	assert_true(sysfs_has_word("cpu", "cpu"));
	assert_false(sysfs_has_word("cpuset io", "cpu"));
	assert_false(sysfs_has_word("", "cpu"));
}

static void test_cgroup_texts(void **state)
{
	const char *mounts =
		"22 1 0:20 / /sys rw - sysfs sysfs rw\n"
		"30 22 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - "
		"cgroup2 cgroup2 rw\n";
	char buf[64];

	assert_int_equal(sysfs_cgroup2_mount(mounts, buf, sizeof(buf)), 0);
	assert_string_equal(buf, "/sys/fs/cgroup/unified");
	assert_int_equal(sysfs_cgroup2_mount("22 1 0:20 / /sys rw - sysfs s rw",
					     buf, sizeof(buf)),
			 -ENOENT);
	assert_int_equal(sysfs_cgroup2_mount(" - cgroup2 ", buf, sizeof(buf)),
			 -ENOENT);
	assert_int_equal(sysfs_cgroup2_path("4:memory:/x\n0::/a/b\n", buf,
					    sizeof(buf)),
			 0);
	assert_string_equal(buf, "/a/b");
	assert_int_equal(sysfs_cgroup2_path("4:memory:/x\n", buf, sizeof(buf)),
			 -ENOENT);
}

/* ---- probes on a made-up host ---- */

static void test_without_kvm(void **state)
{
	struct doctor_report *report = run(*state);
	const struct doctor_row *row = find(report, "KVM access");

	assert_false(report->can_run);
	assert_false(report->can_run_linux);
	assert_int_equal(row->status, DOCTOR_MISSING);
	assert_non_null(strstr(row->fact, "/nonexistent/kvm"));
	assert_non_null(strstr(report->reason, "/nonexistent/kvm"));
	expect(report, "kernel mode", DOCTOR_MISSING, "not probed: no KVM");
	expect(report, "TDP", DOCTOR_MISSING, "not probed: no KVM");
	/* An empty /proc and /sys makes rows, not failures. */
	assert_true(report->num_rows >= num_doctor_checks);
	for (size_t i = 0; i < report->num_rows; i++)
		assert_true(report->rows[i].fact[0] != '\0');
	doctor_report_free(report);
}

static void test_memory_rows(void **state)
{
	struct host_tree *t = *state;
	struct doctor_report *report;

#define THP  "/sys/kernel/mm/transparent_hugepage/"
#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define NODE "/sys/devices/system/node/"
	host_tree_put(t, THP "enabled", "always madvise [never]\n");
	host_tree_put(t, THP "shmem_enabled",
		      "always within_size [advise] never deny\n");
	host_tree_put(t, THP "defrag",
		      "always defer defer+madvise madvise [never]\n");
	host_tree_put(t, POOL "nr_hugepages", "8\n");
	host_tree_put(t, POOL "free_hugepages", "5\n");
	host_tree_put(t, POOL "resv_hugepages", "1\n");
	host_tree_put(t, NODE "online", "0-1\n");
	host_tree_put(t, NODE "node0/hugepages/hugepages-2048kB/nr_hugepages",
		      "6\n");
	host_tree_put(t, NODE "node0/hugepages/hugepages-2048kB/free_hugepages",
		      "5\n");
	host_tree_put(t, NODE "node1/hugepages/hugepages-2048kB/nr_hugepages",
		      "2\n");
	host_tree_put(t, NODE "node1/hugepages/hugepages-2048kB/free_hugepages",
		      "0\n");
	host_tree_put(t, NODE "node0/meminfo",
		      "Node 0 MemTotal:   2097152 kB\n"
		      "Node 0 MemFree:   1048576 kB\n");
	host_tree_put(t, NODE "node1/meminfo", "rubbish\n");
	host_tree_put(t, "/proc/sys/kernel/numa_balancing", "1\n");
	host_tree_put(t, "/sys/kernel/mm/ksm/run", "1\n");
	host_tree_put(t, "/sys/kernel/mm/ksm/pages_sharing", "42\n");
	host_tree_put(t, "/sys/module/zswap/parameters/enabled", "Y\n");
	host_tree_put(
		t, "/proc/swaps",
		"Filename\tType\tSize\tUsed\tPriority\n"
		"/dev/vda2 partition 1048576 0 -2\n/swap file 1048576 0 -3\n");
	report = run(t);
	expect(report, "THP, private memory", DOCTOR_MISSING, "enabled=never");
	expect(report, "THP, shared memory", DOCTOR_OK, "shmem_enabled=advise");
	expect(report, "THP defrag", DOCTOR_DEGRADED, "defrag=never");
	expect(report, "hugetlb pool, 2M", DOCTOR_OK,
	       "4 free of 8: node0 5/6, node1 0/2");
	assert_non_null(
		strstr(find(report, "hugetlb pool, 2M")->consequence, "8 MiB"));
	expect(report, "hugetlb pool, 1G", DOCTOR_MISSING,
	       "not supported by kernel or processor");
	expect(report, "NUMA nodes", DOCTOR_OK,
	       "2: node0 2 GiB (1 GiB free), node1 0 B (0 B free)");
	expect(report, "NUMA balancing", DOCTOR_DEGRADED,
	       "kernel.numa_balancing=1");
	expect(report, "KSM", DOCTOR_OK, "run=1, 42 pages sharing");
	expect(report, "swap", DOCTOR_OK, "2 areas, 2 GiB; zswap on");
	doctor_report_free(report);
}

static void test_empty_pool(void **state)
{
	struct host_tree *t = *state;
	struct doctor_report *report;

	host_tree_put(t, POOL "nr_hugepages", "2\n");
	host_tree_put(t, POOL "free_hugepages", "1\n");
	host_tree_put(t, POOL "resv_hugepages", "9\n"); /* never below zero */
	report = run(t);
	expect(report, "hugetlb pool, 2M", DOCTOR_DEGRADED, "0 free of 2");
	doctor_report_free(report);
}

static void test_host_rows(void **state)
{
	struct host_tree *t = *state;
	struct doctor_report *report;
	char mounts[256];

	host_tree_put(t, "/sys/devices/system/cpu/online", "0-7\n");
	host_tree_put(t, "/sys/devices/system/cpu/smt/active", "1\n");
	host_tree_put(t, "/proc/self/status",
		      "CapEff:\t0000000000004000\nCpus_allowed_list:\t2-3\n");
	host_tree_put(t, "/proc/pressure/memory",
		      "some avg10=1.50 avg60=0.00\n");
	host_tree_put(t, "/proc/pressure/cpu", "some avg10=0.25 avg60=0.00\n");
	/* A group whose name would switch a terminal to red. */
	snprintf(mounts, sizeof(mounts),
		 "30 22 0:26 / /cg rw - cgroup2 cgroup2 rw\n");
	host_tree_put(t, "/proc/self/mountinfo", mounts);
	host_tree_put(t, "/proc/self/cgroup", "0::/\033[31m\n");
	host_tree_put(t, "/cg/\033[31m/cgroup.controllers",
		      "cpu memory pids\n");
	report = run(t);
	expect(report, "CPUs", DOCTOR_DEGRADED,
	       "8 online (0-7), 2 allowed (2-3), SMT on");
	expect(report, "PSI", DOCTOR_DEGRADED,
	       "stalled over 10 s: memory 1.50 %, cpu 0.25 %");
	expect(report, "cgroup v2", DOCTOR_DEGRADED,
	       "own group /cg/?[31m: cpu memory pids");
	assert_non_null(
		strstr(find(report, "cgroup v2")->consequence, "cpuset, io"));
	assert_non_null(
		strstr(find(report, "memlock limit")->fact, "CAP_IPC_LOCK"));
	doctor_report_free(report);
}

static void test_memory_cgroup_limit(void **state)
{
	struct host_tree *t = *state;
	struct doctor_report *report = run(t);

	expect(report, "memory cgroup limit", DOCTOR_OK,
	       "none that this process is under");
	doctor_report_free(report);
	host_tree_put(t, "/proc/meminfo", "MemAvailable: 2097152 kB\n");
	host_tree_put(t, "/proc/self/cgroup", "0::/vm\n");
	host_tree_put(t, "/proc/self/mountinfo",
		      "24 1 0:21 / /cg rw - cgroup2 cgroup2 rw\n");
	host_tree_put(t, "/cg/vm/memory.max", "1073741824\n");
	host_tree_put(t, "/cg/vm/memory.current", "536870912\n");
	report = run(t);
	expect(report, "memory cgroup limit", DOCTOR_DEGRADED,
	       "512 MiB left of 1 GiB, /cg/vm/memory.max");
	assert_non_null(strstr(find(report, "memory cgroup limit")->consequence,
			       "up to 512 MiB"));
	doctor_report_free(report);
	/* no limit where the host has less */
	host_tree_put(t, "/proc/meminfo", "MemAvailable: 262144 kB\n");
	report = run(t);
	expect(report, "memory cgroup limit", DOCTOR_OK,
	       "512 MiB left of 1 GiB, /cg/vm/memory.max");
	doctor_report_free(report);
}

static void test_leaves_nothing(void **state)
{
	struct host_tree *t = *state;
	struct doctor_report *report = run(t);

	assert_non_null(strstr(find(report, "reflink")->fact, "FICLONE"));
	doctor_report_free(report);
	assert_int_equal(rmdir(t->root), 0); /* empty */
	assert_int_equal(mkdir(t->root, 0700), 0);
}

static void test_unusable_directory(void **state)
{
	struct host_tree *t = *state;
	struct doctor_env env = {
		.kvm_path = "/dev/null",
		.directory = "/nonexistent",
		.root = t->root,
	};
	struct doctor_report *report;

	assert_int_equal(doctor_run(&report, &env), 0);
	assert_int_equal(find(report, "reflink")->status, DOCTOR_DEGRADED);
	assert_non_null(strstr(find(report, "KVM access")->fact, "not a KVM"));
	doctor_report_free(report);
}

/* On the host as it is: the short way and the long one agree. */
static void test_verdict_alone(void **state)
{
	struct doctor_report *report;
	struct err err = ERR_INIT;
	bool can = doctor_can_run_linux(&err);

	assert_int_equal(doctor_run(&report, &doctor_env_host), 0);
	assert_int_equal(can, report->can_run_linux);
	assert_int_equal(can, err.code == 0);
	if (!can)
		assert_true(strchr(err.text, ':') && strlen(err.text) > 10);
	assert_int_equal(can, doctor_can_run_linux(NULL));
	doctor_report_free(report);
}

/* ---- verdicts and output ---- */

static struct doctor_row sample_rows[] = {
	{ .group = "KVM", .name = "KVM access", .fact = "opened" },
	{ .group = "KVM",
	  .name = "kernel mode",
	  .status = DOCTOR_DEGRADED,
	  .fact = "emulated: a fact long enough that it does not fit one line "
		  "of any column",
	  .consequence = "Linux guests do not boot; a consequence of some "
			 "length too, with a-word-that-is-quite-long inside" },
	{ .group = "Host",
	  .name = "reflink",
	  .status = DOCTOR_MISSING,
	  .fact = "FICLONE: \"no\"\\" },
};

static struct doctor_report sample_report(void)
{
	struct doctor_report report = {
		.rows = sample_rows,
		.num_rows = ARRAY_SIZE(sample_rows),
	};

	for (size_t i = 0; i < ARRAY_SIZE(sample_rows); i++)
		sample_rows[i].blocks = DOCTOR_BLOCKS_NOTHING;
	return report;
}

static void test_judge(void **state)
{
	struct doctor_report report = sample_report();

	/* Being degraded or missing does not block by itself. */
	doctor_judge(&report);
	assert_true(report.can_run);
	assert_true(report.can_run_linux);
	assert_string_equal(report.reason, "");

	sample_rows[1].blocks = DOCTOR_BLOCKS_LINUX;
	doctor_judge(&report);
	assert_true(report.can_run);
	assert_false(report.can_run_linux);
	assert_non_null(strstr(report.reason, "kernel mode: emulated"));

	sample_rows[2].blocks = DOCTOR_BLOCKS_RUN;
	doctor_judge(&report);
	assert_false(report.can_run);
	assert_false(report.can_run_linux);
	assert_non_null(strstr(report.reason, "reflink"));
}

struct text {
	char buf[16384];
};

static void table(struct text *ret, const struct doctor_report *report,
		  unsigned int width, bool colour)
{
	FILE *f = fmemopen(ret->buf, sizeof(ret->buf), "w");

	doctor_print_table(f, report, width, colour);
	assert_int_equal(fclose(f), 0);
}

/* Longest line of all but the last one, which is not wrapped. */
static size_t longest_line(const char *text)
{
	size_t longest = 0;

	for (;;) {
		size_t len = strcspn(text, "\n");

		if (text[len] != '\n' || text[len + 1] == '\0')
			return longest;
		if (len > longest)
			longest = len;
		text += len + 1;
	}
}

/* Is every word of text in the output? */
static void expect_words(const char *out, const char *text)
{
	char copy[512], *save = NULL;

	snprintf(copy, sizeof(copy), "%s", text);
	for (char *w = strtok_r(copy, " ", &save); w;
	     w = strtok_r(NULL, " ", &save))
		assert_non_null(strstr(out, w));
}

static void test_table(void **state)
{
	static const unsigned int widths[] = { 1, 60, 80, 100, 140, 200 };
	struct doctor_report report = sample_report();
	struct text out;

	sample_rows[1].blocks = DOCTOR_BLOCKS_LINUX;
	doctor_judge(&report);
	for (size_t i = 0; i < ARRAY_SIZE(widths); i++) {
		const char *last;

		table(&out, &report, widths[i], false);
		if (widths[i] >= 60)
			assert_true(longest_line(out.buf) <= widths[i]);
		assert_null(strchr(out.buf, '\033'));
		for (size_t r = 0; r < report.num_rows; r++) {
			expect_words(out.buf, report.rows[r].fact);
			expect_words(out.buf, report.rows[r].consequence);
		}
		last = strstr(out.buf, "\nquire run: Linux guests do not work");
		assert_non_null(last);
		assert_int_equal(strcspn(last + 1, "\n") + 2, strlen(last));
	}
}

static void test_table_colour(void **state)
{
	struct doctor_report report = sample_report();
	struct text out;

	doctor_judge(&report);
	table(&out, &report, 100, true);
	assert_non_null(strstr(out.buf, "\033[32mok"));
	assert_non_null(strstr(out.buf, "\033[33mdegraded\033[0m"));
	assert_non_null(strstr(out.buf, "\033[31mmissing"));
	assert_non_null(strstr(out.buf, "\nquire run: works here\n"));
}

static void assert_member(json_t *object, const char *key, const char *value)
{
	assert_string_equal(json_string_value(json_object_get(object, key)),
			    value);
}

static void test_json(void **state)
{
	struct doctor_report report = sample_report();
	json_t *root, *checks, *row;
	struct text out;
	FILE *f = fmemopen(out.buf, sizeof(out.buf), "w");

	sample_rows[1].blocks = DOCTOR_BLOCKS_LINUX;
	doctor_judge(&report);
	assert_int_equal(doctor_print_json(f, &report), 0);
	fclose(f);
	root = json_loads(out.buf, 0, NULL);
	assert_non_null(root);
	assert_int_equal(json_object_size(root), 3);
	assert_true(json_is_true(json_object_get(root, "can_run")));
	assert_true(json_is_false(json_object_get(root, "can_run_linux")));
	checks = json_object_get(root, "checks");
	assert_int_equal(json_array_size(checks), 3);
	row = json_array_get(checks, 2);
	assert_int_equal(json_object_size(row), 5);
	assert_member(row, "group", "Host");
	assert_member(row, "name", "reflink");
	assert_member(row, "status", "missing");
	assert_member(row, "fact", "FICLONE: \"no\"\\");
	assert_member(row, "consequence", "");
	json_decref(root);
}

#define ON_TREE(fn) \
	cmocka_unit_test_setup_teardown(fn, host_tree_setup, host_tree_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_choice),
		cmocka_unit_test(test_field),
		cmocka_unit_test(test_has_word),
		cmocka_unit_test(test_cgroup_texts),
		ON_TREE(test_without_kvm),
		ON_TREE(test_memory_rows),
		ON_TREE(test_empty_pool),
		ON_TREE(test_host_rows),
		ON_TREE(test_memory_cgroup_limit),
		ON_TREE(test_leaves_nothing),
		ON_TREE(test_unusable_directory),
		cmocka_unit_test(test_verdict_alone),
		cmocka_unit_test(test_judge),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_table_colour),
		cmocka_unit_test(test_json),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
