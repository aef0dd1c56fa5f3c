/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench walk: what does a TLB miss cost a guest?
 *
 * A chain of dependent loads in random order, so that neither prefetch nor
 * overlap hides the translation: each next address is the value just loaded. It
 * is walked with each size of page in the guest's tables and in the host's. All
 * pages are mapped in both before the clock starts, and KVM's statistics show
 * that no fault fell into the measurement.
 *
 * One VM per combination, all of them built first; rounds go through the
 * combinations in turn, so that a slow minute of the machine hits all of them.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/perf.h"
#include "cli/bench.h"
#include "probe/probe.h"

#define MAX_MIB	       (1ull << 24)
#define MAX_STEPS      (1ull << 40)
#define DEFAULT_STEPS  1000000ull
#define DEFAULT_ROUNDS 5u
#define MAX_ROUNDS     BENCH_MAX_RUNS
#define LINE_BYTES     64u

enum walk_node {
	WALK_NODE_PAGE,
	WALK_NODE_LINE,
};

static const char *const walk_node_names[] = {
	[WALK_NODE_PAGE] = "page",
	[WALK_NODE_LINE] = "line",
};

struct walk_args {
	struct bench_numbers mib;
	struct bench_choice guest_pages; /* enum probe_guest_page */
	struct bench_choice pages;	 /* enum ram_page */
	enum walk_node node;
	uint64_t steps, rounds;
	bool json;
};

/* Hardware events; the first tells whether guests are counted at all. */
enum walk_event {
	EVENT_INSTRUCTIONS,
	EVENT_CACHE_MISSES,
	EVENT_DTLB_MISSES,
	NUM_EVENTS,
};

static const struct {
	uint32_t type;
	uint64_t config;
} walk_events[NUM_EVENTS] = {
	[EVENT_INSTRUCTIONS] = { PERF_TYPE_HARDWARE,
				 PERF_COUNT_HW_INSTRUCTIONS },
	[EVENT_CACHE_MISSES] = { PERF_TYPE_HARDWARE,
				 PERF_COUNT_HW_CACHE_MISSES },
	[EVENT_DTLB_MISSES] = { PERF_TYPE_HW_CACHE,
				PERF_COUNT_HW_CACHE_DTLB |
					PERF_COUNT_HW_CACHE_OP_READ << 8 |
					PERF_COUNT_HW_CACHE_RESULT_MISS << 16 },
};

/* One combination of page sizes: its VM, and what the current size gave. */
struct walk_combo {
	enum probe_guest_page guest_page;
	enum ram_page page;
	struct probe *probe;
};

struct walk_result {
	uint64_t mib;
	enum probe_guest_page guest_page;
	enum ram_page page;
	double rounds_ns[MAX_ROUNDS]; /* per access; sorted at the end */
	double ns;		      /* their median */
	double ratio;		      /* to the best of this size */
	bool has_faults;
	uint64_t faults; /* during the measured rounds */
	struct probe_counters mapped;
	bool has_event[NUM_EVENTS];
	uint64_t events[NUM_EVENTS]; /* all rounds */
};

#define MAX_COMBOS ((size_t)BENCH_MAX_CHOICES * BENCH_MAX_CHOICES)

struct walk {
	const struct walk_args *args;
	enum second_stage stage;
	struct walk_combo combos[MAX_COMBOS];
	unsigned int num_combos;
	struct walk_result *results; /* a size's combinations together */
	unsigned int num_results;
};

static void walk_help(void)
{
	printf("usage: quire bench walk [OPTION...]\n\n"
	       "Time dependent loads in random order, for each size of page in "
	       "the guest's tables\nand in the host's: the price of TLB misses "
	       "with two-dimensional page walks.\n\n"
	       "  --mib LIST            sizes of the memory walked, in MiB "
	       "(default 16,64,256)\n"
	       "  --guest-page LIST     pages of the guest's own tables: 4k, "
	       "2m; default 4k,2m\n"
	       "  --page LIST           host pages: 4k, thp, 2m (hugetlb); "
	       "default 4k,thp\n"
	       "  --node page|line      one word of each 4K page, or of each "
	       "64-byte line\n"
	       "                        (default page)\n"
	       "  --steps N             loads in each round (default %llu)\n"
	       "  --rounds N            rounds, of which the median counts "
	       "(default %u)\n"
	       "  --json                one JSON object\n",
	       DEFAULT_STEPS, DEFAULT_ROUNDS);
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct walk_args *args = ctx;
	int r, node = 0;

	switch (option) {
	case 'm':
		return bench_parse_numbers("--mib", value, MAX_MIB, &args->mib,
					   err);
	case 'g':
		return bench_parse_choice("--guest-page", value,
					  probe_guest_page_names,
					  ARRAY_SIZE(probe_guest_page_names),
					  &args->guest_pages, err);
	case 'p':
		return bench_parse_choice("--page", value, bench_page_names,
					  BENCH_NUM_PAGES, &args->pages, err);
	case 'n':
		r = bench_parse_one("--node", value, walk_node_names,
				    ARRAY_SIZE(walk_node_names), &node, err);
		if (!r)
			args->node = (enum walk_node)node;
		return r;
	case 's':
		return bench_parse_number("--steps", value, MAX_STEPS,
					  &args->steps, err);
	case 'r':
		return bench_parse_number("--rounds", value, MAX_ROUNDS,
					  &args->rounds, err);
	default:
		args->json = true;
		return 0;
	}
}

static const struct option walk_options[] = {
	{ "mib", required_argument, NULL, 'm' },
	{ "guest-page", required_argument, NULL, 'g' },
	{ "page", required_argument, NULL, 'p' },
	{ "node", required_argument, NULL, 'n' },
	{ "steps", required_argument, NULL, 's' },
	{ "rounds", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

static uint64_t largest_bytes(const struct walk_args *args)
{
	uint64_t mib = 0;

	for (unsigned int i = 0; i < args->mib.num; i++)
		mib = MAX(mib, args->mib.values[i]);
	return mib * MIB;
}

/* All VMs exist at once, so each kind of page is needed for all guest pages. */
static int check_host(const struct walk_args *args, struct err *err)
{
	struct probe_layout layout;
	struct hostmem host;
	uint64_t bytes = 0;
	int r = 0;

	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->guest_pages.num; i++) {
		r = probe_layout_compute(
			&layout, 1,
			(enum probe_guest_page)args->guest_pages.values[i],
			largest_bytes(args), err);
		if (!r)
			bytes += layout.ram_bytes;
	}
	for (unsigned int i = 0; !r && i < args->pages.num; i++) {
		enum ram_page page = (enum ram_page)args->pages.values[i];
		bool pool = page == RAM_PAGE_2M;

		r = bench_check_page(&host, page,
				     pool ? bytes : bytes * args->pages.num,
				     err);
	}
	return r;
}

/*
 * How many references to tables a miss of all TLBs and walk caches takes, with
 * four levels on both sides. TDP: each of the g references to the guest's
 * tables and the final address are guest-physical, and take a walk of h levels
 * (AMD64 APM volume 2, 15.25.5): (g + 1) * (h + 1) - 1. Shadow paging: KVM's
 * table has the smaller of both pages. 0: unknown.
 */
static unsigned int theory(enum second_stage stage,
			   const struct walk_result *res)
{
	unsigned int g = res->guest_page == PROBE_GUEST_PAGE_4K ? 4 : 3;
	unsigned int h = res->page == RAM_PAGE_4K ? 4 : 3;

	switch (stage) {
	case SECOND_STAGE_TDP:
		return (g + 1) * (h + 1) - 1;
	case SECOND_STAGE_SHADOW:
		return MAX(g, h);
	case SECOND_STAGE_UNKNOWN:
		break;
	}
	return 0;
}

static int make_combo(struct walk *w, struct walk_combo *combo, struct err *err)
{
	struct probe_config cfg = {
		.num_vcpus = 1,
		.test_bytes = largest_bytes(w->args),
		.guest_page = combo->guest_page,
		.page = combo->page,
	};
	/* Where the second stage cannot be filled ahead, linking fills it. */
	const struct probe_population how = {
		.mode = POPULATE_FULL,
		.stage2 = STAGE2_AUTO,
	};
	enum stage2_method method;
	int r = probe_new(&combo->probe, &cfg, err);

	if (!r)
		r = probe_populate(combo->probe, &how, NULL, &method, NULL,
				   err);
	return r ? r : probe_warm_up(combo->probe, err);
}

static int make_combos(struct walk *w, struct err *err)
{
	const struct walk_args *args = w->args;
	int r = 0;

	for (unsigned int i = 0; !r && i < args->guest_pages.num; i++) {
		for (unsigned int j = 0; !r && j < args->pages.num; j++) {
			struct walk_combo *combo = &w->combos[w->num_combos++];

			combo->guest_page = (enum probe_guest_page)
						    args->guest_pages.values[i];
			combo->page = (enum ram_page)args->pages.values[j];
			r = make_combo(w, combo, err);
		}
	}
	return r;
}

static struct probe_command chain(const struct walk_args *args, uint64_t mib)
{
	return (struct probe_command){
		.len = mib * MIB,
		.stride = args->node == WALK_NODE_LINE ? LINE_BYTES : PAGE_4K,
		.flags = args->node == WALK_NODE_LINE ? 0 : PROBE_F_STAGGER,
		.seed = 1,
		.passes = 1,
	};
}

/* A minute, and 100 us a step: far more than the slowest emulator takes. */
static uint64_t timeout_ns(uint64_t steps)
{
	return 60 * NSEC_PER_SEC + steps * 100000;
}

/* Every page is written here, and then read along the whole cycle. */
static int prepare(const struct walk *w, const struct walk_combo *combo,
		   uint64_t mib, struct err *err)
{
	struct probe_command cmd = chain(w->args, mib);
	uint64_t nodes = cmd.len / cmd.stride;
	struct probe_outcome out;
	int r;

	cmd.op = PROBE_OP_LINK;
	r = probe_run(combo->probe, 0, &cmd, timeout_ns(nodes), &out, err);
	if (r)
		return r;
	cmd.op = PROBE_OP_WALK;
	cmd.passes = nodes;
	r = probe_run(combo->probe, 0, &cmd, timeout_ns(nodes), &out, err);
	if (r)
		return r;
	if (out.guest.status != PROBE_DONE || out.guest.value)
		return err_set(err, EIO,
			       "the guest's memory does not hold what it wrote "
			       "(guest pages %s, host pages %s)",
			       probe_guest_page_names[combo->guest_page],
			       ram_page_names[combo->page]);
	return 0;
}

static void open_events(struct probe *probe, int fds[NUM_EVENTS])
{
	pid_t tid = probe_thread_id(probe, 0);

	for (unsigned int i = 0; i < NUM_EVENTS; i++)
		fds[i] = perf_open(walk_events[i].type, walk_events[i].config,
				   tid, true);
}

static void close_events(const int fds[NUM_EVENTS], struct walk_result *res)
{
	uint64_t count;

	for (unsigned int i = 0; i < NUM_EVENTS; i++) {
		if (fds[i] < 0)
			continue;
		if (!perf_read(fds[i], &count)) {
			res->has_event[i] = true;
			res->events[i] += count;
		}
		close(fds[i]);
	}
}

static int run_round(const struct walk *w, const struct walk_combo *combo,
		     unsigned int round, struct walk_result *res,
		     struct err *err)
{
	struct probe_command cmd = chain(w->args, res->mib);
	struct probe_counters before;
	struct probe_outcome out;
	int r, fds[NUM_EVENTS];

	cmd.op = PROBE_OP_WALK;
	cmd.passes = w->args->steps;
	res->has_faults = !probe_read_counters(combo->probe, &before);
	open_events(combo->probe, fds);
	r = probe_run(combo->probe, 0, &cmd, timeout_ns(w->args->steps), &out,
		      err);
	close_events(fds, res);
	if (r)
		return r;
	if (res->has_faults)
		res->has_faults = !probe_read_counters(combo->probe,
						       &res->mapped);
	if (res->has_faults)
		res->faults += res->mapped.faults - before.faults;
	res->rounds_ns[round] = (double)out.guest_ns / (double)cmd.passes;
	return 0;
}

static void finish_result(struct walk_result *res, unsigned int rounds)
{
	bench_sort(res->rounds_ns, rounds);
	res->ns = bench_median(res->rounds_ns, rounds);
	/* A KVM whose guests the hardware takes for host code counts none. */
	if (!res->events[EVENT_INSTRUCTIONS])
		memset(res->has_event, 0, sizeof(res->has_event));
}

/* All combinations at one size, into consecutive results. */
static int run_size(struct walk *w, uint64_t mib, struct err *err)
{
	struct walk_result *results = &w->results[w->num_results];
	unsigned int rounds = (unsigned int)w->args->rounds;
	double best = 0;
	int r = 0;

	for (unsigned int i = 0; !r && i < w->num_combos; i++) {
		results[i].mib = mib;
		results[i].guest_page = w->combos[i].guest_page;
		results[i].page = w->combos[i].page;
		r = prepare(w, &w->combos[i], mib, err);
	}
	for (unsigned int round = 0; !r && round < rounds; round++) {
		for (unsigned int i = 0; !r && i < w->num_combos; i++)
			r = run_round(w, &w->combos[i], round, &results[i],
				      err);
	}
	if (r)
		return r;
	for (unsigned int i = 0; i < w->num_combos; i++) {
		finish_result(&results[i], rounds);
		if (!i || results[i].ns < best)
			best = results[i].ns;
	}
	for (unsigned int i = 0; i < w->num_combos; i++)
		results[i].ratio = best > 0 ? results[i].ns / best : 0;
	w->num_results += w->num_combos;
	return 0;
}

static json_t *per_access_json(const struct walk_args *args,
			       const struct walk_result *res,
			       enum walk_event event)
{
	if (!res->has_event[event])
		return json_null();
	return json_real((double)res->events[event] /
			 (double)(args->steps * args->rounds));
}

static json_t *result_json(const struct walk *w, const struct walk_result *res)
{
	unsigned int references = theory(w->stage, res);
	json_t *o = json_pack(
		"{s:I, s:s, s:s, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o}",
		"mib", (json_int_t)res->mib, "guest_page",
		probe_guest_page_names[res->guest_page], "page",
		ram_page_names[res->page], "ns_per_access", res->ns,
		"min_ns_per_access", res->rounds_ns[0], "max_ns_per_access",
		res->rounds_ns[w->args->rounds - 1], "ratio_to_best",
		res->ratio, "theory_references_per_tlb_miss",
		references ? json_integer(references) : json_null(),
		"second_stage_faults",
		res->has_faults ? json_integer((json_int_t)res->faults)
				: json_null(),
		"cache_misses_per_access",
		per_access_json(w->args, res, EVENT_CACHE_MISSES),
		"dtlb_misses_per_access",
		per_access_json(w->args, res, EVENT_DTLB_MISSES));

	if (o && res->has_faults && res->mapped.has_pages) {
		json_object_set_new(
			o, "pages_4k",
			json_integer((json_int_t)res->mapped.pages_4k));
		json_object_set_new(
			o, "pages_2m",
			json_integer((json_int_t)res->mapped.pages_2m));
	}
	return o;
}

static int print_json(const struct walk *w)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < w->num_results; i++)
		json_array_append_new(list, result_json(w, &w->results[i]));
	return bench_print_json(
		&cmd_bench_walk,
		json_pack("{s:s, s:s, s:I, s:I, s:o}", "second_stage",
			  second_stage_names[w->stage], "node",
			  walk_node_names[w->args->node], "steps",
			  (json_int_t)w->args->steps, "rounds",
			  (json_int_t)w->args->rounds, "results", list));
}

static void print_header(const struct walk *w)
{
	printf("1 vCPU, dependent loads in random order, one word per %s; %s\n"
	       "median of %llu rounds of %llu loads, all pages mapped before\n",
	       w->args->node == WALK_NODE_LINE ? "64-byte line" : "4K page",
	       bench_stage_text(w->stage), (unsigned long long)w->args->rounds,
	       (unsigned long long)w->args->steps);
	printf("%6s %6s %5s %10s %7s %7s %11s %11s %9s\n", "MiB", "guest",
	       "host", "ns/access", "/best", "faults", "cache miss",
	       "dTLB miss", "walk refs");
	printf("%6s %6s %5s %10s %7s %7s %11s %11s %9s\n", "", "page", "page",
	       "", "", "", "/access", "/access", "in theory");
}

static const char *event_text(const struct walk_args *args,
			      const struct walk_result *res,
			      enum walk_event event, char *buf, size_t size)
{
	if (res->has_event[event])
		snprintf(buf, size, "%.3f",
			 (double)res->events[event] /
				 (double)(args->steps * args->rounds));
	else
		snprintf(buf, size, "-");
	return buf;
}

static void print_row(const struct walk *w, const struct walk_result *res)
{
	char faults[24] = "-", cache[24], dtlb[24], refs[12] = "-";
	unsigned int references = theory(w->stage, res);

	if (res->has_faults)
		snprintf(faults, sizeof(faults), "%llu",
			 (unsigned long long)res->faults);
	if (references)
		snprintf(refs, sizeof(refs), "%u", references);
	printf("%6llu %6s %5s %10.1f %7.2f %7s %11s %11s %9s\n",
	       (unsigned long long)res->mib,
	       probe_guest_page_names[res->guest_page],
	       ram_page_names[res->page], res->ns, res->ratio, faults,
	       event_text(w->args, res, EVENT_CACHE_MISSES, cache,
			  sizeof(cache)),
	       event_text(w->args, res, EVENT_DTLB_MISSES, dtlb, sizeof(dtlb)),
	       refs);
}

static void print_notes(const struct walk *w)
{
	bool counted = false;

	for (unsigned int i = 0; i < w->num_results; i++)
		counted = counted ||
			  w->results[i].has_event[EVENT_CACHE_MISSES] ||
			  w->results[i].has_event[EVENT_DTLB_MISSES];
	if (!counted)
		printf("no hardware counters of guest code on this host: cache "
		       "and dTLB misses are not known\n");
	printf("walk refs in theory: table entries read for a load that no "
	       "TLB and no walk cache helps\n");
}

static int run_sizes(struct walk *w, struct err *err)
{
	const struct walk_args *args = w->args;
	int r = make_combos(w, err);

	if (!r && !args->json)
		print_header(w);
	for (unsigned int i = 0; !r && i < args->mib.num; i++) {
		r = run_size(w, args->mib.values[i], err);
		for (unsigned int j = 0; !r && !args->json && j < w->num_combos;
		     j++)
			print_row(w, &w->results[w->num_results -
						 w->num_combos + j]);
		fflush(stdout);
	}
	return r;
}

static int run_all(struct walk *w)
{
	struct err err = ERR_INIT;
	int status = CLI_OK;

	w->results = calloc(MAX_COMBOS * w->args->mib.num, sizeof(*w->results));
	if (!w->results) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_bench_walk, &err);
	}
	if (run_sizes(w, &err))
		status = cli_fail(&cmd_bench_walk, &err);
	else if (w->args->json)
		status = print_json(w);
	else
		print_notes(w);
	for (unsigned int i = 0; i < w->num_combos; i++)
		probe_free(w->combos[i].probe);
	free(w->results);
	return status;
}

static int walk_run(int argc, char **argv)
{
	struct walk_args args = {
		.mib = { .values = { 16, 64, 256 }, .num = 3 },
		.guest_pages = { .values = { PROBE_GUEST_PAGE_4K,
					     PROBE_GUEST_PAGE_2M },
				 .num = 2 },
		.pages = { .values = { RAM_PAGE_4K, RAM_PAGE_THP }, .num = 2 },
		.node = WALK_NODE_PAGE,
		.steps = DEFAULT_STEPS,
		.rounds = DEFAULT_ROUNDS,
	};
	struct walk w = { .args = &args };
	struct err err = ERR_INIT;
	int status = bench_read_options(&cmd_bench_walk, argc, argv,
					walk_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (check_host(&args, &err) || bench_detect_stage(&w.stage, &err))
		return cli_fail(&cmd_bench_walk, &err);
	return run_all(&w);
}

const struct cli_command cmd_bench_walk = {
	.name = "bench walk",
	.summary = "random access by page size: the cost of TLB misses",
	.help = walk_help,
	.run = walk_run,
	.options = walk_options,
};
