/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench populate: what does filling guest memory ahead cost?
 *
 * Three sides, in turn, each on fresh memory of the same size and kind and with
 * as many threads: a bare MADV_POPULATE_WRITE of the threads' equal shares,
 * which is the floor; quire's host stage; and host and second stage together.
 * The medians of several runs are compared. What a second-stage entry costs
 * comes from the time spent in that stage and KVM's count of entries.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/thread.h"
#include "cli/bench.h"
#include "mem/host_fill.h"
#include "probe/probe.h"

#define DEFAULT_MIB  512u
#define DEFAULT_RUNS 3u
#define MAX_MIB	     (1ull << 24)
#define MAX_RUNS     25
#define MAX_THREADS  256

struct populate_args {
	uint64_t mib;
	uint64_t runs;
	struct bench_numbers threads;
	struct bench_choice pages;
	enum stage2_method stage2;
	bool json;
};

enum side { SIDE_BARE, SIDE_HOST, SIDE_FULL, NUM_SIDES };
static const char *const side_names[NUM_SIDES] = { "bare", "host", "full" };

struct row {
	enum ram_page page;
	unsigned int threads;
	enum stage2_method method;
	struct err reason;
	double seconds[NUM_SIDES][MAX_RUNS];
	double median[NUM_SIDES];
	/* Of the last full run. */
	uint64_t stage2_ns, entries_4k, entries_2m;
};

static void populate_help(void)
{
	printf("usage: quire bench populate [OPTION...]\n\n"
	       "Time the population of guest memory: a bare "
	       "MADV_POPULATE_WRITE with as many\nthreads, quire's host stage, "
	       "and host and second stage together.\n\n"
	       "  --mib M               memory to fill, in MiB (default %u)\n"
	       "  --threads LIST        numbers of threads, and of vCPUs "
	       "(default 1 and 2 and so\n"
	       "                        on, doubling, to one per CPU)\n"
	       "  --page LIST           host pages: 4k, thp, 2m (hugetlb); "
	       "default 4k,thp\n"
	       "  --stage2 METHOD       how the second stage is filled: auto, "
	       "ioctl, stub, none\n"
	       "  --runs N              runs of each side, in turn; medians "
	       "count (default %u)\n"
	       "  --json                one JSON object, times in seconds\n",
	       DEFAULT_MIB, DEFAULT_RUNS);
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct populate_args *args = ctx;
	int r, method = 0;

	switch (option) {
	case 'm':
		return bench_parse_number("--mib", value, MAX_MIB, &args->mib,
					  err);
	case 't':
		return bench_parse_numbers("--threads", value, MAX_THREADS,
					   &args->threads, err);
	case 'r':
		return bench_parse_number("--runs", value, MAX_RUNS,
					  &args->runs, err);
	case 'p':
		return bench_parse_choice("--page", value, bench_page_names,
					  BENCH_NUM_PAGES, &args->pages, err);
	case 's':
		r = bench_parse_one("--stage2", value, stage2_method_names,
				    ARRAY_SIZE(stage2_method_names), &method,
				    err);
		if (!r)
			args->stage2 = (enum stage2_method)method;
		return r;
	default:
		args->json = true;
		return 0;
	}
}

static const struct option populate_options[] = {
	{ "mib", required_argument, NULL, 'm' },
	{ "threads", required_argument, NULL, 't' },
	{ "page", required_argument, NULL, 'p' },
	{ "stage2", required_argument, NULL, 's' },
	{ "runs", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

/* ---- the floor ---- */

/* Of the test area: offsets in it. */
struct share {
	pthread_t thread;
	const struct probe *probe;
	uint64_t start, end;
	struct err err;
	int error;
};

static void *fill_share(void *arg)
{
	struct share *s = arg;
	const struct ram *ram = probe_ram(s->probe);
	uint64_t base = probe_layout(s->probe)->test_base;
	uint64_t at = 0; /* of the region, counted without the hole */

	for (unsigned int i = 0; !s->error && i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];
		uint64_t from = MAX(base + s->start, at);
		uint64_t to = MIN(base + s->end, at + region->size);

		if (from < to)
			s->error = host_fill(ram,
					     gpa_add(region->base, from - at),
					     to - from, &s->err);
		at += region->size;
	}
	return NULL;
}

/* One system call a thread; the caller's thread is one of them. */
static int bare(const struct probe *probe, unsigned int threads,
		struct err *err)
{
	struct share *shares = calloc(threads, sizeof(*shares));
	uint64_t bytes = probe_layout(probe)->test_bytes;
	uint64_t each = align_down(bytes / threads, PAGE_2M);
	unsigned int started = 1;
	int r = 0;

	if (!shares)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; i < threads; i++) {
		shares[i].probe = probe;
		shares[i].start = i * each;
		shares[i].end = i + 1 < threads ? (i + 1) * each : bytes;
	}
	for (; !r && started < threads; started += !r)
		r = thread_start(&shares[started].thread, &thread_class_tool,
				 "bare", fill_share, &shares[started]);
	if (r)
		err_errno(err, -r, "starting %u threads", threads);
	fill_share(&shares[0]);
	for (unsigned int i = 0; i < started; i++) {
		if (i)
			pthread_join(shares[i].thread, NULL);
		if (shares[i].error && !r) {
			r = shares[i].error;
			*err = shares[i].err;
		}
	}
	free(shares);
	return r;
}

/* ---- quire ---- */

/* The test area, or all that lies below it. */
static int fill(struct probe *probe, const struct populate_args *args,
		struct row *row, enum side side, bool test_area,
		struct populate_result *ret, struct err *err)
{
	uint64_t base = probe_layout(probe)->test_base;
	const struct probe_population how = {
		.mode = side == SIDE_FULL ? POPULATE_FULL : POPULATE_HOST,
		.stage2 = args->stage2,
		.threads = row->threads,
		.from = GPA(test_area ? base : 0),
		.len = test_area ? probe_ram(probe)->span - base : base,
	};
	enum stage2_method method;
	int r = probe_populate(probe, &how, ret, &method, &row->reason, err);

	if (!r && side == SIDE_FULL)
		row->method = method;
	return r;
}

/* Entries of each size, now. */
static void count_entries(struct probe *probe, struct probe_counters *ret)
{
	if (probe_read_counters(probe, ret) || !ret->has_pages)
		*ret = (struct probe_counters){ 0 };
}

/*
 * Only the test area is timed and counted: what lies below it, code and page
 * tables of the guest, has 4K entries whatever the host's pages are.
 */
static int run_timed(struct probe *probe, const struct populate_args *args,
		     struct row *row, enum side side, double *ret_s,
		     struct err *err)
{
	struct probe_counters before, after;
	struct populate_result res = { 0 };
	uint64_t began;
	int r = fill(probe, args, row, side, false, NULL, err);

	if (r)
		return r;
	count_entries(probe, &before);
	began = clock_now_ns();
	r = side == SIDE_BARE ? bare(probe, row->threads, err)
			      : fill(probe, args, row, side, true, &res, err);
	*ret_s = clock_ns_to_s(clock_now_ns() - began);
	if (r || side != SIDE_FULL)
		return r;
	count_entries(probe, &after);
	row->stage2_ns = res.second_stage_ns;
	row->entries_4k = after.pages_4k - before.pages_4k;
	row->entries_2m = after.pages_2m - before.pages_2m;
	return 0;
}

static int run_side(const struct populate_args *args, struct row *row,
		    enum side side, double *ret_s, struct err *err)
{
	const struct probe_config cfg = {
		.num_vcpus = row->threads,
		.test_bytes = args->mib * MIB,
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = row->page,
	};
	struct probe *probe = NULL;
	int r = probe_new(&probe, &cfg, err);

	if (r)
		return r;
	r = run_timed(probe, args, row, side, ret_s, err);
	probe_free(probe);
	return r;
}

/* The order turns with each run, so that no side is always the first. */
static int run_row(const struct populate_args *args, struct row *row,
		   struct err *err)
{
	for (uint64_t run = 0; run < args->runs; run++) {
		for (unsigned int i = 0; i < NUM_SIDES; i++) {
			unsigned int side = (unsigned int)(i + run) % NUM_SIDES;
			int r = run_side(args, row, (enum side)side,
					 &row->seconds[side][run], err);

			if (r)
				return r;
		}
	}
	for (unsigned int side = 0; side < NUM_SIDES; side++)
		row->median[side] = bench_median(row->seconds[side],
						 args->runs);
	return 0;
}

/* Nanoseconds for each entry made, 0 when none was. */
static double entry_ns(const struct row *row)
{
	uint64_t entries = row->entries_4k + row->entries_2m;

	return row->method != STAGE2_NONE && entries
		       ? (double)row->stage2_ns / (double)entries
		       : 0;
}

static double ratio(const struct row *row, enum side side)
{
	return row->median[SIDE_BARE] > 0
		       ? row->median[side] / row->median[SIDE_BARE]
		       : 0;
}

/* ---- output ---- */

static void print_header(const struct populate_args *args,
			 enum second_stage stage)
{
	printf("%llu MiB, medians of %llu runs; %s\n",
	       (unsigned long long)args->mib, (unsigned long long)args->runs,
	       bench_stage_text(stage));
	printf("%-5s %7s %9s %9s %9s %9s %9s %9s %12s\n", "page", "threads",
	       "bare s", "host s", "full s", "host/bare", "full/bare",
	       "full GiB/s", "ns per entry");
}

static void print_row(const struct populate_args *args, const struct row *row)
{
	char full[16] = "-", full_ratio[16] = "-", entry[48] = "-";

	if (row->method != STAGE2_NONE) {
		snprintf(full, sizeof(full), "%.3f", row->median[SIDE_FULL]);
		snprintf(full_ratio, sizeof(full_ratio), "%.3f",
			 ratio(row, SIDE_FULL));
		snprintf(entry, sizeof(entry), "%.0f %s", entry_ns(row),
			 row->entries_2m > row->entries_4k ? "2M" : "4K");
	}
	printf("%-5s %7u %9.3f %9.3f %9s %9.3f %9s %10.2f %12s\n",
	       ram_page_names[row->page], row->threads, row->median[SIDE_BARE],
	       row->median[SIDE_HOST], full, ratio(row, SIDE_HOST), full_ratio,
	       (double)args->mib / 1024 /
		       row->median[row->method == STAGE2_NONE ? SIDE_HOST
							      : SIDE_FULL],
	       entry);
	fflush(stdout);
}

/* Each number of threads against the first of the same page. */
static void print_scaling(const struct row *rows, unsigned int num)
{
	for (unsigned int i = 0; i < num; i++) {
		for (unsigned int j = 0; j < i; j++) {
			if (rows[j].page != rows[i].page)
				continue;
			printf("%s: %u threads fill host pages %.2f times as "
			       "fast as %u (bare: %.2f times)\n",
			       ram_page_names[rows[i].page], rows[i].threads,
			       rows[j].median[SIDE_HOST] /
				       rows[i].median[SIDE_HOST],
			       rows[j].threads,
			       rows[j].median[SIDE_BARE] /
				       rows[i].median[SIDE_BARE]);
			break;
		}
	}
}

static json_t *side_json(const struct populate_args *args,
			 const struct row *row, enum side side)
{
	json_t *runs = json_array();

	for (uint64_t i = 0; i < args->runs; i++)
		json_array_append_new(runs, json_real(row->seconds[side][i]));
	return json_pack("{s:f, s:o}", "median_s", row->median[side], "runs_s",
			 runs);
}

static json_t *row_json(const struct populate_args *args, const struct row *row)
{
	bool full = row->method != STAGE2_NONE;
	json_t *o = json_pack(
		"{s:s, s:i, s:I, s:s, s:f, s:o, s:o, s:I, s:I}", "page",
		ram_page_names[row->page], "threads", (int)row->threads, "mib",
		(json_int_t)args->mib, "stage2",
		stage2_method_names[row->method], "host_to_bare",
		ratio(row, SIDE_HOST), "full_to_bare",
		full ? json_real(ratio(row, SIDE_FULL)) : json_null(),
		"second_stage_entry_ns",
		full ? json_real(entry_ns(row)) : json_null(), "pages_4k",
		(json_int_t)row->entries_4k, "pages_2m",
		(json_int_t)row->entries_2m);

	for (unsigned int side = 0; o && side < NUM_SIDES; side++)
		json_object_set_new(o, side_names[side],
				    side_json(args, row, (enum side)side));
	return o;
}

static int print_json(const struct populate_args *args, enum second_stage stage,
		      const struct row *rows, unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, row_json(args, &rows[i]));
	return bench_print_json(&cmd_bench_populate,
				json_pack("{s:s, s:o}", "second_stage",
					  second_stage_names[stage], "results",
					  list));
}

/* ---- the command ---- */

static int run_rows(const struct populate_args *args, enum second_stage stage,
		    struct row *rows)
{
	struct err err = ERR_INIT;
	unsigned int num = 0;

	if (!args->json)
		print_header(args, stage);
	for (unsigned int i = 0; i < args->pages.num; i++) {
		for (unsigned int j = 0; j < args->threads.num; j++) {
			struct row *row = &rows[num++];

			row->page = (enum ram_page)args->pages.values[i];
			row->threads = (unsigned int)args->threads.values[j];
			row->method = STAGE2_NONE;
			if (run_row(args, row, &err))
				return cli_fail(&cmd_bench_populate, &err);
			if (!args->json)
				print_row(args, row);
		}
	}
	if (args->json)
		return print_json(args, stage, rows, num);
	if (rows[0].reason.code)
		printf("no second stage: %s\n", rows[0].reason.text);
	print_scaling(rows, num);
	return CLI_OK;
}

static void default_threads(struct bench_numbers *threads)
{
	unsigned int cpus = MIN(cpus_allowed(), (unsigned int)MAX_THREADS);

	for (unsigned int n = 1; n < cpus; n *= 2) {
		if (threads->num < BENCH_MAX_CHOICES - 1)
			threads->values[threads->num++] = n;
	}
	threads->values[threads->num++] = cpus;
}

static int check_host(const struct populate_args *args, struct err *err)
{
	struct probe_layout layout;
	struct hostmem host;
	unsigned int most = 1;
	int r;

	for (unsigned int i = 0; i < args->threads.num; i++)
		most = MAX(most, (unsigned int)args->threads.values[i]);
	r = probe_layout_compute(&layout, most, PROBE_GUEST_PAGE_2M,
				 args->mib * MIB, err);
	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     layout.ram_bytes, err);
	return r;
}

static int populate_bench(int argc, char **argv)
{
	struct populate_args args = {
		.mib = DEFAULT_MIB,
		.runs = DEFAULT_RUNS,
		.pages = { .values = { RAM_PAGE_4K, RAM_PAGE_THP }, .num = 2 },
		.stage2 = STAGE2_AUTO,
	};
	struct err err = ERR_INIT;
	enum second_stage stage;
	struct row *rows;
	int status = bench_read_options(&cmd_bench_populate, argc, argv,
					populate_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (!args.threads.num)
		default_threads(&args.threads);
	if (check_host(&args, &err) || bench_detect_stage(&stage, &err))
		return cli_fail(&cmd_bench_populate, &err);
	rows = calloc((size_t)args.pages.num * args.threads.num, sizeof(*rows));
	if (!rows) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_bench_populate, &err);
	}
	status = run_rows(&args, stage, rows);
	free(rows);
	return status;
}

const struct cli_command cmd_bench_populate = {
	.name = "bench populate",
	.summary = "filling guest memory ahead, against the bare system call",
	.help = populate_help,
	.run = populate_bench,
	.options = populate_options,
};
