/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench dirty: what does it cost to know which pages a guest writes?
 *
 * For each variant (host page kind x method) a fresh VM with all memory there
 * before. Its vCPUs write one word to each 4K page of their share: without
 * tracking, then with it, one pass in each round, then as many passes while
 * another thread harvests without a pause. Medians over the rounds.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/thread.h"
#include "cli/bench.h"
#include "probe/tracked.h"
#include "stage2/detect.h"

#define DEFAULT_VCPUS	     1u
#define DEFAULT_MIB_PER_VCPU 256u
#define MAX_MIB_PER_VCPU     (1ull << 24)
#define DEFAULT_ROUNDS	     5u
#define MAX_ROUNDS	     BENCH_MAX_RUNS

/* Taken at once: 1 GiB. */
#define TAKE_PAGES (PAGE_1G / PAGE_4K)

struct dirty_args {
	unsigned int vcpus;
	uint64_t mib_per_vcpu, rounds, ring_entries;
	struct bench_choice pages;   /* enum ram_page */
	struct bench_choice methods; /* enum dirty_method */
	bool json;
};

struct dirty_result {
	enum ram_page page;
	enum dirty_method method;
	uint64_t ram_bytes;
	uint32_t ring_entries;
	double first_start_s, start_s, first_round_s, stop_s;
	double plain_pass_s, tracked_pass_s, after_pass_s;
	double idle_round_s, round_s;
	double log_ns_per_page, clear_ns_per_page; /* of harvested pages */
	double harvested_passes_s;		   /* all of them */
	uint64_t ring_full;
	double ring_full_per_pass;
};

/* What a variant works with. */
struct dirty_run {
	const struct dirty_args *args;
	struct dirty_result *res;
	struct probe_tracked pt;
	struct probe_outcome *outcomes;
	uint64_t *bits;
	uint64_t value; /* to write next: every pass changes every word */
	_Atomic bool stop_harvesting;
	int harvest_error;
};

static void dirty_help(void)
{
	printf("usage: quire bench dirty [OPTION...]\n\n"
	       "Measure dirty page tracking: all vCPUs write one word per 4K "
	       "page of their share,\nwithout and with tracking, and while it "
	       "is harvested. Each variant runs in a VM\nof its own.\n\n"
	       "  --vcpus N             vCPUs (default %u)\n"
	       "  --mib-per-vcpu M      memory written by each, in MiB "
	       "(default %u)\n"
	       "  --page LIST           host pages: 4k, thp, 2m (hugetlb); "
	       "default thp\n"
	       "  --method LIST         bitmap, ring; default both\n"
	       "  --ring-entries N      of each vCPU's ring, a power of two "
	       "(default %u)\n"
	       "  --rounds N            passes of each kind (default %u)\n"
	       "  --json                one JSON object, times in seconds\n\n"
	       "Lists are comma-separated; every page is combined with every "
	       "method.\n",
	       DEFAULT_VCPUS, DEFAULT_MIB_PER_VCPU, DIRTY_RING_DEFAULT_ENTRIES,
	       DEFAULT_ROUNDS);
}

static const char *const method_names[] = {
	[DIRTY_BITMAP] = "bitmap",
	[DIRTY_RING] = "ring",
};

static int set_ring_entries(struct dirty_args *args, const char *value,
			    struct err *err)
{
	uint64_t number = 0;
	int r = bench_parse_number("--ring-entries", value,
				   DIRTY_RING_MAX_ENTRIES, &number, err);

	if (!r && !is_pow2(number))
		return err_set(err, EINVAL,
			       "--ring-entries %s: not a power of two", value);
	if (!r)
		args->ring_entries = number;
	return r;
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct dirty_args *args = ctx;
	uint64_t number = 0;
	int r;

	switch (option) {
	case 'v':
		r = bench_parse_number("--vcpus", value, PROBE_MAX_VCPUS,
				       &number, err);
		if (!r)
			args->vcpus = (unsigned int)number;
		return r;
	case 'm':
		return bench_parse_number("--mib-per-vcpu", value,
					  MAX_MIB_PER_VCPU, &args->mib_per_vcpu,
					  err);
	case 'p':
		return bench_parse_choice("--page", value, bench_page_names,
					  BENCH_NUM_PAGES, &args->pages, err);
	case 'd':
		return bench_parse_choice("--method", value, method_names,
					  ARRAY_SIZE(method_names),
					  &args->methods, err);
	case 'e':
		return set_ring_entries(args, value, err);
	case 'r':
		return bench_parse_number("--rounds", value, MAX_ROUNDS,
					  &args->rounds, err);
	default:
		args->json = true;
		return 0;
	}
}

static const struct option dirty_options[] = {
	{ "vcpus", required_argument, NULL, 'v' },
	{ "mib-per-vcpu", required_argument, NULL, 'm' },
	{ "page", required_argument, NULL, 'p' },
	{ "method", required_argument, NULL, 'd' },
	{ "ring-entries", required_argument, NULL, 'e' },
	{ "rounds", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

static uint64_t test_bytes(const struct dirty_args *args)
{
	return args->vcpus * args->mib_per_vcpu * MIB;
}

static int check_host(const struct dirty_args *args, struct err *err)
{
	struct probe_layout layout;
	struct hostmem host;
	int r = probe_layout_compute(&layout, args->vcpus, PROBE_GUEST_PAGE_2M,
				     test_bytes(args), err);

	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     layout.ram_bytes, err);
	return r;
}

/* ---- what is measured ---- */

/* A minute, and a millisecond per page written. */
static uint64_t timeout_ns(const struct dirty_args *args, uint64_t passes)
{
	return 60 * NSEC_PER_SEC +
	       passes * (test_bytes(args) / PAGE_4K) * 1000000;
}

/* All vCPUs, so many passes; *ret_s is the slowest one's time. */
static int run_passes(struct dirty_run *run, uint64_t passes, double *ret_s,
		      struct err *err)
{
	struct probe_command write = {
		.op = PROBE_OP_WRITE,
		.len = test_bytes(run->args),
		.stride = PAGE_4K,
		.seed = ++run->value,
		.passes = passes,
	};
	uint64_t slowest = 0;
	int r = probe_run_all(run->pt.probe, &write,
			      timeout_ns(run->args, passes), run->outcomes,
			      err);

	if (r)
		return r;
	for (unsigned int i = 0; i < run->args->vcpus; i++)
		slowest = MAX(slowest, run->outcomes[i].guest_ns);
	*ret_s = clock_ns_to_s(slowest);
	return 0;
}

/* The median of args->rounds single passes. */
static int median_pass(struct dirty_run *run, double *ret_s, struct err *err)
{
	double times[MAX_ROUNDS] = { 0 };

	for (uint64_t i = 0; i < run->args->rounds; i++) {
		int r = run_passes(run, 1, &times[i], err);

		if (r)
			return r;
	}
	*ret_s = bench_median(times, run->args->rounds);
	return 0;
}

static int take_all(struct dirty_run *run, struct err *err)
{
	const struct ram *ram = probe_ram(run->pt.probe);

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t pages = ram_region_pages(&ram->regions[i]);

		for (uint64_t at = 0; at < pages; at += TAKE_PAGES) {
			int64_t n = dirty_take(run->pt.tracker, i, at,
					       MIN(TAKE_PAGES, pages - at),
					       run->bits);

			if (n < 0)
				return err_errno(err, (int)-n,
						 "taking dirty pages");
		}
	}
	return 0;
}

/* Harvest, and take everything (nobody copies it). */
static int run_round(struct dirty_run *run, double *ret_s, struct err *err)
{
	uint64_t began = clock_now_ns();
	int r = dirty_harvest(run->pt.tracker, NULL, err);

	if (!r)
		r = take_all(run, err);
	*ret_s = clock_ns_to_s(clock_now_ns() - began);
	return r;
}

/* Begin and end; a pass in between maps what that zapped. */
static int measure_starts(struct dirty_run *run, struct err *err)
{
	double starts[MAX_ROUNDS] = { 0 }, stops[MAX_ROUNDS] = { 0 }, unused;
	struct dirty_stats stats;
	uint64_t began;
	int r;

	for (uint64_t i = 0; i < run->args->rounds; i++) {
		r = probe_tracked_start(&run->pt, err);
		if (r)
			return r;
		dirty_stats_read(run->pt.tracker, &stats);
		starts[i] = clock_ns_to_s(stats.start_ns);
		began = clock_now_ns();
		dirty_stop(run->pt.tracker);
		stops[i] = clock_ns_to_s(clock_now_ns() - began);
		r = run_passes(run, 1, &unused, err);
		if (r)
			return r;
	}
	run->res->first_start_s = starts[0];
	run->res->start_s = bench_median(starts, run->args->rounds);
	run->res->stop_s = bench_median(stops, run->args->rounds);
	return 0;
}

static int measure_rounds(struct dirty_run *run, struct err *err)
{
	double passes[MAX_ROUNDS], rounds[MAX_ROUNDS], idles[MAX_ROUNDS];
	struct dirty_stats before, after;
	uint64_t num = run->args->rounds;
	double pages;
	int r = 0;

	dirty_stats_read(run->pt.tracker, &before);
	for (uint64_t i = 0; !r && i < num; i++) {
		r = run_passes(run, 1, &passes[i], err);
		if (!r)
			r = run_round(run, &rounds[i], err);
	}
	dirty_stats_read(run->pt.tracker, &after);
	for (uint64_t i = 0; !r && i < num; i++)
		r = run_round(run, &idles[i], err);
	if (r)
		return r;
	pages = (double)MAX(after.pages_kvm - before.pages_kvm, (uint64_t)1);
	run->res->tracked_pass_s = bench_median(passes, num);
	run->res->round_s = bench_median(rounds, num);
	run->res->idle_round_s = bench_median(idles, num);
	run->res->log_ns_per_page = (double)(after.log_ns - before.log_ns) /
				    pages;
	run->res->clear_ns_per_page =
		(double)(after.clear_ns - before.clear_ns) / pages;
	run->res->ring_full_per_pass =
		(double)(after.ring_full - before.ring_full) / (double)num;
	return 0;
}

static void *harvester(void *arg)
{
	struct dirty_run *run = arg;
	struct err err = ERR_INIT;
	double unused;

	while (!atomic_load(&run->stop_harvesting) && !run->harvest_error)
		run->harvest_error = run_round(run, &unused, &err);
	return NULL;
}

static int measure_harvested(struct dirty_run *run, struct err *err)
{
	pthread_t thread;
	int r = thread_start(&thread, &thread_class_tool, "harvester",
			     harvester, run);

	if (r)
		return err_errno(err, -r, "starting the harvester");
	r = run_passes(run, run->args->rounds, &run->res->harvested_passes_s,
		       err);
	atomic_store(&run->stop_harvesting, true);
	pthread_join(thread, NULL);
	if (!r && run->harvest_error)
		return err_errno(err, -run->harvest_error, "harvesting");
	return r;
}

static int populate(struct dirty_run *run, struct err *err)
{
	struct probe_population how = {
		.mode = POPULATE_FULL,
		.stage2 = STAGE2_AUTO,
	};
	struct populate_result unused;
	enum stage2_method method;
	double pass_s;
	int r = probe_populate(run->pt.probe, &how, &unused, &method, NULL,
			       err);

	if (!r)
		r = probe_warm_up(run->pt.probe, err);
	/* What population did not map is now. */
	return r ? r : run_passes(run, 1, &pass_s, err);
}

static int measure(struct dirty_run *run, struct err *err)
{
	struct dirty_result *res = run->res;
	struct dirty_stats stats;
	int r = populate(run, err);

	if (!r)
		r = median_pass(run, &res->plain_pass_s, err);
	if (!r)
		r = measure_starts(run, err);
	if (!r)
		r = probe_tracked_start(&run->pt, err);
	if (!r)
		r = run_round(run, &res->first_round_s, err);
	if (!r)
		r = measure_rounds(run, err);
	if (!r)
		r = measure_harvested(run, err);
	if (r)
		return r;
	dirty_stats_read(run->pt.tracker, &stats);
	res->ring_full = stats.ring_full;
	dirty_stop(run->pt.tracker);
	return run_passes(run, 1, &res->after_pass_s, err);
}

static int run_in_vm(struct dirty_run *run, struct err *err)
{
	const struct dirty_args *args = run->args;
	struct probe_config cfg = {
		.num_vcpus = args->vcpus,
		.test_bytes = test_bytes(args),
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = run->res->page,
	};
	struct dirty_config dirty = {
		.method = run->res->method,
		.memory_bytes = cfg.test_bytes,
		.ring_entries = (uint32_t)args->ring_entries,
	};
	int r = probe_tracked_init(&run->pt, &cfg, &dirty, err);

	if (r)
		return r;
	run->res->ram_bytes = ram_size(probe_ram(run->pt.probe));
	run->res->ring_entries = dirty_ring_entries(run->pt.tracker);
	r = measure(run, err);
	probe_tracked_fini(&run->pt);
	return r;
}

static int run_variant(const struct dirty_args *args, struct dirty_result *res,
		       struct err *err)
{
	struct dirty_run run = {
		.args = args,
		.res = res,
		.outcomes = calloc(args->vcpus, sizeof(*run.outcomes)),
		.bits = calloc(TAKE_PAGES / 64, sizeof(*run.bits)),
	};
	int r;

	if (run.outcomes && run.bits)
		r = run_in_vm(&run, err);
	else
		r = err_set(err, ENOMEM, "out of memory");
	free(run.outcomes);
	free(run.bits);
	return r;
}

/* ---- output ---- */

static double gib(const struct dirty_result *res)
{
	return (double)res->ram_bytes / (double)GIB;
}

/*
 * Everything that is told of a variant, in seconds or nanoseconds for --json;
 * the table has it in its own unit, `scale` of them.
 */
struct dirty_figure {
	const char *name;  /* of the JSON field */
	const char *label; /* of the table's row */
	double value, scale;
};

#define NUM_FIGURES 17

static void figures(const struct dirty_args *args,
		    const struct dirty_result *res,
		    struct dirty_figure ret[NUM_FIGURES])
{
	double pages = (double)args->mib_per_vcpu * 256;
	double harvested = res->harvested_passes_s / (double)args->rounds;
	double dearer = res->tracked_pass_s - res->plain_pass_s;
	const struct dirty_figure all[NUM_FIGURES] = {
		{ "first_start_s", "first start, ms", res->first_start_s, 1e3 },
		{ "start_s", "start, ms", res->start_s, 1e3 },
		{ "start_s_per_gib", "start, ms per GiB",
		  res->start_s / gib(res), 1e3 },
		{ "first_round_s", "first round, ms", res->first_round_s, 1e3 },
		{ "plain_pass_s", "pass without tracking, ms",
		  res->plain_pass_s, 1e3 },
		{ "tracked_pass_s", "pass with tracking, ms",
		  res->tracked_pass_s, 1e3 },
		{ "ns_per_dirtied_page", "dearer by, ns per page",
		  dearer * 1e9 / pages, 1 },
		{ "round_s", "round, ms", res->round_s, 1e3 },
		{ "idle_round_s", "round of a still guest, ms",
		  res->idle_round_s, 1e3 },
		{ "log_ns_per_page", "reading the log, ns per page",
		  res->log_ns_per_page, 1 },
		{ "clear_ns_per_page", "clear or reset, ns per page",
		  res->clear_ns_per_page, 1 },
		{ "ring_full_per_pass", "ring full, times a pass",
		  res->ring_full_per_pass, 1 },
		{ "harvested_pass_s", "pass while harvested, ms", harvested,
		  1e3 },
		{ "slowdown", "... times one without tracking",
		  harvested / res->plain_pass_s, 1 },
		{ "harvest_slowdown", "... times one with tracking",
		  harvested / res->tracked_pass_s, 1 },
		{ "stop_s", "stop, ms", res->stop_s, 1e3 },
		{ "after_pass_s", "first pass after it, ms", res->after_pass_s,
		  1e3 },
	};

	memcpy(ret, all, sizeof(all));
}

static json_t *result_json(const struct dirty_args *args,
			   const struct dirty_result *res)
{
	struct dirty_figure list[NUM_FIGURES];
	json_t *o = json_pack("{s:s, s:s, s:i, s:I, s:I, s:i, s:I}", "page",
			      ram_page_names[res->page], "method",
			      dirty_method_names[res->method], "vcpus",
			      (int)args->vcpus, "mib_per_vcpu",
			      (json_int_t)args->mib_per_vcpu, "ram_bytes",
			      (json_int_t)res->ram_bytes, "ring_entries",
			      (int)res->ring_entries, "ring_full",
			      (json_int_t)res->ring_full);

	figures(args, res, list);
	for (size_t i = 0; o && i < NUM_FIGURES; i++)
		json_object_set_new(o, list[i].name, json_real(list[i].value));
	return o;
}

static json_t *results_json(const struct dirty_args *args,
			    enum second_stage stage,
			    const struct dirty_result *results,
			    unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, result_json(args, &results[i]));
	return json_pack("{s:s, s:I, s:o}", "second_stage",
			 second_stage_names[stage], "rounds",
			 (json_int_t)args->rounds, "results", list);
}

static void print_table(const struct dirty_args *args, enum second_stage stage,
			const struct dirty_result *results, unsigned int num)
{
	struct dirty_figure list[NUM_FIGURES];

	printf("%u vCPU%s x %llu MiB, one write per 4K page, medians of %llu; "
	       "%s\n%-31s",
	       args->vcpus, args->vcpus == 1 ? "" : "s",
	       (unsigned long long)args->mib_per_vcpu,
	       (unsigned long long)args->rounds, bench_stage_text(stage), "");
	for (unsigned int i = 0; i < num; i++)
		printf(" %4s %-6s", ram_page_names[results[i].page],
		       dirty_method_names[results[i].method]);
	printf("\n");
	for (unsigned int f = 0; f < NUM_FIGURES; f++) {
		for (unsigned int i = 0; i < num; i++) {
			figures(args, &results[i], list);
			if (!i)
				printf("%-31s", list[f].label);
			printf(" %11.*f",
			       list[f].value * list[f].scale < 100 ? 3 : 0,
			       list[f].value * list[f].scale);
		}
		printf("\n");
	}
}

static int run_variants(const struct dirty_args *args, enum second_stage stage)
{
	struct dirty_result results[BENCH_MAX_CHOICES * BENCH_MAX_CHOICES];
	struct err err = ERR_INIT;
	unsigned int num = 0;

	for (unsigned int i = 0; i < args->pages.num; i++) {
		for (unsigned int j = 0; j < args->methods.num; j++) {
			struct dirty_result *res = &results[num++];

			*res = (struct dirty_result){
				.page = (enum ram_page)args->pages.values[i],
				.method = (enum dirty_method)
						  args->methods.values[j],
			};
			if (run_variant(args, res, &err))
				return cli_fail(&cmd_bench_dirty, &err);
		}
	}
	if (!args->json) {
		print_table(args, stage, results, num);
		return CLI_OK;
	}
	return bench_print_json(&cmd_bench_dirty,
				results_json(args, stage, results, num));
}

static int dirty_run(int argc, char **argv)
{
	struct dirty_args args = {
		.vcpus = DEFAULT_VCPUS,
		.mib_per_vcpu = DEFAULT_MIB_PER_VCPU,
		.rounds = DEFAULT_ROUNDS,
		.pages = { .values = { RAM_PAGE_THP }, .num = 1 },
		.methods = { .values = { DIRTY_BITMAP, DIRTY_RING }, .num = 2 },
	};
	struct err err = ERR_INIT;
	enum second_stage stage;
	int status = bench_read_options(&cmd_bench_dirty, argc, argv,
					dirty_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (check_host(&args, &err) || bench_detect_stage(&stage, &err))
		return cli_fail(&cmd_bench_dirty, &err);
	return run_variants(&args, stage);
}

const struct cli_command cmd_bench_dirty = {
	.name = "bench dirty",
	.summary = "what dirty page tracking costs",
	.help = dirty_help,
	.run = dirty_run,
	.options = dirty_options,
};
