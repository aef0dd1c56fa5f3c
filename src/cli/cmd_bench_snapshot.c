/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench snapshot: how long does a guest stand still for its snapshot, and
 * what is left of its speed while memory is written beside it?
 *
 * A probe guest fills its memory, and then stores to random words of its
 * working set without end. Its memory is written twice: while it stands still,
 * and live. How fast it stores is measured for a while before, and from the
 * moment it goes on until all of memory is written. What the live one holds is
 * compared with what memory held when the guest stood still.
 *
 * The pause is that for memory: to stop the vCPU, protect memory, and let it go
 * on. A machine has state and disks to save besides.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "cli/bench.h"
#include "mem/restore.h"
#include "mem/uffd.h"
#include "probe/probe.h"
#include "snapshot/format.h"
#include "snapshot/reader.h"
#include "snapshot/sum.h"
#include "snapshot/writer.h"

#define DEFAULT_MIB  1024u
#define DEFAULT_SET  64u
#define DEFAULT_RUNS 5u
#define MAX_MIB	     (1ull << 20)
#define MAX_RUNS     BENCH_MAX_RUNS
#define SEED	     7
#define BEFORE_NS    (300 * NSEC_PER_MSEC)
#define LONG_NS	     (300 * NSEC_PER_SEC)

struct bench_args {
	uint64_t mib, set_mib, runs, threads;
	struct bench_choice pages;
	const char *dir;
	bool json;
};

enum figure {
	STILL_PAUSE, /* seconds, of the one that is not live */
	LIVE_PAUSE,
	LIVE_WINDOW, /* until all of memory is written */
	RATE_BEFORE, /* stores in a second */
	RATE_WINDOW,
	WAITED, /* bytes that were copied out of turn */
	NUM_FIGURES,
};

static const char *const figure_names[NUM_FIGURES] = {
	[STILL_PAUSE] = "still_pause_s", [LIVE_PAUSE] = "live_pause_s",
	[LIVE_WINDOW] = "window_s",	 [RATE_BEFORE] = "stores_before_per_s",
	[RATE_WINDOW] = "stores_per_s",	 [WAITED] = "waited_bytes",
};

struct row {
	enum ram_page page;
	double figures[NUM_FIGURES][MAX_RUNS];
};

static void snapshot_help(void)
{
	printf("usage: quire bench snapshot [OPTION...]\n\n"
	       "Time how long a guest that writes all the while stands still "
	       "for its memory to be\nwritten into a snapshot, and how fast it "
	       "is while that is done live.\n\n"
	       "  --mib M               memory of the guest, in MiB, all of it "
	       "filled (default %u)\n"
	       "  --set-mib M           of it what it writes to meanwhile "
	       "(default %u)\n"
	       "  --page LIST           host pages: 4k, thp, 2m; default 4k\n"
	       "  --threads N           that write memory (default: one per "
	       "CPU, live for two)\n"
	       "  --dir DIR             where the snapshots are put meanwhile "
	       "(default /var/tmp)\n"
	       "  --runs N              runs; medians count (default %u)\n"
	       "  --json                one JSON object, times in seconds\n",
	       DEFAULT_MIB, DEFAULT_SET, DEFAULT_RUNS);
}

static int set_option(void *ctx, int option, const char *value, struct err *err)
{
	struct bench_args *args = ctx;

	switch (option) {
	case 'm':
		return bench_parse_number("--mib", value, MAX_MIB, &args->mib,
					  err);
	case 's':
		return bench_parse_number("--set-mib", value, MAX_MIB,
					  &args->set_mib, err);
	case 'p':
		return bench_parse_choice("--page", value, bench_page_names,
					  BENCH_NUM_PAGES, &args->pages, err);
	case 't':
		return bench_parse_number("--threads", value, 256,
					  &args->threads, err);
	case 'd':
		args->dir = value;
		return 0;
	case 'r':
		return bench_parse_number("--runs", value, MAX_RUNS,
					  &args->runs, err);
	default:
		args->json = true;
		return 0;
	}
}

static const struct option snapshot_options[] = {
	{ "mib", required_argument, NULL, 'm' },
	{ "set-mib", required_argument, NULL, 's' },
	{ "page", required_argument, NULL, 'p' },
	{ "threads", required_argument, NULL, 't' },
	{ "dir", required_argument, NULL, 'd' },
	{ "runs", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

/* ---- the guest ---- */

struct run {
	const struct bench_args *args;
	struct row *row;
	unsigned int number;
	const char *path; /* of the snapshots, one after the other */
	struct probe *probe;
	int uffd;
	bool all_kinds;
	struct write_window *window;
	uint64_t *sums;	    /* of memory's units at the instant */
	uint64_t paused_ns; /* when it was, but for what is only measuring */
	uint64_t went_on_ns;
};

static void note(struct run *run, enum figure figure, double value)
{
	run->row->figures[figure][run->number] = value;
}

static int fill(struct run *run, struct err *err)
{
	const struct probe_command cmd = {
		.op = PROBE_OP_FILL,
		.len = run->args->mib * MIB,
		.stride = 64,
		.seed = SEED,
		.passes = 1,
	};
	struct probe_outcome out;

	return probe_run(run->probe, 0, &cmd, LONG_NS, &out, err);
}

/* The working set is the middle of memory. */
static int start_stores(struct run *run, struct err *err)
{
	const struct bench_args *args = run->args;
	const struct probe_command cmd = {
		.op = PROBE_OP_SCATTER,
		.start = (args->mib - args->set_mib) / 2 * MIB,
		.len = args->set_mib * MIB,
		.stride = 8,
		.seed = SEED,
	};

	return probe_start(run->probe, 0, &cmd, err);
}

static int go_on(struct run *run, struct err *err)
{
	run->went_on_ns = clock_now_ns();
	note(run, LIVE_PAUSE, clock_ns_to_s(run->went_on_ns - run->paused_ns));
	return start_stores(run, err);
}

/* Returns how many there were in ret. */
static int stop_stores(struct run *run, uint64_t *ret, struct err *err)
{
	struct probe_outcome out;
	int r;

	probe_stop(run->probe);
	r = probe_wait(run->probe, 0, LONG_NS, &out, err);
	if (!r)
		*ret = out.guest.accesses;
	return r;
}

static void sleep_ns(uint64_t ns)
{
	const struct timespec time = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	nanosleep(&time, NULL);
}

static int measure_before(struct run *run, struct err *err)
{
	uint64_t began = clock_now_ns(), stores = 0;
	int r = start_stores(run, err);

	if (r)
		return r;
	sleep_ns(BEFORE_NS);
	r = stop_stores(run, &stores, err);
	note(run, RATE_BEFORE,
	     (double)stores / clock_ns_to_s(clock_now_ns() - began));
	return r;
}

/* ---- its snapshots ---- */

static struct snapshot_memory_request
memory_request(const struct run *run, struct write_window *window)
{
	return (struct snapshot_memory_request){
		.ram = probe_ram(run->probe),
		.window = window,
		.threads = (unsigned int)run->args->threads,
	};
}

static int begin_snapshot(struct run *run, struct write_window *window,
			  struct snapshot_writer **ret, struct err *err)
{
	const struct snapshot_writer_config cfg = { .path = run->path,
						    .replace = true };
	const struct snapshot_memory_request req = memory_request(run, window);
	int r = snapshot_writer_new(ret, &cfg, err);

	return r ? r : snapshot_writer_prepare_memory(*ret, &req, err);
}

/* A probe's vCPUs begin anew with each command: it has no state. */
static int finish_snapshot(struct snapshot_writer *w, struct err *err)
{
	json_t *config = json_object();
	int r = snapshot_writer_put_config(w, config, err);

	json_decref(config);
	if (!r)
		r = snapshot_writer_put_state(w, "probe", 5, err);
	return r ? r : snapshot_writer_commit(w, err);
}

static int measure_still(struct run *run, struct err *err)
{
	const struct snapshot_memory_request req = memory_request(run, NULL);
	struct snapshot_memory_result result = { 0 };
	struct snapshot_writer *w = NULL;
	int r = begin_snapshot(run, NULL, &w, err);

	if (!r)
		r = snapshot_writer_put_memory(w, &req, &result, err);
	note(run, STILL_PAUSE, clock_ns_to_s(result.wall_ns));
	if (!r)
		r = finish_snapshot(w, err);
	snapshot_writer_free(w);
	return r;
}

/* What the snapshot is to hold; not of the pause that is measured. */
static int note_sums(struct run *run, struct err *err)
{
	const struct ram *ram = probe_ram(run->probe);
	struct mem_range ranges[RAM_MAX_REGIONS];
	unsigned int num = ram_ranges(ram, ranges);
	uint64_t units = mem_units(ranges, num);

	run->sums = calloc(units, sizeof(*run->sums));
	if (!run->sums)
		return err_set(err, ENOMEM, "out of memory");
	for (uint64_t i = 0; i < units; i++) {
		struct mem_range unit = mem_unit(ranges, num, i);

		run->sums[i] = sum_unit(ram->base + unit.start, unit.len);
	}
	return 0;
}

static int check_sums(const struct run *run, struct err *err)
{
	struct snapshot_reader *reader;
	const struct snapshot_manifest *m;
	const uint64_t *sums;
	int r = snapshot_reader_open(&reader, run->path, err);

	if (r)
		return r;
	m = snapshot_reader_manifest(reader);
	sums = snapshot_reader_sums(reader);
	for (uint64_t i = 0; i < mem_units(m->ranges, m->num_ranges); i++) {
		if (!r && sums[i] != run->sums[i])
			r = err_set(err, EIO,
				    "the snapshot's unit %llu is not what "
				    "memory held when it was taken",
				    (unsigned long long)i);
	}
	if (!r)
		r = snapshot_reader_verify(reader, 0, NULL, err);
	snapshot_reader_free(reader);
	return r;
}

/* From the instant to the end of its snapshot's memory. */
static int measure_window(struct run *run, struct write_window *window,
			  struct snapshot_writer *w, struct err *err)
{
	const struct snapshot_memory_request req = memory_request(run, window);
	struct snapshot_memory_result result = { 0 };
	uint64_t stores = 0;
	double window_s;
	int r = go_on(run, err);

	if (!r)
		r = snapshot_writer_put_memory(w, &req, &result, err);
	if (r)
		return r; /* freeing the probe stops it */
	write_window_close(take_ptr(run->window));
	r = stop_stores(run, &stores, err);
	window_s = clock_ns_to_s(clock_now_ns() - run->went_on_ns);
	note(run, LIVE_WINDOW, window_s);
	note(run, RATE_WINDOW, (double)stores / window_s);
	note(run, WAITED, (double)(result.waited_units * MEM_UNIT_BYTES));
	return r;
}

static int pause_and_arm(struct run *run, struct err *err)
{
	uint64_t stores, sums_ns;
	int r;

	run->paused_ns = clock_now_ns();
	r = stop_stores(run, &stores, err);
	sums_ns = clock_now_ns();
	if (!r)
		r = note_sums(run, err);
	run->paused_ns += clock_now_ns() - sums_ns;
	if (!r)
		r = write_window_arm(run->window, err);
	return r;
}

static int take_live(struct run *run, struct snapshot_writer **ret,
		     struct err *err)
{
	int r = write_window_open(&run->window, probe_ram(run->probe),
				  run->uffd, run->all_kinds, err);

	if (!r)
		r = start_stores(run, err);
	if (!r)
		r = begin_snapshot(run, run->window, ret, err);
	if (!r) {
		sleep_ns(BEFORE_NS / 3);
		r = pause_and_arm(run, err);
	}
	if (!r)
		r = measure_window(run, run->window, *ret, err);
	return r ? r : finish_snapshot(*ret, err);
}

static int measure_live(struct run *run, struct err *err)
{
	struct snapshot_writer *w = NULL;
	int r = take_live(run, &w, err);

	/* Who serves the window goes before it. */
	snapshot_writer_free(w);
	write_window_close(take_ptr(run->window));
	return r ? r : check_sums(run, err);
}

static int run_once(struct run *run, struct err *err)
{
	const struct probe_config cfg = {
		.num_vcpus = 1,
		.test_bytes = run->args->mib * MIB,
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = run->row->page,
	};
	int r = probe_new(&run->probe, &cfg, err);

	if (!r)
		r = fill(run, err);
	if (!r)
		r = measure_before(run, err);
	if (!r)
		r = measure_still(run, err);
	if (!r)
		r = measure_live(run, err);
	probe_free(run->probe);
	free(run->sums);
	return r;
}

/* ---- output ---- */

static double figure_of(const struct bench_args *args, const struct row *row,
			enum figure figure)
{
	return bench_median(row->figures[figure], args->runs);
}

static double speed_of(const struct bench_args *args, const struct row *row)
{
	double before = figure_of(args, row, RATE_BEFORE);

	return before > 0 ? figure_of(args, row, RATE_WINDOW) / before : 0;
}

static void print_rows(const struct bench_args *args, const struct row *rows)
{
	printf("%llu MiB, %llu MiB of it written to all the while, medians of "
	       "%llu runs\n",
	       (unsigned long long)args->mib, (unsigned long long)args->set_mib,
	       (unsigned long long)args->runs);
	printf("%-5s %12s %12s %12s %12s %12s\n", "page", "still pause",
	       "live pause", "window", "guest speed", "out of turn");
	for (unsigned int i = 0; i < args->pages.num; i++) {
		const struct row *row = &rows[i];

		printf("%-5s %9.1f ms %9.1f ms %9.1f ms %10.0f %% %8.0f MiB\n",
		       ram_page_names[row->page],
		       figure_of(args, row, STILL_PAUSE) * 1e3,
		       figure_of(args, row, LIVE_PAUSE) * 1e3,
		       figure_of(args, row, LIVE_WINDOW) * 1e3,
		       speed_of(args, row) * 1e2,
		       figure_of(args, row, WAITED) / (double)MIB);
	}
}

static json_t *row_json(const struct bench_args *args, const struct row *row)
{
	json_t *o = json_pack("{s:s, s:f}", "page", ram_page_names[row->page],
			      "speed_ratio", speed_of(args, row));

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

static int print_json(const struct bench_args *args, const struct row *rows)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < args->pages.num; i++)
		json_array_append_new(list, row_json(args, &rows[i]));
	return bench_print_json(&cmd_bench_snapshot,
				json_pack("{s:I, s:I, s:o}", "mib",
					  (json_int_t)args->mib, "set_mib",
					  (json_int_t)args->set_mib, "results",
					  list));
}

/* ---- the command ---- */

/* The snapshot is what quire made there, and nothing else is removed. */
static void remove_snapshot(const char *dir, const char *path)
{
	static const char *const files[] = {
		SNAPSHOT_MANIFEST, SNAPSHOT_CONFIG, SNAPSHOT_STATE,
		SNAPSHOT_MEMORY,   SNAPSHOT_SUMS,
	};
	char name[300];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(name, sizeof(name), "%s/%s", path, files[i]);
		(void)unlink(name);
	}
	(void)rmdir(path);
	(void)rmdir(dir);
}

static int run_rows(const struct bench_args *args, struct row *rows,
		    const char *path, struct err *err)
{
	bool all_kinds = false;
	_cleanup_close_ int uffd = uffd_open_protecting(NULL, &all_kinds, err);
	int r = uffd < 0 ? uffd : 0;

	for (unsigned int i = 0; i < args->pages.num; i++)
		rows[i].page = (enum ram_page)args->pages.values[i];
	for (unsigned int n = 0; !r && n < args->runs; n++) {
		for (unsigned int i = 0; !r && i < args->pages.num; i++) {
			struct run run = {
				.args = args,
				.row = &rows[i],
				.number = n,
				.path = path,
				.uffd = uffd,
				.all_kinds = all_kinds,
			};

			r = run_once(&run, err);
		}
	}
	return r;
}

static int run_all(const struct bench_args *args, struct row *rows,
		   struct err *err)
{
	char dir[200], path[240];
	int r;

	if (snprintf(dir, sizeof(dir), "%s/quire-bench-XXXXXX", args->dir) >=
	    (int)sizeof(dir))
		return err_set(err, ENAMETOOLONG, "--dir: name too long");
	if (!mkdtemp(dir))
		return err_errno(err, errno, "--dir %s", args->dir);
	snprintf(path, sizeof(path), "%s/snapshot", dir);
	r = run_rows(args, rows, path, err);
	remove_snapshot(dir, path);
	return r;
}

static int check_args(const struct bench_args *args, struct err *err)
{
	struct hostmem host;
	int r = 0;

	if (args->set_mib > args->mib)
		return err_set(err, EINVAL,
			       "--set-mib: more than the guest's memory");
	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     args->mib * MIB, err);
	return r;
}

static int snapshot_bench(int argc, char **argv)
{
	struct bench_args args = {
		.mib = DEFAULT_MIB,
		.set_mib = DEFAULT_SET,
		.runs = DEFAULT_RUNS,
		.pages = { .values = { RAM_PAGE_4K }, .num = 1 },
		.dir = "/var/tmp",
	};
	struct row rows[BENCH_MAX_CHOICES] = { { 0 } };
	struct err err = ERR_INIT;
	int status = bench_read_options(&cmd_bench_snapshot, argc, argv,
					snapshot_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (check_args(&args, &err) || run_all(&args, rows, &err))
		return cli_fail(&cmd_bench_snapshot, &err);
	if (args.json)
		return print_json(&args, rows);
	print_rows(&args, rows);
	return CLI_OK;
}

const struct cli_command cmd_bench_snapshot = {
	.name = "bench snapshot",
	.summary = "how long a guest stands still, and its speed meanwhile",
	.help = snapshot_help,
	.run = snapshot_bench,
	.options = snapshot_options,
};
