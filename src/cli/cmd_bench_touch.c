/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench touch: what does a guest pay for using memory the first time?
 *
 * For each variant (host page kind x population) a fresh VM whose vCPUs,
 * started together, write one word to each 4K page of their share, twice. The
 * second pass pays for nothing but the writes, so the ratio of the two is the
 * price of the faults, and KVM's statistics say how many there were.
 *
 * --histogram repeats each variant's first pass in a VM of its own with every
 * write timed. Not in the same one: reading the clock twice takes longer than
 * a write that does not fault, and would flatter the ratio.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/json.h"
#include "cli/bench.h"
#include "mem/hostmem.h"
#include "mem/populate.h"
#include "probe/probe.h"
#include "stage2/detect.h"

#define DEFAULT_VCPUS	     1u
#define DEFAULT_MIB_PER_VCPU 256u
#define MAX_MIB_PER_VCPU     (1ull << 24)

/* none, host, full: what is done before the guest runs. */
#define TOUCH_NUM_POPULATES (POPULATE_FULL + 1)

struct touch_args {
	unsigned int vcpus;
	uint64_t mib_per_vcpu;
	struct bench_choice pages;     /* enum ram_page */
	struct bench_choice populates; /* enum populate_mode */
	enum probe_guest_page guest_page;
	enum stage2_method stage2;
	unsigned int threads; /* of population; 0: one per CPU */
	bool histogram;
	bool json;
};

struct touch_result {
	enum ram_page page;
	enum populate_mode populate;
	enum stage2_method method; /* that filled the second stage */
	struct err reason;	   /* FULL came to HOST because */
	double populate_s, first_s, second_s;
	bool has_faults;
	uint64_t faults;
	struct probe_counters after;	       /* first pass: leaves by size */
	struct histogram_snapshot first_touch; /* --histogram */
};

static void touch_help(void)
{
	printf("usage: quire bench touch [OPTION...]\n\n"
	       "Time a guest's first use of its memory: all vCPUs write one "
	       "word per 4K page of\ntheir share, in two passes. Each variant "
	       "runs in a VM of its own.\n\n"
	       "  --vcpus N             vCPUs (default %u)\n"
	       "  --mib-per-vcpu M      memory written by each, in MiB "
	       "(default %u)\n"
	       "  --page LIST           host pages: 4k, thp, 2m (hugetlb); "
	       "default thp\n"
	       "  --populate LIST       fill before the guest runs: none, "
	       "host, full (host pages\n"
	       "                        and second stage); default "
	       "none,host,full\n"
	       "  --stage2 METHOD       how full fills the second stage: auto, "
	       "ioctl, stub, none\n"
	       "  --threads N           of population (default: one per CPU)\n"
	       "  --guest-page 4k|2m    pages of the guest's own tables "
	       "(default 2m)\n"
	       "  --histogram           once more for each, with every first "
	       "write timed\n"
	       "  --json                one JSON object, times in seconds\n\n"
	       "Lists are comma-separated; every page is combined with every "
	       "populate.\n"
	       "second-stage faults: page faults KVM handled during the first "
	       "pass.\n",
	       DEFAULT_VCPUS, DEFAULT_MIB_PER_VCPU);
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct touch_args *args = ctx;
	uint64_t number = 0;
	int r, page = 0, method = 0;

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
	case 'o':
		return bench_parse_choice("--populate", value,
					  populate_mode_names,
					  TOUCH_NUM_POPULATES, &args->populates,
					  err);
	case 's':
		r = bench_parse_one("--stage2", value, stage2_method_names,
				    ARRAY_SIZE(stage2_method_names), &method,
				    err);
		if (!r)
			args->stage2 = (enum stage2_method)method;
		return r;
	case 't':
		r = bench_parse_number("--threads", value, 256, &number, err);
		if (!r)
			args->threads = (unsigned int)number;
		return r;
	case 'g':
		r = bench_parse_one("--guest-page", value,
				    probe_guest_page_names,
				    ARRAY_SIZE(probe_guest_page_names), &page,
				    err);
		if (!r)
			args->guest_page = (enum probe_guest_page)page;
		return r;
	case 'h':
		args->histogram = true;
		return 0;
	default:
		args->json = true;
		return 0;
	}
}

static const struct option touch_options[] = {
	{ "vcpus", required_argument, NULL, 'v' },
	{ "mib-per-vcpu", required_argument, NULL, 'm' },
	{ "page", required_argument, NULL, 'p' },
	{ "populate", required_argument, NULL, 'o' },
	{ "guest-page", required_argument, NULL, 'g' },
	{ "stage2", required_argument, NULL, 's' },
	{ "threads", required_argument, NULL, 't' },
	{ "histogram", no_argument, NULL, 'h' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

static uint64_t test_bytes(const struct touch_args *args)
{
	return args->vcpus * args->mib_per_vcpu * MIB;
}

/* Asked before anything is started. */
static int check_host(const struct touch_args *args, struct err *err)
{
	struct probe_layout layout;
	struct hostmem host;
	int r = probe_layout_compute(&layout, args->vcpus, args->guest_page,
				     test_bytes(args), err);

	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     layout.ram_bytes, err);
	return r;
}

/* A minute, and a millisecond per page: far more than the slowest fault. */
static uint64_t pass_timeout_ns(const struct touch_args *args)
{
	return 60 * NSEC_PER_SEC + test_bytes(args) / PAGE_4K * 1000000;
}

/* One pass; *ret_s is the slowest vCPU's time. */
static int run_pass(struct probe *probe, const struct touch_args *args,
		    uint64_t value, struct probe_outcome *outcomes,
		    double *ret_s, struct err *err)
{
	struct probe_command write = {
		.op = PROBE_OP_WRITE,
		.len = test_bytes(args),
		.stride = PAGE_4K,
		.seed = value,
		.passes = 1,
	};
	uint64_t slowest = 0;
	int r = probe_run_all(probe, &write, pass_timeout_ns(args), outcomes,
			      err);

	if (r)
		return r;
	for (unsigned int i = 0; i < args->vcpus; i++)
		slowest = MAX(slowest, outcomes[i].guest_ns);
	*ret_s = clock_ns_to_s(slowest);
	return 0;
}

static int run_passes(struct probe *probe, const struct touch_args *args,
		      struct touch_result *res, struct err *err)
{
	struct probe_outcome outcomes[PROBE_MAX_VCPUS];
	struct probe_counters before;
	int r = probe_warm_up(probe, err);

	if (r)
		return r;
	res->has_faults = !probe_read_counters(probe, &before);
	r = run_pass(probe, args, 1, outcomes, &res->first_s, err);
	if (r)
		return r;
	if (res->has_faults)
		res->has_faults = !probe_read_counters(probe, &res->after);
	if (res->has_faults)
		res->faults = res->after.faults - before.faults;
	return run_pass(probe, args, 2, outcomes, &res->second_s, err);
}

static int populate(struct probe *probe, const struct touch_args *args,
		    struct touch_result *res, struct err *err)
{
	const struct probe_population how = {
		.mode = res->populate,
		.stage2 = args->stage2,
		.threads = args->threads,
	};
	uint64_t began = clock_now_ns();
	int r = probe_populate(probe, &how, NULL, &res->method, &res->reason,
			       err);

	res->populate_s = clock_ns_to_s(clock_now_ns() - began);
	return r;
}

/* The first pass once more, in a fresh VM, timing each write. */
static int run_timed_pass(struct probe *probe, const struct touch_args *args,
			  struct touch_result *res, struct err *err)
{
	struct probe_command write = {
		.op = PROBE_OP_WRITE,
		.flags = PROBE_F_TIMED,
		.len = test_bytes(args),
		.stride = PAGE_4K,
		.seed = 1,
		.passes = 1,
	};
	struct histogram_snapshot one;
	int r = probe_warm_up(probe, err);

	if (!r)
		r = probe_run_all(probe, &write, pass_timeout_ns(args), NULL,
				  err);
	for (unsigned int i = 0; !r && i < args->vcpus; i++) {
		probe_read_times(probe, i, &one);
		histogram_merge(&res->first_touch, &one);
	}
	return r;
}

/* Build a VM for res's variant, populate it, and run what is to be run. */
static int run_vm(const struct touch_args *args, struct touch_result *res,
		  int (*measure)(struct probe *probe,
				 const struct touch_args *args,
				 struct touch_result *res, struct err *err),
		  struct err *err)
{
	struct probe_config cfg = {
		.num_vcpus = args->vcpus,
		.test_bytes = test_bytes(args),
		.guest_page = args->guest_page,
		.page = res->page,
	};
	struct probe *probe = NULL;
	int r = probe_new(&probe, &cfg, err);

	if (r)
		return r;
	if (res->populate != POPULATE_NONE)
		r = populate(probe, args, res, err);
	if (!r)
		r = measure(probe, args, res, err);
	probe_free(probe);
	return r;
}

static int run_variant(const struct touch_args *args, struct touch_result *res,
		       struct err *err)
{
	struct touch_result timed = *res;
	int r = run_vm(args, res, run_passes, err);

	if (r || !args->histogram)
		return r;
	r = run_vm(args, &timed, run_timed_pass, err);
	res->first_touch = timed.first_touch;
	return r;
}

static json_t *result_json(const struct touch_args *args,
			   const struct touch_result *res)
{
	json_t *o = json_pack(
		"{s:s, s:s, s:s, s:i, s:I, s:f, s:f, s:f, s:o}", "populate",
		populate_mode_names[res->populate], "stage2",
		stage2_method_names[res->method], "page",
		ram_page_names[res->page], "vcpus", (int)args->vcpus,
		"mib_per_vcpu", (json_int_t)args->mib_per_vcpu, "populate_s",
		res->populate_s, "first_pass_s", res->first_s, "second_pass_s",
		res->second_s, "second_stage_faults",
		res->has_faults ? json_integer((json_int_t)res->faults)
				: json_null());

	if (o && res->has_faults && res->after.has_pages) {
		json_object_set_new(
			o, "pages_4k",
			json_integer((json_int_t)res->after.pages_4k));
		json_object_set_new(
			o, "pages_2m",
			json_integer((json_int_t)res->after.pages_2m));
		json_object_set_new(
			o, "pages_1g",
			json_integer((json_int_t)res->after.pages_1g));
	}
	if (o && args->histogram)
		json_object_set_new(o, "first_touch",
				    json_histogram(&res->first_touch));
	return o;
}

static int print_json(const struct touch_args *args, enum second_stage stage,
		      const struct touch_result *results, unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, result_json(args, &results[i]));
	return bench_print_json(
		&cmd_bench_touch,
		json_pack("{s:s, s:s, s:o}", "second_stage",
			  second_stage_names[stage], "guest_page",
			  probe_guest_page_names[args->guest_page], "results",
			  list));
}

static void print_header(const struct touch_args *args, enum second_stage stage)
{
	printf("%u vCPU%s x %llu MiB, guest pages %s, one write per 4K page; "
	       "%s\n",
	       args->vcpus, args->vcpus == 1 ? "" : "s",
	       (unsigned long long)args->mib_per_vcpu,
	       probe_guest_page_names[args->guest_page],
	       bench_stage_text(stage));
	printf("%-5s %-9s %12s %12s %12s %13s %12s\n", "page", "populate",
	       "populate s", "1st pass s", "2nd pass s", "1st / 2nd", "faults");
}

static void print_first_touch(const struct histogram_snapshot *h)
{
	char p50[16], p99[16], max[16];

	printf("      first touch of a page: 50 %% within %s, 99 %% within "
	       "%s, longest %s\n",
	       bench_format_ns(histogram_percentile(h, 50), p50, sizeof(p50)),
	       bench_format_ns(histogram_percentile(h, 99), p99, sizeof(p99)),
	       bench_format_ns(h->max, max, sizeof(max)));
}

static void print_row(const struct touch_args *args,
		      const struct touch_result *res)
{
	char faults[24] = "-";

	if (res->has_faults)
		snprintf(faults, sizeof(faults), "%llu",
			 (unsigned long long)res->faults);
	printf("%-5s %-9s %12.3f %12.4f %12.4f %13.1f %12s\n",
	       ram_page_names[res->page], populate_mode_names[res->populate],
	       res->populate_s, res->first_s, res->second_s,
	       res->second_s > 0 ? res->first_s / res->second_s : 0, faults);
	if (res->reason.code)
		printf("      full fills host pages only: %s\n",
		       res->reason.text);
	if (args->histogram)
		print_first_touch(&res->first_touch);
	fflush(stdout);
}

/* Each populated variant against the unpopulated one of the same page. */
static void print_ratios(const struct touch_result *results, unsigned int num)
{
	for (unsigned int i = 0; i < num; i++) {
		for (unsigned int j = 0; j < num; j++) {
			const struct touch_result *a = &results[i];
			const struct touch_result *b = &results[j];

			if (a->page != b->page || b->first_s <= 0 ||
			    a->populate != POPULATE_NONE ||
			    b->populate == POPULATE_NONE)
				continue;
			printf("%s: populate=%s makes the first pass %.1f "
			       "times as fast as none\n",
			       ram_page_names[a->page],
			       populate_mode_names[b->populate],
			       a->first_s / b->first_s);
		}
	}
}

static int run_variants(const struct touch_args *args, enum second_stage stage)
{
	struct touch_result results[BENCH_MAX_CHOICES * BENCH_MAX_CHOICES];
	struct err err = ERR_INIT;
	unsigned int num = 0;

	if (!args->json)
		print_header(args, stage);
	for (unsigned int i = 0; i < args->pages.num; i++) {
		for (unsigned int j = 0; j < args->populates.num; j++) {
			struct touch_result *res = &results[num];

			*res = (struct touch_result){
				.method = STAGE2_NONE,
				.page = (enum ram_page)args->pages.values[i],
				.populate = (enum populate_mode)
						    args->populates.values[j],
			};
			if (run_variant(args, res, &err))
				return cli_fail(&cmd_bench_touch, &err);
			if (!args->json)
				print_row(args, res);
			num++;
		}
	}
	if (!args->json) {
		print_ratios(results, num);
		return CLI_OK;
	}
	return print_json(args, stage, results, num);
}

static int touch_run(int argc, char **argv)
{
	struct touch_args args = {
		.vcpus = DEFAULT_VCPUS,
		.mib_per_vcpu = DEFAULT_MIB_PER_VCPU,
		.pages = { .values = { RAM_PAGE_THP }, .num = 1 },
		.populates = { .values = { POPULATE_NONE, POPULATE_HOST,
					   POPULATE_FULL },
			       .num = TOUCH_NUM_POPULATES },
		.guest_page = PROBE_GUEST_PAGE_2M,
		.stage2 = STAGE2_AUTO,
	};
	struct err err = ERR_INIT;
	enum second_stage stage;
	int status = bench_read_options(&cmd_bench_touch, argc, argv,
					touch_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (check_host(&args, &err) || bench_detect_stage(&stage, &err))
		return cli_fail(&cmd_bench_touch, &err);
	return run_variants(&args, stage);
}

const struct cli_command cmd_bench_touch = {
	.name = "bench touch",
	.summary = "first and second use of fresh guest memory",
	.help = touch_help,
	.run = touch_run,
	.options = touch_options,
};
