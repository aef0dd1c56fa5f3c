/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does dirty tracking lose a write? A probe guest stores to random words on all
 * vCPUs; threads of the VMM write to the same memory through the accessors; the
 * log is harvested at random moments; takers take random ranges and copy what
 * was dirty to a shadow. In the end everything stops, what is left is taken,
 * and all of guest memory has to equal the shadow.
 *
 * That is done several times in one VM (phases): tracking begins while guest
 * and writers are at work, and ends.
 *
 * --break puts a fault between tracker and KVM, or into the writers, which has
 * to be noticed: pages are armed after they were handed out, or marked before
 * the bytes are there.
 *
 * Prints one JSON object. Exit status: 0 nothing lost, 1 something lost or
 * could not run, 2 wrong usage, 77 no KVM or no such log here.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/size.h"
#include "base/thread.h"
#include "mem/dirty_priv.h"
#include "probe/tracked.h"

#define MAX_THREADS 16
#define MAX_VCPUS   16
#define SKIPPED	    77

/* ---- what is asked for ---- */

enum fault {
	FAULT_NONE,
	FAULT_RESET_LATE, /* rings: reset after the bits are published */
	FAULT_CLEAR_LATE, /* bitmap: CLEAR after the pages are handed out */
	FAULT_MARK_EARLY, /* writers mark before they write */
};

static const char *const fault_names[] = {
	[FAULT_NONE] = "none",
	[FAULT_RESET_LATE] = "reset-late",
	[FAULT_CLEAR_LATE] = "clear-late",
	[FAULT_MARK_EARLY] = "mark-early",
};

struct options {
	int method, page, fault;
	uint64_t vcpus, writers, takers, mib, seconds, phases, ring_entries;
	uint64_t seed;
};

/* ---- random numbers: splitmix64, a state for each thread ---- */

static uint64_t rnd(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t below(uint64_t *state, uint64_t n)
{
	return rnd(state) % n;
}

/* ---- the run ---- */

struct late_clear {
	struct late_clear *next;
	unsigned int slot;
	uint64_t first;
	uint32_t num;
	uint64_t bits[];
};

struct torture;

struct worker {
	struct torture *t;
	uint64_t seed;
	pthread_t thread;
	uint64_t done; /* writes made, or pages copied */
	uint64_t *bits;
};

struct torture {
	struct options opt;
	struct probe_tracked pt;
	const struct ram *ram;
	char *shadow; /* offset = guest-physical address */
	uint64_t seed;

	/* Takers keep to one segment at a time, and lock it. */
	uint64_t segment_pages;
	pthread_mutex_t *segments;
	uint64_t num_segments;

	struct worker writers[MAX_THREADS], takers[MAX_THREADS];
	_Atomic bool stop_writers, stop_takers, failed;

	/* FAULT_*_LATE: what a thread of its own does, too late. */
	const struct kvm_vm *vm;
	pthread_t late_thread;
	_Atomic bool stop_late;
	pthread_mutex_t late_lock;
	struct late_clear *late_clears;

	uint64_t guest_stores, vmm_writes, pages_copied, pages_compared;
	uint64_t pages_different;
};

static int fail(struct torture *t, const char *what, int r)
{
	fprintf(stderr, "dirty_torture: %s: %s\n", what, strerror(-r));
	atomic_store(&t->failed, true);
	return r;
}

/* ---- a KVM that is late ---- */

static int late_set_logging(void *ctx, const struct ram *ram,
			    const struct ram_region *region, bool on)
{
	struct torture *t = ctx;

	return dirty_kernel_kvm.set_logging((void *)t->vm, ram, region, on);
}

static int late_get_log(void *ctx, unsigned int slot, uint64_t *bitmap)
{
	struct torture *t = ctx;

	return kvm_dirty_get_log(t->vm, slot, bitmap);
}

static int late_clear_log(void *ctx, unsigned int slot, uint64_t first,
			  uint32_t num, const uint64_t *bits)
{
	size_t bytes = div_round_up(num, 64) * sizeof(uint64_t);
	struct torture *t = ctx;
	struct late_clear *late = malloc(sizeof(*late) + bytes);

	if (!late)
		return -ENOMEM;
	late->slot = slot;
	late->first = first;
	late->num = num;
	memcpy(late->bits, bits, bytes);
	pthread_mutex_lock(&t->late_lock);
	late->next = t->late_clears;
	t->late_clears = late;
	pthread_mutex_unlock(&t->late_lock);
	return 0;
}

static int late_reset_rings(void *ctx)
{
	return INT32_MAX; /* "all of them" */
}

static const struct dirty_kernel late_kernel = {
	.set_logging = late_set_logging,
	.get_log = late_get_log,
	.clear_log = late_clear_log,
	.reset_rings = late_reset_rings,
};

static void *late_main(void *arg)
{
	struct torture *t = arg;
	struct late_clear *list, *next;
	int r = 0;

	while (!atomic_load(&t->stop_late)) {
		usleep(2000);
		pthread_mutex_lock(&t->late_lock);
		list = t->late_clears;
		t->late_clears = NULL;
		pthread_mutex_unlock(&t->late_lock);
		for (; list; list = next) {
			next = list->next;
			r = kvm_dirty_clear_log(t->vm, list->slot, list->first,
						list->num, list->bits);
			free(list);
		}
		if (t->opt.fault == FAULT_RESET_LATE)
			r = kvm_dirty_reset_rings(t->vm);
		if (r < 0)
			fail(t, "being late", r);
	}
	return NULL;
}

static bool is_late(const struct torture *t)
{
	return t->opt.fault == FAULT_RESET_LATE ||
	       t->opt.fault == FAULT_CLEAR_LATE;
}

/* ---- the VMM's writers ---- */

static void write_through_pointer(struct worker *w, struct gpa gpa,
				  const void *bytes, uint64_t len)
{
	struct torture *t = w->t;
	void *to = mem_map_range(t->ram, gpa, len, MEM_READ);
	bool early = t->opt.fault == FAULT_MARK_EARLY;

	if (!to) {
		fail(t, "a writer's address", -EFAULT);
		return;
	}
	if (early) {
		mem_mark_dirty(t->ram, gpa, len);
		usleep(200);
	}
	memcpy(to, bytes, len);
	if (!early)
		mem_mark_dirty(t->ram, gpa, len);
}

static void *writer_main(void *arg)
{
	struct worker *w = arg;
	struct torture *t = w->t;
	const struct probe_layout *layout = probe_layout(t->pt.probe);
	uint64_t bytes[1200];

	while (!atomic_load(&t->stop_writers)) {
		uint64_t len = 1 + below(&w->seed, sizeof(bytes));
		uint64_t at = below(&w->seed, layout->test_bytes - len);
		struct gpa gpa = probe_layout_test_gpa(layout, at);

		for (size_t i = 0; i < ARRAY_SIZE(bytes); i++)
			bytes[i] = rnd(&w->seed);
		if (w->done % 2)
			write_through_pointer(w, gpa, bytes, len);
		else if (mem_write(t->ram, gpa, bytes, len))
			fail(t, "mem_write", -EFAULT);
		w->done++;
		if (below(&w->seed, 4) == 0)
			usleep((useconds_t)below(&w->seed, 500));
	}
	return NULL;
}

/* ---- takers ---- */

/* One take from one segment, and the copies. */
static void take_once(struct worker *w, uint64_t first, uint64_t num)
{
	struct torture *t = w->t;
	uint64_t at = 0, len, from;
	int64_t n = dirty_take(t->pt.tracker, 0, first, num, w->bits);

	if (n < 0) {
		fail(t, "dirty_take", (int)n);
		return;
	}
	for (; dirty_next_run(w->bits, num, &at, &len); at += len) {
		from = (first + at) * PAGE_4K;
		memcpy(t->shadow + from, t->ram->base + from, len * PAGE_4K);
		w->done += len;
		n -= (int64_t)len;
	}
	if (n)
		fail(t, "dirty_take's count", -EPROTO);
}

static void take_random(struct worker *w)
{
	struct torture *t = w->t;
	uint64_t pages = ram_region_pages(&t->ram->regions[0]);
	uint64_t segment = below(&w->seed, t->num_segments);
	uint64_t first = segment * t->segment_pages, num, skip;

	if (pthread_mutex_trylock(&t->segments[segment]))
		return;
	num = MIN(t->segment_pages, pages - first);
	/* Often all of it, otherwise some whole words in the middle. */
	if (below(&w->seed, 2)) {
		skip = align_down(below(&w->seed, num), 64);
		first += skip;
		num = MIN(num - skip,
			  64 + align_down(below(&w->seed, num), 64));
	}
	take_once(w, first, num);
	pthread_mutex_unlock(&t->segments[segment]);
}

static void *taker_main(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(&w->t->stop_takers)) {
		take_random(w);
		if (below(&w->seed, 8) == 0)
			usleep((useconds_t)below(&w->seed, 2000));
	}
	return NULL;
}

/* ---- phases ---- */

static int start_guest(struct torture *t, struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < t->opt.vcpus; i++) {
		struct probe_command cmd = {
			.op = PROBE_OP_SCATTER,
			.len = probe_layout(t->pt.probe)->test_bytes,
			.stride = 8,
			.seed = rnd(&t->seed),
		};

		r = probe_start(t->pt.probe, i, &cmd, err);
	}
	return r;
}

/* Every vCPU out of the guest. */
static int stop_guest(struct torture *t, struct err *err)
{
	struct probe_outcome out;
	int r = 0, r2;

	probe_stop(t->pt.probe);
	for (unsigned int i = 0; i < t->opt.vcpus; i++) {
		r2 = probe_wait(t->pt.probe, i, 60 * NSEC_PER_SEC, &out,
				r ? NULL : err);
		if (!r2)
			t->guest_stores += out.guest.accesses;
		else if (!r)
			r = r2;
	}
	return r;
}

static void start_workers(struct torture *t, struct worker *workers,
			  uint64_t num, const char *name, void *(*fn)(void *))
{
	for (uint64_t i = 0; i < num; i++) {
		workers[i].t = t;
		workers[i].seed = rnd(&t->seed);
		if (thread_start(&workers[i].thread, &thread_class_tool, name,
				 fn, &workers[i])) {
			perror("dirty_torture: thread");
			exit(1);
		}
	}
}

static void join_workers(struct worker *workers, uint64_t num,
			 _Atomic bool *stop)
{
	atomic_store(stop, true);
	for (uint64_t i = 0; i < num; i++)
		pthread_join(workers[i].thread, NULL);
	atomic_store(stop, false);
}

static void report_difference(const struct torture *t, uint64_t gpa)
{
	const char *is = t->ram->base + gpa, *copy = t->shadow + gpa;
	unsigned int i = 0;

	while (is[i] == copy[i])
		i++;
	i &= ~7u;
	fprintf(stderr,
		"dirty_torture: page at %#" PRIx64
		" differs from offset %u on: "
		"memory %#" PRIx64 ", copy %#" PRIx64 "\n",
		gpa, i, le64_load(is + i), le64_load(copy + i));
}

static void compare_all(struct torture *t)
{
	uint64_t size = t->ram->regions[0].size;

	for (uint64_t gpa = 0; gpa < size; gpa += PAGE_4K) {
		t->pages_compared++;
		if (!memcmp(t->ram->base + gpa, t->shadow + gpa, PAGE_4K))
			continue;
		if (t->pages_different++ < 5)
			report_difference(t, gpa);
	}
}

static int harvest_for(struct torture *t, uint64_t ns, struct err *err)
{
	uint64_t end = clock_now_ns() + ns;

	while (clock_now_ns() < end && !atomic_load(&t->failed)) {
		int r = dirty_harvest(t->pt.tracker, NULL, err);

		if (r)
			return r;
		/* Now and then long enough for the rings to fill. */
		if (below(&t->seed, 16) == 0)
			usleep(400000);
		else if (below(&t->seed, 3))
			usleep((useconds_t)below(&t->seed, 20000));
	}
	return 0;
}

static int tracked_part(struct torture *t, struct err *err)
{
	uint64_t ns = t->opt.seconds * NSEC_PER_SEC / t->opt.phases;
	int r, r2;

	start_workers(t, t->takers, t->opt.takers, "taker", taker_main);
	r = harvest_for(t, ns, err);
	/* The devices, then the guest; the takers go on all the while. */
	join_workers(t->writers, t->opt.writers, &t->stop_writers);
	r2 = stop_guest(t, r ? NULL : err);
	if (!r)
		r = r2;
	join_workers(t->takers, t->opt.takers, &t->stop_takers);
	if (!r)
		r = dirty_final(t->pt.tracker, NULL, err);
	if (!r) {
		take_once(&t->takers[0], 0,
			  ram_region_pages(&t->ram->regions[0]));
		compare_all(t);
	}
	return r;
}

static int run_phase(struct torture *t, struct err *err)
{
	int r = start_guest(t, err);

	if (r)
		return r;
	start_workers(t, t->writers, t->opt.writers, "writer", writer_main);
	usleep(20000);
	/* With guest and writers at work. */
	r = probe_tracked_start(&t->pt, err);
	if (r) {
		join_workers(t->writers, t->opt.writers, &t->stop_writers);
		stop_guest(t, NULL);
		return r;
	}
	r = tracked_part(t, err);
	dirty_stop(t->pt.tracker);
	return r;
}

/* ---- building, results ---- */

static int build(struct torture *t, struct err *err)
{
	struct probe_config cfg = {
		.num_vcpus = (unsigned int)t->opt.vcpus,
		.test_bytes = t->opt.mib * MIB,
		.guest_page = PROBE_GUEST_PAGE_2M,
		.page = (enum ram_page)t->opt.page,
	};
	struct dirty_config dirty = {
		.method = (enum dirty_method)t->opt.method,
		.ring_entries = (uint32_t)t->opt.ring_entries,
		.memory_bytes = cfg.test_bytes,
		.kernel = is_late(t) ? &late_kernel : NULL,
		.kernel_ctx = t,
	};
	uint64_t pages;
	int r = probe_tracked_init(&t->pt, &cfg, &dirty, err);

	if (r)
		return r;
	t->vm = probe_vm(t->pt.probe);
	t->ram = probe_ram(t->pt.probe);
	if (t->ram->num_regions != 1)
		return err_set(err, EINVAL, "--mib: more than one region");
	t->shadow = mmap(NULL, t->ram->span, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t->shadow == MAP_FAILED)
		return err_errno(err, errno, "mapping the copy");
	pages = ram_region_pages(&t->ram->regions[0]);
	t->segment_pages = 512ull << below(&t->seed, 4);
	t->num_segments = div_round_up(pages, t->segment_pages);
	t->segments = calloc(t->num_segments, sizeof(*t->segments));
	for (uint64_t i = 0; i < t->num_segments; i++)
		pthread_mutex_init(&t->segments[i], NULL);
	for (uint64_t i = 0; i < MAX_THREADS; i++)
		t->takers[i].bits = calloc(div_round_up(pages, 64), 8);
	return 0;
}

static void print_result(struct torture *t)
{
	struct dirty_stats s;

	dirty_stats_read(t->pt.tracker, &s);
	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		t->vmm_writes += t->writers[i].done;
		t->pages_copied += t->takers[i].done;
	}
	printf("{\"method\": \"%s\", \"page\": \"%s\", \"fault\": \"%s\", "
	       "\"seed\": %" PRIu64 ", \"vcpus\": %" PRIu64
	       ", \"mib\": %" PRIu64 ", \"ring_entries\": %u, "
	       "\"segment_pages\": %" PRIu64 ", \"starts\": %" PRIu64
	       ", \"rounds\": %" PRIu64 ", \"guest_stores\": %" PRIu64
	       ", \"vmm_writes\": %" PRIu64 ", \"pages_kvm\": %" PRIu64
	       ", \"pages_vmm\": %" PRIu64 ", \"pages_taken\": %" PRIu64
	       ", \"pages_copied\": %" PRIu64 ", \"ring_full\": %" PRIu64
	       ", \"log_ns\": %" PRIu64 ", \"clear_ns\": %" PRIu64
	       ", \"start_ms\": %.3f, \"pages_compared\": %" PRIu64
	       ", \"pages_different\": %" PRIu64 "}\n",
	       dirty_method_names[dirty_method(t->pt.tracker)],
	       ram_page_names[t->opt.page], fault_names[t->opt.fault],
	       t->opt.seed, t->opt.vcpus, t->opt.mib,
	       dirty_ring_entries(t->pt.tracker), t->segment_pages, s.starts,
	       s.rounds, t->guest_stores, t->vmm_writes, s.pages_kvm,
	       s.pages_vmm, s.pages_taken, t->pages_copied, s.ring_full,
	       s.log_ns, s.clear_ns, (double)s.start_ns / 1e6,
	       t->pages_compared, t->pages_different);
}

static int run(struct torture *t)
{
	struct err err = ERR_INIT;
	int r = build(t, &err);

	if (r) {
		fprintf(stderr, "dirty_torture: %s\n", err.text);
		return r == -ENOTSUP || r == -ENOENT || r == -EACCES ? SKIPPED
								     : 1;
	}
	pthread_mutex_init(&t->late_lock, NULL);
	if (is_late(t) && thread_start(&t->late_thread, &thread_class_tool,
				       "late", late_main, t))
		return 1;
	for (uint64_t i = 0; !r && i < t->opt.phases; i++)
		r = run_phase(t, &err);
	if (is_late(t)) {
		atomic_store(&t->stop_late, true);
		pthread_join(t->late_thread, NULL);
	}
	if (r)
		fprintf(stderr, "dirty_torture: %s\n", err.text);
	print_result(t);
	probe_tracked_fini(&t->pt);
	return r || atomic_load(&t->failed) || t->pages_different;
}

/* ---- command line ---- */

static int find(const char *what, const char *word, const char *const *names,
		size_t num)
{
	for (size_t i = 0; i < num; i++) {
		if (!strcmp(word, names[i]))
			return (int)i;
	}
	fprintf(stderr, "dirty_torture: --%s %s: unknown\n", what, word);
	exit(2);
}

static uint64_t number(const char *what, const char *text, uint64_t max)
{
	uint64_t v = 0;

	if (size_parse_u64(text, &v) || v > max) {
		fprintf(stderr,
			"dirty_torture: --%s %s: not a number up to "
			"%" PRIu64 "\n",
			what, text, max);
		exit(2);
	}
	return v;
}

static const struct option long_options[] = {
	{ "method", required_argument, NULL, 'm' },
	{ "page", required_argument, NULL, 'p' },
	{ "break", required_argument, NULL, 'b' },
	{ "vcpus", required_argument, NULL, 'v' },
	{ "writers", required_argument, NULL, 'w' },
	{ "takers", required_argument, NULL, 't' },
	{ "mib", required_argument, NULL, 'M' },
	{ "seconds", required_argument, NULL, 's' },
	{ "phases", required_argument, NULL, 'P' },
	{ "ring-entries", required_argument, NULL, 'r' },
	{ "seed", required_argument, NULL, 'S' },
	{ 0 },
};

static void set_option(struct options *o, int c, const char *name,
		       const char *arg)
{
	struct {
		int c;
		uint64_t *value, max;
	} const numbers[] = {
		{ 'v', &o->vcpus, MAX_VCPUS },
		{ 'w', &o->writers, MAX_THREADS },
		{ 't', &o->takers, MAX_THREADS },
		{ 'M', &o->mib, 3000 },
		{ 's', &o->seconds, 1000000 },
		{ 'P', &o->phases, 1000 },
		{ 'r', &o->ring_entries, DIRTY_RING_MAX_ENTRIES },
		{ 'S', &o->seed, UINT64_MAX },
	};

	if (c == 'm')
		o->method = find(name, arg, dirty_method_names,
				 ARRAY_SIZE(dirty_method_names));
	if (c == 'p')
		o->page = find(name, arg, ram_page_names,
			       ARRAY_SIZE(ram_page_names));
	if (c == 'b')
		o->fault = find(name, arg, fault_names,
				ARRAY_SIZE(fault_names));
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		if (numbers[i].c == c)
			*numbers[i].value = number(name, arg, numbers[i].max);
	}
}

int main(int argc, char **argv)
{
	static struct torture t;
	int index = 0, c;

	t.opt = (struct options){
		.method = DIRTY_BITMAP,
		.page = RAM_PAGE_4K,
		.vcpus = 2,
		.writers = 2,
		.takers = 2,
		.mib = 64,
		.seconds = 5,
		.phases = 3,
		.seed = clock_now_ns(),
	};
	while ((c = getopt_long(argc, argv, "", long_options, &index)) != -1) {
		if (c == '?')
			return 2;
		set_option(&t.opt, c, long_options[index].name, optarg);
	}
	if (optind < argc || !t.opt.vcpus || !t.opt.takers || !t.opt.mib ||
	    !t.opt.phases) {
		fprintf(stderr, "dirty_torture: wrong usage\n");
		return 2;
	}
	fprintf(stderr, "dirty_torture: --seed %" PRIu64 "\n", t.opt.seed);
	t.seed = t.opt.seed;
	return run(&t);
}
