/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quire bench restore: how soon is a restored guest at work?
 *
 * A probe guest fills its memory, and links the pages of its working set into a
 * cycle in random order; a snapshot of it is written. Then it is restored, by
 * each way in turn, and walks the cycle: once as it comes, and once more. Time
 * begins before the snapshot is opened. The last way replays what was recorded
 * in the first lazy restore. At the end of each run all of memory is verified.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/json.h"
#include "cli/bench.h"
#include "mem/keeper.h"
#include "mem/pager.h"
#include "mem/restore.h"
#include "probe/probe.h"
#include "snapshot/dir.h"
#include "snapshot/reader.h"
#include "snapshot/set_pages.h"
#include "snapshot/working_set.h"
#include "snapshot/writer.h"
#include "stage2/stage2.h"
#include "vm/config.h"
#include "vm/memory.h"
#include "vm/paging.h"

#define DEFAULT_MIB  1024u
#define DEFAULT_SET  256u
#define DEFAULT_RUNS 3u
#define MAX_MIB	     (1ull << 20)
#define MAX_SPREAD   512u
#define MAX_RUNS     BENCH_MAX_RUNS
#define NUM_MODES    4
#define SEED	     7
#define LONG_NS	     (300 * NSEC_PER_SEC)
#define MAX_HELPERS  16u

struct bench_args {
	uint64_t mib, set_mib, spread, runs;
	struct bench_choice pages;
	const char *dir;
	bool json;
	unsigned int helpers; /* vCPUs that map in the second stage */
};

enum moment {
	AT_OPEN,     /* the snapshot is open, its tables are checked */
	AT_FIRST,    /* the guest's first instruction */
	AT_PASS,     /* its first pass over the working set is done */
	AT_RESIDENT, /* all of memory is there */
	NUM_MOMENTS,
};

static const char *const moment_names[NUM_MOMENTS] = {
	[AT_OPEN] = "opened_s",
	[AT_FIRST] = "first_instruction_s",
	[AT_PASS] = "first_pass_s",
	[AT_RESIDENT] = "resident_s",
};

struct row {
	enum ram_page page;
	enum restore_mode mode;
	double at[NUM_MOMENTS][MAX_RUNS]; /* since the start */
	/* The first pass and the second, each by itself. */
	double alone[MAX_RUNS], again[MAX_RUNS];
	double kvm_faults[MAX_RUNS];  /* in the first pass; below 0: not told */
	uint64_t faults, ahead_bytes; /* of the last run */
	struct histogram_snapshot service; /* of all runs */
};

static void restore_help(void)
{
	printf("usage: quire bench restore [OPTION...]\n\n"
	       "Time a restored guest's first instruction and its first pass "
	       "over its working set,\nby the way its memory is restored.\n\n"
	       "  --mib M               memory of the guest, in MiB (default "
	       "%u)\n"
	       "  --set-mib M           of it the working set (default %u)\n"
	       "  --spread N            it is one page of each N (default 1: "
	       "all of one range)\n"
	       "  --page LIST           host pages: 4k, thp; default 4k\n"
	       "  --dir DIR             where the snapshot is put meanwhile "
	       "(default /var/tmp)\n"
	       "  --runs N              runs of each, in turn; medians count "
	       "(default %u)\n"
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
	case 'e':
		return bench_parse_number("--spread", value, MAX_SPREAD,
					  &args->spread, err);
	case 'p':
		/* Pages of a pool cannot be mapped from a file. */
		return bench_parse_choice("--page", value, bench_page_names,
					  RAM_PAGE_THP + 1, &args->pages, err);
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

static const struct option restore_options[] = {
	{ "mib", required_argument, NULL, 'm' },
	{ "set-mib", required_argument, NULL, 's' },
	{ "spread", required_argument, NULL, 'e' },
	{ "page", required_argument, NULL, 'p' },
	{ "dir", required_argument, NULL, 'd' },
	{ "runs", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ 0 },
};

/* ---- the guest ---- */

static struct probe_config probe_of(const struct bench_args *args,
				    enum ram_page page)
{
	return (struct probe_config){
		.num_vcpus = 1 + args->helpers,
		.test_bytes = args->mib * MIB,
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = page,
	};
}

/*
 * The working set lies in the middle of memory; where its pages are few they
 * are anywhere in their share of it, as the links of a cycle are (STAGGER).
 */
static struct probe_command set_command(const struct bench_args *args,
					enum probe_op op)
{
	uint64_t range_mib = args->set_mib * args->spread;

	return (struct probe_command){
		.op = op,
		.start = (args->mib - range_mib) / 2 * MIB,
		.len = range_mib * MIB,
		.stride = args->spread * PAGE_4K,
		.flags = PROBE_F_STAGGER,
		.seed = SEED,
		.passes = op == PROBE_OP_WALK ? args->set_mib * MIB / PAGE_4K
					      : 1,
	};
}

static int run_command(struct probe *probe, const struct probe_command *cmd,
		       struct probe_outcome *ret, struct err *err)
{
	int r = probe_run(probe, 0, cmd, LONG_NS, ret, err);

	if (!r && ret->guest.status != PROBE_DONE)
		r = err_set(err, EIO,
			    "the guest's memory is not what it was: word at "
			    "%#llx",
			    (unsigned long long)ret->guest.bad_offset);
	return r;
}

/* A cycle that was walked once is back at its start. */
static int walk_set(struct probe *probe, const struct bench_args *args,
		    struct probe_outcome *ret, struct err *err)
{
	struct probe_command cmd = set_command(args, PROBE_OP_WALK);
	int r = run_command(probe, &cmd, ret, err);

	if (!r && ret->guest.value)
		r = err_set(err, EIO,
			    "the guest's working set is not what it was");
	return r;
}

/* One word of each page, the second: a link is the first of a line. */
static int fill_or_verify(struct probe *probe, const struct bench_args *args,
			  enum probe_op op, struct err *err)
{
	const struct probe_command cmd = {
		.op = op,
		.start = sizeof(uint64_t),
		.len = args->mib * MIB - sizeof(uint64_t),
		.stride = PAGE_4K,
		.seed = SEED,
		.passes = 1,
	};
	struct probe_outcome out;

	return run_command(probe, &cmd, &out, err);
}

/* ---- its snapshot ---- */

static int write_memory(struct snapshot_writer *w, struct probe *probe,
			struct err *err)
{
	const struct snapshot_memory_request req = { .ram = probe_ram(probe) };
	json_t *config = json_object();
	int r = snapshot_writer_put_config(w, config, err);

	json_decref(config);
	/* A probe's vCPUs begin anew with each command. */
	if (!r)
		r = snapshot_writer_put_state(w, "probe", 5, err);
	if (!r)
		r = snapshot_writer_put_memory(w, &req, NULL, err);
	return r ? r : snapshot_writer_commit(w, err);
}

static int make_snapshot(const struct bench_args *args, const char *path,
			 struct err *err)
{
	const struct snapshot_writer_config cfg = { .path = path,
						    .replace = true };
	struct probe_config pc = probe_of(args, RAM_PAGE_THP);
	struct probe_command link = set_command(args, PROBE_OP_LINK);
	struct snapshot_writer *w = NULL;
	struct probe *probe = NULL;
	struct probe_outcome out;
	int r = probe_new(&probe, &pc, err);

	if (!r)
		r = fill_or_verify(probe, args, PROBE_OP_FILL, err);
	if (!r)
		r = run_command(probe, &link, &out, err);
	if (!r)
		r = snapshot_writer_new(&w, &cfg, err);
	if (!r)
		r = write_memory(w, probe, err);
	snapshot_writer_free(w);
	probe_free(probe);
	return r;
}

/* ---- one restore ---- */

struct restore {
	const struct bench_args *args;
	struct row *row;
	struct snapshot_reader *reader;
	struct working_set ahead;
	struct set_pages *kept;
	bool record;
	struct vm_paging paging;
	struct kvm_vcpu *helpers[MAX_HELPERS];
	struct stage2 *stage2;
	uint64_t began_ns;
	unsigned int run;
};

static void note(struct restore *b, enum moment moment)
{
	b->row->at[moment][b->run] = clock_ns_to_s(clock_now_ns() -
						   b->began_ns);
}

/*
 * As quire restore does where memory is paged: what has come is mapped through
 * vCPUs that nobody runs. None of them: there is no second stage.
 */
static int start_keeper(struct restore *b, struct probe *probe, struct err *err)
{
	const struct stage2_env env = {
		.kvm = probe_vm(probe)->kvm,
		.ram = probe_ram(probe),
		.vcpus = b->helpers,
		.num_vcpus = b->args->helpers,
	};
	struct keeper_config cfg = {
		.ram = probe_ram(probe),
		.vm_fd = probe_vm(probe)->fd,
		.threads = b->args->helpers,
		.rate_bytes_per_s = VM_DEFAULT_RATE,
	};
	struct keeper *keeper;
	struct err reason = ERR_INIT;
	int r;

	if (!b->paging.pager || !b->args->helpers)
		return 0;
	for (unsigned int i = 0; i < b->args->helpers; i++)
		b->helpers[i] = probe_vcpu(probe, 1 + i);
	r = stage2_open(&b->stage2, STAGE2_IOCTL, &env, &reason);
	if (r == -ENOTSUP)
		return 0;
	if (r) {
		*err = reason;
		return r;
	}
	cfg.second_stage = stage2_filler(b->stage2);
	r = keeper_new(&keeper, &cfg, err);
	if (r)
		return r;
	atomic_store(&b->paging.keeper, keeper);
	/* What came before it was there. */
	keeper_request(keeper, KEEPER_REPAIR, GPA(0), probe_ram(probe)->span);
	return 0;
}

/* The pager's threads first: then none of them asks for anything. */
static int end_keeper(struct restore *b, struct err *err)
{
	if (b->paging.pager)
		pager_end(b->paging.pager);
	keeper_free(atomic_exchange(&b->paging.keeper, NULL));
	return stage2_close(take_ptr(b->stage2), err);
}

static int restore_ram(void *ctx, struct ram *ram, struct err *err)
{
	struct restore *b = ctx;
	const struct restore_request eager = {
		.source = snapshot_reader_memory(b->reader),
	};
	const struct vm_memory_origin lazy = {
		.mode = restore_mode_names[b->row->mode],
		.began_ns = b->began_ns,
		.source = eager.source,
		.ahead = &b->ahead,
		.store = b->kept ? set_pages_store(b->kept) : NULL,
		.record = b->record,
	};
	int r = snapshot_reader_check_ram(b->reader, ram, err);

	if (r)
		return r;
	switch (b->row->mode) {
	case RESTORE_PRIVATE:
		return snapshot_reader_map(b->reader, ram, err);
	case RESTORE_EAGER:
		r = restore_eager(ram, &eager, NULL, err);
		note(b, AT_RESIDENT);
		return r;
	case RESTORE_LAZY:
	case RESTORE_WORKING_SET:
		break;
	}
	return vm_paging_start(&b->paging, ram, &lazy, 1, err);
}

static void end_ram(void *ctx)
{
	struct restore *b = ctx;

	vm_paging_stop(&b->paging);
}

static int save_set(struct restore *b, struct err *err)
{
	static const _Atomic bool never;
	struct working_set set = { 0 };
	int r = vm_paging_end_recording(&b->paging, &set);

	if (r)
		return err_errno(err, -r, "recording");
	r = snapshot_working_set_save(b->reader, &set, err);
	if (!r)
		r = set_pages_save(b->reader, &set, &never, err);
	working_set_fini(&set);
	return r;
}

static int wait_resident(struct restore *b, struct err *err)
{
	struct pager_stats stats;
	struct pager *pager = b->paging.pager;
	int r = pager ? pager_wait_complete(pager, LONG_NS) : 0;

	if (r)
		return err_errno(err, -r, "waiting for memory");
	if (!pager)
		return 0;
	note(b, AT_RESIDENT);
	pager_read_stats(pager, &stats);
	b->row->faults = stats.faults;
	b->row->ahead_bytes = stats.bytes[PAGER_WORKING_SET];
	histogram_merge(&b->row->service, &stats.service);
	return 0;
}

/* Faults that KVM handled so far: the second stage's, where there is one. */
static double count_kvm_faults(struct probe *probe)
{
	struct probe_counters counters;

	return probe_read_counters(probe, &counters) ? -1
						     : (double)counters.faults;
}

static int walk_first(struct restore *b, struct probe *probe, struct err *err)
{
	double before = count_kvm_faults(probe), after;
	struct probe_outcome out;
	int r = walk_set(probe, b->args, &out, err);

	note(b, AT_PASS);
	if (r)
		return r;
	after = count_kvm_faults(probe);
	b->row->alone[b->run] = clock_ns_to_s(out.wall_ns);
	b->row->kvm_faults[b->run] = before < 0 ? -1 : after - before;
	return 0;
}

static int use_guest(struct restore *b, struct probe *probe, struct err *err)
{
	const struct probe_command nothing = { .op = PROBE_OP_NOP };
	struct probe_outcome out = { 0 };
	int r = start_keeper(b, probe, err);

	if (!r)
		r = vm_paging_let_go_on(&b->paging, err);
	if (!r)
		r = run_command(probe, &nothing, &out, err);
	note(b, AT_FIRST);
	if (!r)
		r = walk_first(b, probe, err);
	if (!r && b->record)
		r = save_set(b, err);
	if (!r)
		r = wait_resident(b, err);
	if (!r)
		r = walk_set(probe, b->args, &out, err);
	b->row->again[b->run] = clock_ns_to_s(out.wall_ns);
	return r ? r : fill_or_verify(probe, b->args, PROBE_OP_VERIFY, err);
}

/* Where the set is dense nothing of it is kept. */
static int load_set(struct restore *b, struct err *err)
{
	int r = snapshot_working_set_load(b->reader, &b->ahead, err);

	if (!r)
		r = set_pages_open(&b->kept, b->reader, &b->ahead, err);
	return r == -ENOENT && b->ahead.num ? 0 : r;
}

static int restore_once(const struct bench_args *args, const char *path,
			struct row *row, unsigned int run, bool record,
			struct err *err)
{
	struct probe_config pc = probe_of(args, row->page);
	struct restore b = {
		.args = args,
		.row = row,
		.record = record,
		.run = run,
		.began_ns = clock_now_ns(),
	};
	struct probe *probe = NULL;
	struct err close_err = ERR_INIT;
	int r = snapshot_reader_open(&b.reader, path, err), ended;

	if (!r && row->mode == RESTORE_WORKING_SET)
		r = load_set(&b, err);
	note(&b, AT_OPEN);
	vm_paging_init(&b.paging);
	pc.ram_restore = restore_ram;
	pc.ram_gone = end_ram;
	pc.ctx = &b;
	if (!r)
		r = probe_new(&probe, &pc, err);
	if (!r)
		r = use_guest(&b, probe, err);
	ended = end_keeper(&b, &close_err);
	if (ended && !r)
		*err = close_err;
	probe_free(probe);
	vm_paging_fini(&b.paging);
	set_pages_free(b.kept);
	working_set_fini(&b.ahead);
	snapshot_reader_free(b.reader);
	return r ? r : ended;
}

/* ---- output ---- */

static double moment_of(const struct bench_args *args, const struct row *row,
			enum moment moment)
{
	return bench_median(row->at[moment], args->runs);
}

static void print_rows(const struct bench_args *args, const struct row *rows,
		       unsigned int num)
{
	printf("%llu MiB, working set %llu MiB, one page of each %llu, medians "
	       "of %llu runs, milliseconds since the start\n",
	       (unsigned long long)args->mib, (unsigned long long)args->set_mib,
	       (unsigned long long)args->spread,
	       (unsigned long long)args->runs);
	printf("%-5s %-12s %8s %8s %11s %11s %11s %8s %8s %11s\n", "page",
	       "memory", "opened", "first", "first pass", "by itself",
	       "pass again", "of KVM", "of pager", "resident");
	for (unsigned int i = 0; i < num; i++) {
		const struct row *row = &rows[i];
		double faults = bench_median(row->kvm_faults, args->runs);
		char kvm_faults[24] = "-";

		if (faults >= 0)
			snprintf(kvm_faults, sizeof(kvm_faults), "%.0f",
				 faults);
		printf("%-5s %-12s %8.1f %8.1f %11.1f %11.1f %11.1f %8s "
		       "%8llu ",
		       ram_page_names[row->page], restore_mode_names[row->mode],
		       moment_of(args, row, AT_OPEN) * 1e3,
		       moment_of(args, row, AT_FIRST) * 1e3,
		       moment_of(args, row, AT_PASS) * 1e3,
		       bench_median(row->alone, args->runs) * 1e3,
		       bench_median(row->again, args->runs) * 1e3, kvm_faults,
		       (unsigned long long)row->faults);
		if (row->mode == RESTORE_PRIVATE)
			printf("%11s\n", "-");
		else
			printf("%11.1f\n",
			       moment_of(args, row, AT_RESIDENT) * 1e3);
	}
}

/* rows[i] of one kind of page, as ratio of the lazy one's first pass. */
static double lazy_ratio(const struct bench_args *args, const struct row *rows,
			 unsigned int i)
{
	const struct row *lazy = &rows[i - i % NUM_MODES + 2];
	double own = moment_of(args, &rows[i], AT_PASS);

	return own > 0 ? moment_of(args, lazy, AT_PASS) / own : 0;
}

static void print_ratios(const struct bench_args *args, const struct row *rows,
			 unsigned int num)
{
	for (unsigned int i = NUM_MODES - 1; i < num; i += NUM_MODES)
		printf("%s: first pass with the working set ahead %.2f times "
		       "as fast as lazily\n",
		       ram_page_names[rows[i].page], lazy_ratio(args, rows, i));
}

static json_t *runs_json(const double *values, uint64_t num)
{
	json_t *list = json_array();

	for (uint64_t i = 0; i < num; i++)
		json_array_append_new(list, json_real(values[i]));
	return list;
}

static void add_kvm_faults(const struct bench_args *args, const struct row *row,
			   json_t *o)
{
	double faults = bench_median(row->kvm_faults, args->runs);

	if (faults < 0) {
		json_object_set_new(o, "kvm_faults", json_null());
		return;
	}
	json_object_set_new(o, "kvm_faults", json_integer((json_int_t)faults));
	json_object_set_new(o, "kvm_faults_runs",
			    runs_json(row->kvm_faults, args->runs));
}

static json_t *row_json(const struct bench_args *args, const struct row *rows,
			unsigned int i)
{
	const struct row *row = &rows[i];
	const uint64_t runs = args->runs;
	json_t *o = json_pack(
		"{s:s, s:s, s:f, s:o, s:f, s:o, s:I, s:I, s:f, s:o}", "page",
		ram_page_names[row->page], "memory",
		restore_mode_names[row->mode], "first_pass_alone_s",
		bench_median(row->alone, runs), "first_pass_alone_runs_s",
		runs_json(row->alone, runs), "second_pass_s",
		bench_median(row->again, runs), "second_pass_runs_s",
		runs_json(row->again, runs), "faults",
		json_int_u64(row->faults), "working_set_bytes",
		json_int_u64(row->ahead_bytes), "lazy_first_pass_ratio",
		lazy_ratio(args, rows, i), "service",
		json_histogram(&row->service));

	if (o)
		add_kvm_faults(args, row, o);
	for (unsigned int m = 0; o && m < NUM_MOMENTS; m++) {
		char key[40];

		if (m == AT_RESIDENT && row->mode == RESTORE_PRIVATE)
			continue;
		json_object_set_new(
			o, moment_names[m],
			json_real(moment_of(args, row, (enum moment)m)));
		snprintf(key, sizeof(key), "%.*s_runs_s",
			 (int)strlen(moment_names[m]) - 2, moment_names[m]);
		json_object_set_new(o, key, runs_json(row->at[m], args->runs));
	}
	return o;
}

static int print_json(const struct bench_args *args, const struct row *rows,
		      unsigned int num)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < num; i++)
		json_array_append_new(list, row_json(args, rows, i));
	return bench_print_json(
		&cmd_bench_restore,
		json_pack("{s:I, s:I, s:I, s:o}", "mib", (json_int_t)args->mib,
			  "set_mib", (json_int_t)args->set_mib, "spread",
			  (json_int_t)args->spread, "results", list));
}

/* ---- the command ---- */

static int run_rows(const struct bench_args *args, const char *path,
		    struct row *rows, unsigned int num, struct err *err)
{
	struct row recorded = { .mode = RESTORE_LAZY };
	int r = make_snapshot(args, path, err);

	if (!r)
		r = restore_once(args, path, &recorded, 0, true, err);
	for (uint64_t run = 0; !r && run < args->runs; run++) {
		/* The order turns: no way is always the first. */
		for (unsigned int i = 0; !r && i < num; i++)
			r = restore_once(args, path, &rows[(i + run) % num],
					 (unsigned int)run, false, err);
	}
	return r;
}

/* vCPUs that are not needed would take their time. */
static int choose_helpers(struct bench_args *args, struct err *err)
{
	enum second_stage stage = SECOND_STAGE_UNKNOWN;
	int r = bench_detect_stage(&stage, err);

	if (stage == SECOND_STAGE_TDP)
		args->helpers = MIN(cpus_allowed(), MAX_HELPERS);
	return r;
}

static unsigned int make_rows(const struct bench_args *args, struct row *rows)
{
	static const enum restore_mode modes[NUM_MODES] = {
		RESTORE_EAGER,
		RESTORE_PRIVATE,
		RESTORE_LAZY,
		RESTORE_WORKING_SET,
	};
	unsigned int num = 0;

	for (unsigned int i = 0; i < args->pages.num; i++) {
		for (unsigned int m = 0; m < NUM_MODES; m++) {
			rows[num].page = (enum ram_page)args->pages.values[i];
			rows[num++].mode = modes[m];
		}
	}
	return num;
}

static int check_args(const struct bench_args *args, struct err *err)
{
	struct hostmem host;
	int r = 0;

	if (args->set_mib > args->mib / args->spread)
		return err_set(err, EINVAL,
			       "--set-mib: more than %sthe guest's memory",
			       args->spread > 1 ? "its share (--spread) of "
						: "");
	hostmem_read(&host, "");
	for (unsigned int i = 0; !r && i < args->pages.num; i++)
		r = bench_check_page(&host,
				     (enum ram_page)args->pages.values[i],
				     args->mib * MIB, err);
	return r;
}

static int run_all(const struct bench_args *args, struct row *rows,
		   unsigned int num, struct err *err)
{
	char dir[200], path[240];
	int r;

	if (snprintf(dir, sizeof(dir), "%s/quire-bench-XXXXXX", args->dir) >=
	    (int)sizeof(dir))
		return err_set(err, ENAMETOOLONG, "--dir: name too long");
	if (!mkdtemp(dir))
		return err_errno(err, errno, "--dir %s", args->dir);
	snprintf(path, sizeof(path), "%s/snapshot", dir);
	r = run_rows(args, path, rows, num, err);
	(void)snapshot_dir_remove(path);
	(void)rmdir(dir);
	return r;
}

static int restore_bench(int argc, char **argv)
{
	struct bench_args args = {
		.mib = DEFAULT_MIB,
		.set_mib = DEFAULT_SET,
		.spread = 1,
		.runs = DEFAULT_RUNS,
		.pages = { .values = { RAM_PAGE_4K }, .num = 1 },
		.dir = "/var/tmp",
	};
	struct err err = ERR_INIT;
	struct row *rows;
	unsigned int num;
	int status = bench_read_options(&cmd_bench_restore, argc, argv,
					restore_options, set_option, &args);

	if (status != CLI_OK)
		return status;
	if (check_args(&args, &err) || choose_helpers(&args, &err))
		return cli_fail(&cmd_bench_restore, &err);
	rows = calloc((size_t)args.pages.num * NUM_MODES + 1, sizeof(*rows));
	if (!rows) {
		err_set(&err, ENOMEM, "out of memory");
		return cli_fail(&cmd_bench_restore, &err);
	}
	num = make_rows(&args, rows);
	if (run_all(&args, rows, num, &err)) {
		status = cli_fail(&cmd_bench_restore, &err);
	} else if (args.json) {
		status = print_json(&args, rows, num);
	} else {
		print_rows(&args, rows, num);
		print_ratios(&args, rows, num);
	}
	free(rows);
	return status;
}

const struct cli_command cmd_bench_restore = {
	.name = "bench restore",
	.summary = "a restored guest's first steps, by where memory comes from",
	.help = restore_help,
	.run = restore_bench,
	.options = restore_options,
};
