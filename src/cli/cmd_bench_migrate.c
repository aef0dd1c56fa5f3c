/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench migrate: how long does a migration take, how long does the guest
 * stand still for it, and how fast is it at the destination?
 *
 * Two quire processes on this host, and `quire migrate` between them. The guest
 * (guest/probe/mover.c) fills a part of its memory, and then sleeps, or writes
 * to it at a rate. It says on its console that it runs, tick by tick; this
 * process listens to both consoles: the longest silence is what somebody sees
 * of the switch-over from outside, where a pause does not stop the clock. At
 * the destination the guest passes over its memory: once as it comes, and three
 * times more.
 *
 * Right before each migration as many bytes are copied through bare sockets of
 * the same kind, by as many threads (cli/bench_copy.h).
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "cli/bench_copy.h"
#include "cli/bench_mover.h"
#include "cli/bench_option.h"
#include "migrate/send.h"
#include "migrate/wire.h"

#define MAX_MIB	      (1ull << 20)
#define MAX_USED      3008u /* below the hole at 3 GiB, above the guest */
#define GUEST_MIB     48u   /* beside what it uses */
#define BEFORE_NS     (300 * NSEC_PER_MSEC)
#define AFTER_NS      (100 * NSEC_PER_MSEC)
#define STEADY_PASSES 3

static const char *const transport_names[] = {
	[MIGRATE_TCP] = "tcp",
	[MIGRATE_UNIX] = "unix",
};

enum stage2_use { STAGE2_FILL, STAGE2_LEAVE };

static const char *const stage2_names[] = {
	[STAGE2_FILL] = "fill",
	[STAGE2_LEAVE] = "none",
};

/* Options of quire migrate, handed to it as they are. */
enum passed { PASS_DOWNTIME, PASS_BANDWIDTH, NUM_PASSED };

static const char *const passed_options[NUM_PASSED] = {
	[PASS_DOWNTIME] = "--downtime",
	[PASS_BANDWIDTH] = "--bandwidth",
};

struct bench_args {
	uint64_t mib, used_mib, vcpus, write_mib, tick_ms, runs;
	struct bench_numbers streams;
	struct bench_choice transports, pages, stage2, modes;
	const char *passed[NUM_PASSED];
	bool json;
};

#define TO(field)    .offset = offsetof(struct bench_args, field)
#define NAMES(table) .names = (table), .num_names = ARRAY_SIZE(table)

static const struct bench_option options[] = {
	{ "mib", "M", "memory of the guest, in MiB (default 1024)",
	  BENCH_OPTION_NUMBER, TO(mib), .max = MAX_MIB },
	{ "used-mib", "M",
	  "of it filled, and passed over at the destination (default\n"
	  "256)",
	  BENCH_OPTION_NUMBER, TO(used_mib), .max = MAX_USED },
	{ "write-rate", "MIB",
	  "MiB that the guest writes in a second, besides without\n"
	  "(default: without alone)",
	  BENCH_OPTION_NUMBER, TO(write_mib), .max = MAX_MIB },
	{ "vcpus", "N", "vCPUs, of which one works (default 1)",
	  BENCH_OPTION_NUMBER, TO(vcpus), .max = 64 },
	{ "page", "LIST", "host pages: 4k, thp, 2m; default 4k",
	  BENCH_OPTION_CHOICE, TO(pages), .names = bench_page_names,
	  .num_names = BENCH_NUM_PAGES },
	{ "transport", "LIST", "unix, tcp (of this host); default both",
	  BENCH_OPTION_CHOICE, TO(transports), NAMES(transport_names) },
	{ "streams", "LIST", "numbers of connections for memory (default 1,2)",
	  BENCH_OPTION_NUMBERS, TO(streams), .max = WIRE_MAX_STREAMS },
	{ "stage2", "LIST",
	  "fill, none: is memory mapped in the second stage as it\n"
	  "arrives (default fill)",
	  BENCH_OPTION_CHOICE, TO(stage2), NAMES(stage2_names) },
	{ "mode", "LIST",
	  "when memory is sent: precopy, postcopy, hybrid (default\n"
	  "precopy)",
	  BENCH_OPTION_CHOICE, TO(modes), .names = migrate_mode_names,
	  .num_names = MIGRATE_LOCAL /* which sends nothing */ },
	{ "downtime", "MS", "as with quire migrate", BENCH_OPTION_TEXT,
	  TO(passed[PASS_DOWNTIME]) },
	{ "bandwidth", "SIZE", "the same", BENCH_OPTION_TEXT,
	  TO(passed[PASS_BANDWIDTH]) },
	{ "tick", "MS", "how often the guest says that it runs (default 1)",
	  BENCH_OPTION_NUMBER, TO(tick_ms), .max = 1000 },
	{ "runs", "N", "runs of each, in turn; medians count (default 3)",
	  BENCH_OPTION_NUMBER, TO(runs), .max = BENCH_MAX_RUNS },
	{ "json", NULL, "one JSON object, times in seconds", BENCH_OPTION_FLAG,
	  TO(json) },
};

static void migrate_help(void)
{
	printf("usage: quire bench migrate [OPTION...]\n\n"
	       "Time the migration of a guest between two processes on this "
	       "host: all of it, how\nlong the guest stands still, and its "
	       "first pass over memory at the destination\nagainst later "
	       "ones.\n\n");
	bench_option_help(options, ARRAY_SIZE(options));
}

static bool option_at(size_t i, struct cli_option *ret)
{
	return bench_option_at(options, ARRAY_SIZE(options), i, ret);
}

enum figure {
	TOTAL,
	DOWNTIME,
	SILENCE_BEFORE, /* the longest in a while without a migration */
	SILENCE,
	ROUNDS,
	WIRE_BYTES_SENT,
	RATE,
	COPY_RATE,
	COPY_RATIO,
	MAPPED_BYTES, /* ahead, in the second stage */
	FIRST_PASS,
	STEADY_PASS,
	PASS_RATIO,
	FAULTS, /* of the second stage, in the first pass */
	/* All below 0 where memory comes before the VM. */
	FOLLOWED_BYTES,
	URGENT_PAGES, /* that the guest waited for, and how long: */
	URGENT_P50,
	URGENT_P99,
	NUM_FIGURES,
};

static const char *const figure_names[NUM_FIGURES] = {
	[TOTAL] = "total_s",
	[DOWNTIME] = "downtime_s",
	[SILENCE_BEFORE] = "silence_before_s",
	[SILENCE] = "silence_s",
	[ROUNDS] = "rounds",
	[WIRE_BYTES_SENT] = "wire_bytes",
	[RATE] = "bytes_per_s",
	[COPY_RATE] = "copy_bytes_per_s",
	[COPY_RATIO] = "copy_ratio",
	[MAPPED_BYTES] = "second_stage_bytes",
	[FIRST_PASS] = "first_pass_s",
	[STEADY_PASS] = "steady_pass_s",
	[PASS_RATIO] = "pass_ratio",
	[FAULTS] = "second_stage_faults",
	[FOLLOWED_BYTES] = "followed_bytes",
	[URGENT_PAGES] = "urgent_pages",
	[URGENT_P50] = "urgent_p50_s",
	[URGENT_P99] = "urgent_p99_s",
};

struct row {
	enum ram_page page;
	enum migrate_uri_kind transport;
	unsigned int streams;
	uint64_t write_mib;
	enum stage2_use stage2;
	enum migrate_mode mode;
	double figures[NUM_FIGURES][BENCH_MAX_RUNS];
};

/* ---- one migration ---- */

struct run {
	const struct bench_args *args;
	const struct mover_place *place;
	struct row *row;
	unsigned int number;
	struct mover_silence silence;
	struct mover source, destination;
	char uri[80];
};

static void note(struct run *run, enum figure figure, double value)
{
	run->row->figures[figure][run->number] = value;
}

static double noted(const struct run *run, enum figure figure)
{
	return run->row->figures[figure][run->number];
}

static int make_uri(struct run *run, struct err *err)
{
	unsigned int port = 0;
	int r = 0;

	if (run->row->transport == MIGRATE_UNIX) {
		snprintf(run->uri, sizeof(run->uri), "unix:%s/destination.in",
			 run->place->dir);
		return 0;
	}
	r = bench_free_port(&port, err);
	snprintf(run->uri, sizeof(run->uri), "tcp:127.0.0.1:%u", port);
	return r;
}

static int start_both(struct run *run, struct err *err)
{
	const struct bench_args *args = run->args;
	char memory[60];
	struct mover_config cfg = {
		.name = "source",
		.mib = args->mib,
		.used_mib = args->used_mib,
		.memory = memory,
		.vcpus = (unsigned int)args->vcpus,
		.tick_ms = args->tick_ms,
		.write_mib = run->row->write_mib,
		.silence = &run->silence,
	};
	int r;

	snprintf(memory, sizeof(memory), ",page=%s%s",
		 ram_page_names[run->row->page],
		 run->row->stage2 == STAGE2_LEAVE ? ",stage2=none" : "");
	r = mover_start(&run->source, run->place, &cfg, err);
	if (r)
		return r;
	cfg.name = "destination";
	cfg.incoming = run->uri;
	return mover_start(&run->destination, run->place, &cfg, err);
}

/* Its console lay about while the destination was started. */
static int listen_before(struct run *run, struct err *err)
{
	int r = mover_listen(&run->source, AFTER_NS, err);

	run->silence.longest_ns = 0;
	if (!r)
		r = mover_listen(&run->source, BEFORE_NS, err);
	note(run, SILENCE_BEFORE, clock_ns_to_s(run->silence.longest_ns));
	run->silence.longest_ns = 0;
	return r;
}

static double number(const json_t *o, const char *field)
{
	return json_number_value(json_object_get(o, field));
}

static int move(struct run *run, struct err *err)
{
	char streams[16];
	const char *more[2 * NUM_PASSED + 5] = {
		"--mode",
		migrate_mode_names[run->row->mode],
		"--streams",
		streams,
	};
	unsigned int num = 4;
	json_t *said = NULL;
	int r;

	snprintf(streams, sizeof(streams), "%u", run->row->streams);
	for (unsigned int i = 0; i < NUM_PASSED; i++) {
		if (!run->args->passed[i])
			continue;
		more[num++] = passed_options[i];
		more[num++] = run->args->passed[i];
	}
	r = mover_migrate(&run->source, &run->destination, run->uri, more,
			  &said, err);
	if (r)
		return r;
	note(run, TOTAL, number(said, "total_us") / 1e6);
	note(run, DOWNTIME, number(said, "downtime_us") / 1e6);
	note(run, ROUNDS, number(said, "rounds"));
	note(run, WIRE_BYTES_SENT, number(said, "wire_bytes"));
	note(run, RATE, noted(run, WIRE_BYTES_SENT) / noted(run, TOTAL));
	json_decref(said);
	/* What was said at last is still on its way. */
	r = mover_listen(&run->destination, AFTER_NS, err);
	note(run, SILENCE, clock_ns_to_s(run->silence.longest_ns));
	return r;
}

static int read_landed(struct run *run, double *ret_faults, struct err *err)
{
	json_t *landed = NULL;
	int r = mover_landed(&run->destination, &landed, err);

	if (r)
		return r;
	*ret_faults = number(landed, "second_stage_faults");
	note(run, MAPPED_BYTES, number(landed, "second_stage_bytes"));
	json_decref(landed);
	return 0;
}

static int read_followed(struct run *run, struct err *err)
{
	json_t *followed = NULL;
	int r = run->row->mode == MIGRATE_PRECOPY
			? 0
			: mover_followed(&run->destination, &followed, err);

	if (r || !followed)
		return r;
	note(run, FOLLOWED_BYTES, number(followed, "followed_bytes"));
	note(run, URGENT_PAGES, number(followed, "urgent_pages"));
	note(run, URGENT_P50, number(followed, "urgent_p50_us") / 1e6);
	note(run, URGENT_P99, number(followed, "urgent_p99_us") / 1e6);
	json_decref(followed);
	return 0;
}

static int pass_over(struct run *run, struct err *err)
{
	double before = 0, after = 0, first = 0, steady[STEADY_PASSES];
	int r = read_landed(run, &before, err);

	if (!r)
		r = mover_pass(&run->destination, &first, err);
	if (!r)
		r = read_landed(run, &after, err);
	for (unsigned int i = 0; !r && i < STEADY_PASSES; i++)
		r = mover_pass(&run->destination, &steady[i], err);
	if (r)
		return r;
	note(run, FAULTS, after - before);
	note(run, FIRST_PASS, first);
	note(run, STEADY_PASS, bench_median(steady, STEADY_PASSES));
	note(run, PASS_RATIO, first / noted(run, STEADY_PASS));
	return 0;
}

static int copy_bare(struct run *run, struct err *err)
{
	uint64_t bytes = align_up(run->args->used_mib * MIB, PAGE_2M);
	double seconds = 0;
	int r = bench_copy(run->row->transport, run->row->streams, bytes,
			   run->row->page, &seconds, err);

	note(run, COPY_RATE, r ? 0 : (double)bytes / seconds);
	return r;
}

static int run_once(struct run *run, struct err *err)
{
	int r = copy_bare(run, err);

	if (!r)
		r = make_uri(run, err);
	if (!r)
		r = start_both(run, err);
	if (!r)
		r = listen_before(run, err);
	if (!r)
		r = move(run, err);
	if (!r)
		r = read_followed(run, err);
	if (!r)
		r = pass_over(run, err);
	if (!r)
		note(run, COPY_RATIO, noted(run, RATE) / noted(run, COPY_RATE));
	mover_end(&run->source);
	mover_end(&run->destination);
	return r;
}

/* ---- output ---- */

static double figure_of(const struct bench_args *args, const struct row *row,
			enum figure figure)
{
	return bench_median(row->figures[figure], args->runs);
}

static void print_row(const struct bench_args *args, const struct row *row)
{
	double f[NUM_FIGURES];

	for (unsigned int i = 0; i < NUM_FIGURES; i++)
		f[i] = figure_of(args, row, (enum figure)i);
	printf("%-4s %-4s %7u %5llu %-6s %-8s %8.1f %8.1f %8.1f %6.0f %8.1f "
	       "%7.0f %6.2f %8.1f %8.1f %6.2f %7.0f\n",
	       ram_page_names[row->page], transport_names[row->transport],
	       row->streams, (unsigned long long)row->write_mib,
	       stage2_names[row->stage2], migrate_mode_names[row->mode],
	       f[TOTAL] * 1e3, f[DOWNTIME] * 1e3, f[SILENCE] * 1e3, f[ROUNDS],
	       f[WIRE_BYTES_SENT] / (double)MIB, f[RATE] / (double)MIB,
	       f[COPY_RATIO], f[FIRST_PASS] * 1e3, f[STEADY_PASS] * 1e3,
	       f[PASS_RATIO], f[FAULTS]);
}

/* Each number of streams against the first, all else being equal. */
static void print_scaling(const struct bench_args *args, const struct row *rows,
			  unsigned int num)
{
	for (unsigned int i = 0; i < num; i++) {
		for (unsigned int j = 0; j < i; j++) {
			const struct row *a = &rows[j], *b = &rows[i];

			if (a->page != b->page || a->stage2 != b->stage2 ||
			    a->transport != b->transport ||
			    a->mode != b->mode || a->write_mib != b->write_mib)
				continue;
			printf("%s, %s, %s: %u streams send %.2f times as "
			       "fast as %u (bare: %.2f times)\n",
			       transport_names[b->transport],
			       ram_page_names[b->page],
			       migrate_mode_names[b->mode], b->streams,
			       figure_of(args, b, RATE) /
				       figure_of(args, a, RATE),
			       a->streams,
			       figure_of(args, b, COPY_RATE) /
				       figure_of(args, a, COPY_RATE));
			break;
		}
	}
}

/* What the guest waited for, where memory came after it. */
static void print_urgent(const struct bench_args *args, const struct row *row)
{
	if (row->mode == MIGRATE_PRECOPY)
		return;
	printf("%s, %s, %s, %u streams, %llu MiB/s written: %.1f MiB after the "
	       "VM, of which it waited for %.0f pages, p50 %.1f us, p99 %.1f "
	       "us\n",
	       migrate_mode_names[row->mode], transport_names[row->transport],
	       ram_page_names[row->page], row->streams,
	       (unsigned long long)row->write_mib,
	       figure_of(args, row, FOLLOWED_BYTES) / (double)MIB,
	       figure_of(args, row, URGENT_PAGES),
	       figure_of(args, row, URGENT_P50) * 1e6,
	       figure_of(args, row, URGENT_P99) * 1e6);
}

static void print_rows(const struct bench_args *args, const struct row *rows,
		       unsigned int num)
{
	printf("%llu MiB, %llu MiB of it used, medians of %llu runs, times in "
	       "milliseconds, of memory in MiB\n",
	       (unsigned long long)args->mib,
	       (unsigned long long)args->used_mib,
	       (unsigned long long)args->runs);
	printf("%-4s %-4s %7s %5s %-6s %-8s %8s %8s %8s %6s %8s %7s %6s %8s "
	       "%8s %6s %7s\n",
	       "page", "over", "streams", "write", "stage2", "mode", "total",
	       "downtime", "silence", "rounds", "sent", "per s", "bare",
	       "1st pass", "steady", "ratio", "faults");
	for (unsigned int i = 0; i < num; i++)
		print_row(args, &rows[i]);
	for (unsigned int i = 0; i < num; i++)
		print_urgent(args, &rows[i]);
	print_scaling(args, rows, num);
}

static json_t *row_json(const struct bench_args *args, const struct row *row)
{
	json_t *o = json_pack("{s:s, s:s, s:i, s:I, s:s, s:s}", "page",
			      ram_page_names[row->page], "transport",
			      transport_names[row->transport], "streams",
			      (int)row->streams, "write_mib_per_s",
			      (json_int_t)row->write_mib, "stage2",
			      stage2_names[row->stage2], "mode",
			      migrate_mode_names[row->mode]);

	for (unsigned int f = 0; o && f < NUM_FIGURES; f++) {
		json_t *runs = json_array();
		char key[40];

		for (uint64_t i = 0; i < args->runs; i++)
			json_array_append_new(runs,
					      json_real(row->figures[f][i]));
		snprintf(key, sizeof(key), "%s_runs", figure_names[f]);
		json_object_set_new(
			o, figure_names[f],
			json_real(figure_of(args, row, (enum figure)f)));
		json_object_set_new(o, key, runs);
	}
	return o;
}

static int print_json(const struct bench_args *args, enum second_stage stage,
		      const struct row *rows, unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, row_json(args, &rows[i]));
	return bench_print_json(
		&cmd_bench_migrate,
		json_pack("{s:s, s:I, s:I, s:I, s:o}", "second_stage",
			  second_stage_names[stage], "mib",
			  (json_int_t)args->mib, "used_mib",
			  (json_int_t)args->used_mib, "vcpus",
			  (json_int_t)args->vcpus, "results", list));
}

/* ---- the command ---- */

/* One for each combination; with no writes first. */
static unsigned int make_rows(const struct bench_args *args, struct row *rows)
{
	unsigned int loads = args->write_mib ? 2 : 1, num = 0;
	unsigned int total = loads * args->pages.num * args->transports.num *
			     args->streams.num * args->stage2.num *
			     args->modes.num;

	for (; num < total; num++) {
		unsigned int i = num;
		struct row *row = &rows[num];

		row->mode = (enum migrate_mode)
				    args->modes.values[i % args->modes.num];
		i /= args->modes.num;
		row->stage2 = (enum stage2_use)
				      args->stage2.values[i % args->stage2.num];
		i /= args->stage2.num;
		row->streams = (unsigned int)args->streams
				       .values[i % args->streams.num];
		i /= args->streams.num;
		row->transport = (enum migrate_uri_kind)args->transports
					 .values[i % args->transports.num];
		i /= args->transports.num;
		row->page =
			(enum ram_page)args->pages.values[i % args->pages.num];
		i /= args->pages.num;
		row->write_mib = i ? args->write_mib : 0;
	}
	return num;
}

/* The order turns: none is always the first. */
static int run_rows(const struct bench_args *args, struct row *rows,
		    unsigned int num, struct err *err)
{
	struct mover_place place = { .dir = "" };
	int r = mover_place_init(&place, err);

	for (unsigned int n = 0; !r && n < args->runs; n++) {
		for (unsigned int i = 0; !r && i < num; i++) {
			struct run run = {
				.args = args,
				.place = &place,
				.row = &rows[(i + n) % num],
				.number = n,
			};

			r = run_once(&run, err);
		}
	}
	mover_place_fini(&place);
	return r;
}

static int check_host(const struct bench_args *args, struct err *err)
{
	struct hostmem host;
	int r = 0;

	hostmem_read(&host, "");
	/* Source and destination; and the copy, before them. */
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     2 * args->used_mib * MIB, err);
	return r;
}

static int measure(const struct bench_args *args, struct row *rows)
{
	unsigned int num = make_rows(args, rows);
	enum second_stage stage = SECOND_STAGE_UNKNOWN;
	struct err err = ERR_INIT;

	if (bench_detect_stage(&stage, &err) || run_rows(args, rows, num, &err))
		return cli_fail(&cmd_bench_migrate, &err);
	if (args->json)
		return print_json(args, stage, rows, num);
	print_rows(args, rows, num);
	return CLI_OK;
}

static int migrate_bench(int argc, char **argv)
{
	struct bench_args args = {
		.mib = 1024,
		.used_mib = 256,
		.vcpus = 1,
		.tick_ms = 1,
		.runs = 3,
		.streams = { .values = { 1, 2 }, .num = 2 },
		.transports = { .values = { MIGRATE_UNIX, MIGRATE_TCP },
				.num = 2 },
		.pages = { .values = { RAM_PAGE_4K }, .num = 1 },
		.stage2 = { .values = { STAGE2_FILL }, .num = 1 },
		.modes = { .values = { MIGRATE_PRECOPY }, .num = 1 },
	};
	struct err err = ERR_INIT;
	struct row *rows;
	int status = bench_option_read(&cmd_bench_migrate, options,
				       ARRAY_SIZE(options), argc, argv, &args);

	if (status != CLI_OK)
		return status;
	if (args.used_mib + GUEST_MIB > args.mib)
		return cli_usage(&cmd_bench_migrate,
				 "--used-mib: the guest needs %u MiB besides",
				 GUEST_MIB);
	if (check_host(&args, &err))
		return cli_fail(&cmd_bench_migrate, &err);
	rows = calloc(2ul * args.pages.num * args.transports.num *
			      args.streams.num * args.stage2.num *
			      args.modes.num,
		      sizeof(*rows));
	if (!rows) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_bench_migrate, &err);
	}
	status = measure(&args, rows);
	free(rows);
	return status;
}

const struct cli_command cmd_bench_migrate = {
	.name = "bench migrate",
	.summary = "moving a guest to another process, and its speed there",
	.help = migrate_help,
	.run = migrate_bench,
	.option_at = option_at,
};
