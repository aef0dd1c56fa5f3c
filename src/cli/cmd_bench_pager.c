/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench pager: how fast are pages brought that somebody waits for?
 *
 * Threads touch pages that the pager has to bring, each its own share, one page
 * at a time, as vCPUs do; nothing is brought ahead or behind. What the source
 * takes for a page is chosen: nothing but the copy, or a wait as for a disk or
 * a network. Variants with another number of handlers take turns, and medians
 * are compared with the first.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/thread.h"
#include "cli/bench.h"
#include "mem/pager.h"

#define DEFAULT_MIB	256u
#define DEFAULT_RUNS	3u
#define DEFAULT_THREADS 4u
#define MAX_MIB		(1ull << 20)
#define MAX_RUNS	25
#define MAX_THREADS	64

struct pager_args {
	uint64_t mib, runs, threads, latency_us;
	struct bench_numbers handlers;
	struct bench_choice pages;
	bool json;
};

struct row {
	enum ram_page page;
	unsigned int handlers;
	double seconds[MAX_RUNS], median;
	uint64_t faults;		   /* of each run: one for each page */
	struct histogram_snapshot service; /* of all runs */
};

static void pager_help(void)
{
	printf("usage: quire bench pager [OPTION...]\n\n"
	       "Time how fast pages are brought that threads wait for, by the "
	       "number of the pager's\nhandlers.\n\n"
	       "  --mib M               memory to touch, in MiB (default %u)\n"
	       "  --threads N           threads that touch it (default %u)\n"
	       "  --handlers LIST       numbers of handlers (default 1,2,4)\n"
	       "  --latency-us N        what the source waits for each page "
	       "(default 0)\n"
	       "  --page LIST           host pages: 4k, thp, 2m (hugetlb); "
	       "default 4k\n"
	       "  --runs N              runs of each, in turn; medians count "
	       "(default %u)\n"
	       "  --json                one JSON object, times in seconds\n",
	       DEFAULT_MIB, DEFAULT_THREADS, DEFAULT_RUNS);
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct pager_args *args = ctx;

	switch (option) {
	case 'm':
		return bench_parse_number("--mib", value, MAX_MIB, &args->mib,
					  err);
	case 't':
		return bench_parse_number("--threads", value, MAX_THREADS,
					  &args->threads, err);
	case 'h':
		return bench_parse_numbers("--handlers", value,
					   PAGER_MAX_THREADS, &args->handlers,
					   err);
	case 'l':
		return bench_parse_number("--latency-us", value, 1000000,
					  &args->latency_us, err);
	case 'p':
		return bench_parse_choice("--page", value, bench_page_names,
					  BENCH_NUM_PAGES, &args->pages, err);
	case 'r':
		return bench_parse_number("--runs", value, MAX_RUNS,
					  &args->runs, err);
	default:
		args->json = true;
		return 0;
	}
}

static const struct option pager_options[] = {
	{ "mib", required_argument, NULL, 'm' },
	{ "threads", required_argument, NULL, 't' },
	{ "handlers", required_argument, NULL, 'h' },
	{ "latency-us", required_argument, NULL, 'l' },
	{ "page", required_argument, NULL, 'p' },
	{ "runs", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

/* ---- the source ---- */

static int extent(void *ctx, struct gpa gpa, uint64_t len,
		  enum mem_content *ret_content, uint64_t *ret_len)
{
	*ret_content = MEM_CONTENT_DATA;
	*ret_len = len;
	return 0;
}

static int read_page(void *ctx, struct gpa gpa, void *buf, uint64_t len,
		     struct err *err)
{
	const struct pager_args *args = ctx;
	struct timespec wait = {
		.tv_sec = (time_t)(args->latency_us / 1000000),
		.tv_nsec = (long)(args->latency_us % 1000000 * 1000),
	};

	if (args->latency_us)
		nanosleep(&wait, NULL);
	memset(buf, 0x5a, len);
	return 0;
}

static const struct mem_source_ops source_ops = {
	.name = "bench",
	.extent = extent,
	.read = read_page,
};

/* ---- one run ---- */

struct share {
	pthread_t thread;
	const struct ram *ram;
	uint64_t start, end;
	uint64_t wrong; /* pages */
};

static void *touch_share(void *arg)
{
	struct share *s = arg;

	for (uint64_t at = s->start; at < s->end; at += PAGE_4K)
		s->wrong += *(volatile char *)(s->ram->base + at) != 0x5a;
	return NULL;
}

static int touch_all(const struct ram *ram, const struct pager_args *args,
		     double *ret_s, struct err *err)
{
	struct share shares[MAX_THREADS] = { { 0 } };
	uint64_t each = align_down(args->mib * MIB / args->threads, PAGE_4K);
	uint64_t began = clock_now_ns(), wrong = 0;
	unsigned int started = 0;
	int r = 0;

	for (; !r && started < args->threads; started += !r) {
		struct share *s = &shares[started];

		s->ram = ram;
		s->start = started * each;
		s->end = started + 1 < args->threads ? s->start + each
						     : args->mib * MIB;
		r = thread_start(&s->thread, &thread_class_tool, "touch",
				 touch_share, s);
	}
	for (unsigned int i = 0; i < started; i++) {
		pthread_join(shares[i].thread, NULL);
		wrong += shares[i].wrong;
	}
	*ret_s = clock_ns_to_s(clock_now_ns() - began);
	if (r)
		return err_errno(err, -r, "starting %llu threads",
				 (unsigned long long)args->threads);
	if (wrong)
		return err_set(err, EIO, "%llu pages came wrong",
			       (unsigned long long)wrong);
	return 0;
}

static int run_pager(struct ram *ram, const struct pager_args *args,
		     struct row *row, double *ret_s, struct err *err)
{
	const struct mem_source source = { &source_ops, (void *)args };
	const struct pager_config cfg = {
		.ram = ram,
		.source = &source,
		.handlers = row->handlers,
		.fillers = 1, /* that take complete blocks out */
	};
	struct pager_stats stats;
	struct pager *pager;
	int r = pager_new(&pager, &cfg, err);

	if (r)
		return r;
	r = touch_all(ram, args, ret_s, err);
	pager_read_stats(pager, &stats);
	row->faults = ram_size(ram) / ram_page_bytes(ram->page);
	histogram_merge(&row->service, &stats.service);
	pager_free(pager);
	return r;
}

static int run_once(const struct pager_args *args, struct row *row,
		    double *ret_s, struct err *err)
{
	const struct ram_config cfg = {
		.size_bytes = args->mib * MIB,
		.hole_start = align_up(args->mib * MIB, GIB),
		.hole_end = align_up(args->mib * MIB, GIB) + GIB,
		.page = row->page,
	};
	struct ram ram;
	int r = ram_init(&ram, &cfg, err);

	if (r)
		return r;
	r = run_pager(&ram, args, row, ret_s, err);
	ram_fini(&ram);
	return r;
}

/* ---- output ---- */

static double rate(const struct row *row)
{
	return row->median > 0 ? (double)row->faults / row->median : 0;
}

static void print_rows(const struct pager_args *args, const struct row *rows,
		       unsigned int num)
{
	printf("%llu MiB, %llu threads, source waits %llu us for each page, "
	       "medians of %llu runs\n",
	       (unsigned long long)args->mib, (unsigned long long)args->threads,
	       (unsigned long long)args->latency_us,
	       (unsigned long long)args->runs);
	printf("%-5s %8s %9s %9s %10s %10s %10s %10s\n", "page", "handlers",
	       "seconds", "faults", "faults/s", "to first", "half in",
	       "99 % in");
	for (unsigned int i = 0; i < num; i++) {
		const struct row *row = &rows[i];
		char half[32], most[32];

		printf("%-5s %8u %9.3f %9llu %10.0f %10.2f %10s %10s\n",
		       ram_page_names[row->page], row->handlers, row->median,
		       (unsigned long long)row->faults, rate(row),
		       rate(row) / rate(&rows[i - i % args->handlers.num]),
		       bench_format_ns(histogram_percentile(&row->service, 50),
				       half, sizeof(half)),
		       bench_format_ns(histogram_percentile(&row->service, 99),
				       most, sizeof(most)));
	}
}

static json_t *row_json(const struct pager_args *args, const struct row *row)
{
	json_t *runs = json_array();

	for (uint64_t i = 0; i < args->runs; i++)
		json_array_append_new(runs, json_real(row->seconds[i]));
	return json_pack("{s:s, s:i, s:I, s:f, s:f, s:o, s:o}", "page",
			 ram_page_names[row->page], "handlers",
			 (int)row->handlers, "faults", (json_int_t)row->faults,
			 "median_s", row->median, "faults_per_s", rate(row),
			 "runs_s", runs, "service",
			 json_histogram(&row->service));
}

static int print_json(const struct pager_args *args, const struct row *rows,
		      unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, row_json(args, &rows[i]));
	return bench_print_json(
		&cmd_bench_pager,
		json_pack("{s:I, s:I, s:I, s:o}", "mib", (json_int_t)args->mib,
			  "threads", (json_int_t)args->threads, "latency_us",
			  (json_int_t)args->latency_us, "results", list));
}

/* ---- the command ---- */

static unsigned int make_rows(const struct pager_args *args, struct row *rows)
{
	unsigned int num = 0;

	for (unsigned int i = 0; i < args->pages.num; i++) {
		for (unsigned int j = 0; j < args->handlers.num; j++) {
			rows[num].page = (enum ram_page)args->pages.values[i];
			rows[num++].handlers =
				(unsigned int)args->handlers.values[j];
		}
	}
	return num;
}

/* The order turns with each run, so that no variant is always the first. */
static int run_rows(const struct pager_args *args, struct row *rows,
		    unsigned int num, struct err *err)
{
	for (uint64_t run = 0; run < args->runs; run++) {
		for (unsigned int i = 0; i < num; i++) {
			struct row *row = &rows[(i + run) % num];
			int r = run_once(args, row, &row->seconds[run], err);

			if (r)
				return r;
		}
	}
	for (unsigned int i = 0; i < num; i++)
		rows[i].median = bench_median(rows[i].seconds, args->runs);
	return 0;
}

static int pager_bench(int argc, char **argv)
{
	struct pager_args args = {
		.mib = DEFAULT_MIB,
		.runs = DEFAULT_RUNS,
		.threads = DEFAULT_THREADS,
		.handlers = { .values = { 1, 2, 4 }, .num = 3 },
		.pages = { .values = { RAM_PAGE_4K }, .num = 1 },
	};
	struct err err = ERR_INIT;
	struct hostmem host;
	struct row *rows;
	unsigned int num;
	int status = bench_read_options(&cmd_bench_pager, argc, argv,
					pager_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	hostmem_read(&host, "");
	for (unsigned int i = 0; i < args.pages.num; i++) {
		if (bench_check_page(&host, (enum ram_page)args.pages.values[i],
				     args.mib * MIB, &err))
			return cli_fail(&cmd_bench_pager, &err);
	}
	rows = calloc((size_t)args.pages.num * args.handlers.num + 1,
		      sizeof(*rows));
	if (!rows) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_bench_pager, &err);
	}
	num = make_rows(&args, rows);
	if (run_rows(&args, rows, num, &err))
		status = cli_fail(&cmd_bench_pager, &err);
	else if (args.json)
		status = print_json(&args, rows, num);
	else
		print_rows(&args, rows, num);
	free(rows);
	return status;
}

const struct cli_command cmd_bench_pager = {
	.name = "bench pager",
	.summary = "pages brought on demand, by number of handlers",
	.help = pager_help,
	.run = pager_bench,
	.options = pager_options,
};
