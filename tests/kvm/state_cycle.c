/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine that is taken apart again and again while its guest runs: pause,
 * save, copy guest memory, free; a new machine, memory back, load, resume. The
 * guest should notice nothing. Tests look at what it says on its console.
 *
 * The new machine can be built with its devices in another order, which loading
 * has to put right (--shuffle); machines can be given damaged copies of the
 * state before (--damage); the last state can be kept in a file (--save-to);
 * after the cycles the guest can be left to end by itself (--to-the-end); and
 * they can wait for its serial log to have some text (--await).
 *
 * Prints one JSON object on stderr. Exit status: 0 the guest ended ("end"
 * says how, 0: not by itself) or all cycles are done, 1 something failed, 2
 * wrong usage, 77 no KVM here.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "kvm/vcpu.h"
#include "vm/config_json.h"
#include "vm/machine.h"
#include "vm/machine_state.h"

#define SKIPPED	 77
#define MAX_LOG	 (1u << 20)
#define AWAIT_MS 200
/* A page of guest memory that is not zero, or a stretch of them. */
#define COPY_BYTES (64 * KIB)

struct options {
	const char *config;
	unsigned int cycles, every_ms, first_ms;
	const char *save_to; /* keep the last state there, a file */
	const char *await;   /* until the serial log has it: no cycle */
	unsigned int damage; /* load damaged copies that often each time */
	bool shuffle;
	bool resume_first; /* let the old machine go on for a while, too */
	bool to_the_end;   /* after the cycles, for the guest's */
};

struct cycle {
	struct options opt;
	struct vm_config cfg;
	struct evloop *loop;
	struct chardev *chardev;
	struct machine *m;
	int timer_fd, end_fd;
	_Atomic int end; /* enum machine_end */
	unsigned int done;
	int status;
	/* Of the machine that is being moved. */
	struct state_writer w;
	char *memory[RAM_MAX_REGIONS];
	uint64_t seed;
	unsigned int refused, accepted;
	uint64_t save_ns, load_ns, state_bytes;
	struct err err;
};

static uint64_t rnd(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void finish(struct cycle *c, int status)
{
	c->status = status;
	evloop_stop(c->loop, 0);
}

static void fail(struct cycle *c, const char *what)
{
	fprintf(stderr, "state_cycle: cycle %u: %s: %s\n", c->done, what,
		c->err.text);
	finish(c, 1);
}

/* ---- the machine's hooks ---- */

static void on_ended(void *ctx, enum machine_end end, unsigned int code,
		     const char *text)
{
	struct cycle *c = ctx;
	int none = MACHINE_END_NONE;

	atomic_compare_exchange_strong(&c->end, &none, (int)end);
	if (end != MACHINE_END_POWEROFF && end != MACHINE_END_REBOOT)
		fprintf(stderr, "state_cycle: ended: %d %s\n", (int)end, text);
	io_eventfd_signal(c->end_fd);
}

static bool never(void *ctx)
{
	return false;
}

static int nothing(void *ctx, struct ram *ram, struct err *err)
{
	return 0;
}

static int build(struct cycle *c, bool restore, struct machine **ret)
{
	const struct machine_end_hooks hooks = {
		.ended = on_ended,
		.interrupted = never,
		.ctx = c,
	};

	const struct vm_memory_origin origin = { .load = nothing };

	return machine_new(ret, &c->cfg, restore ? &origin : NULL, c->chardev,
			   c->loop, &hooks, &c->err);
}

/* ---- guest memory ---- */

static bool is_zero(const char *p, size_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

static int copy_out(struct cycle *c)
{
	const struct ram *ram = &c->m->memory.ram;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *r = &ram->regions[i];
		const char *from = ram->base + r->base.v;

		c->memory[i] = calloc(1, r->size);
		if (!c->memory[i])
			return err_set(&c->err, ENOMEM, "out of memory");
		for (uint64_t at = 0; at < r->size; at += COPY_BYTES)
			if (!is_zero(from + at, COPY_BYTES))
				memcpy(c->memory[i] + at, from + at,
				       COPY_BYTES);
	}
	return 0;
}

static void copy_in(struct cycle *c)
{
	const struct ram *ram = &c->m->memory.ram;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *r = &ram->regions[i];
		char *to = ram->base + r->base.v;

		for (uint64_t at = 0; at < r->size; at += COPY_BYTES)
			if (!is_zero(c->memory[i] + at, COPY_BYTES))
				memcpy(to + at, c->memory[i] + at, COPY_BYTES);
	}
}

static void forget_memory(struct cycle *c)
{
	for (unsigned int i = 0; i < RAM_MAX_REGIONS; i++)
		free(take_ptr(c->memory[i]));
}

/* ---- a cycle ---- */

static int load(struct cycle *c, const void *data, size_t bytes)
{
	struct state_reader r;
	int ret = state_reader_init(&r, data, bytes, &c->err);

	if (ret)
		return ret;
	ret = machine_load(c->m, &r, &c->err);
	state_reader_fini(&r);
	return ret;
}

/* Another byte somewhere, and a checksum that fits all the same. */
static void damage(struct cycle *c, uint8_t *data, size_t bytes)
{
	unsigned int flips = 1 + (unsigned int)(rnd(&c->seed) % 4);

	while (flips--)
		data[24 + rnd(&c->seed) % (bytes - 32)] ^=
			(uint8_t)(1u << rnd(&c->seed) % 8);
	state_fix_checksum(data, bytes);
}

/*
 * A machine that is given a damaged state refuses it or is loaded, and can be
 * freed either way. It does not run.
 */
static int load_damaged(struct cycle *c)
{
	_cleanup_free_ uint8_t *data = malloc(c->w.bytes);
	int r;

	if (!data)
		return err_set(&c->err, ENOMEM, "out of memory");
	memcpy(data, c->w.data, c->w.bytes);
	damage(c, data, c->w.bytes);
	r = build(c, true, &c->m);
	if (r)
		return r;
	copy_in(c);
	if (load(c, data, c->w.bytes))
		c->refused++;
	else
		c->accepted++;
	machine_free(take_ptr(c->m));
	return 0;
}

static int save(struct cycle *c)
{
	uint64_t start = clock_now_ns();
	int r;

	machine_pause(c->m);
	state_writer_init(&c->w);
	r = machine_save(c->m, &c->w, &c->err);
	if (!r)
		r = state_writer_finish(&c->w);
	c->save_ns += clock_now_ns() - start;
	c->state_bytes = c->w.bytes;
	return r ? r : copy_out(c);
}

/* The last device becomes the first, on the PCI bus, too. */
static void shuffle(struct vm_config *cfg)
{
	struct vm_device_config last;

	if (cfg->num_devices < 2)
		return;
	last = cfg->devices[cfg->num_devices - 1];
	memmove(&cfg->devices[1], &cfg->devices[0],
		(cfg->num_devices - 1) * sizeof(last));
	cfg->devices[0] = last;
}

static int restore(struct cycle *c)
{
	uint64_t start;
	int r;

	if (c->opt.shuffle)
		shuffle(&c->cfg);
	r = build(c, true, &c->m);

	if (r)
		return r;
	copy_in(c);
	start = clock_now_ns();
	r = load(c, c->w.data, c->w.bytes);
	c->load_ns += clock_now_ns() - start;
	if (!r)
		r = machine_start(c->m, &c->err);
	if (!r)
		machine_resume(c->m);
	return r;
}

static int keep(const struct cycle *c)
{
	_cleanup_fclose_ FILE *f = NULL;

	if (!c->opt.save_to)
		return 0;
	f = fopen(c->opt.save_to, "w");
	if (!f || fwrite(c->w.data, 1, c->w.bytes, f) != c->w.bytes)
		return -errno;
	return 0;
}

static int cycle(struct cycle *c)
{
	uint64_t start = clock_now_ns();
	int r = save(c);

	if (!r && c->opt.resume_first) {
		/* Saving leaves no trace: go on, and save once more. */
		machine_resume(c->m);
		usleep(1000 * (unsigned int)(rnd(&c->seed) % 20));
		state_writer_fini(&c->w);
		forget_memory(c);
		r = save(c);
	}
	machine_stop(c->m);
	machine_free(take_ptr(c->m));
	for (unsigned int i = 0; i < c->opt.damage && !r; i++)
		r = load_damaged(c);
	if (!r)
		r = keep(c);
	if (!r)
		r = restore(c);
	fprintf(stderr,
		"state_cycle: cycle %u: %" PRIu64 " bytes, %" PRIu64 " ms\n",
		c->done, c->state_bytes,
		(uint64_t)((clock_now_ns() - start) / NSEC_PER_MSEC));
	state_writer_fini(&c->w);
	forget_memory(c);
	c->done++;
	return r;
}

static void arm(const struct cycle *c, unsigned int ms)
{
	const struct itimerspec at = {
		.it_value = { .tv_sec = ms / 1000,
			      .tv_nsec = (long)(ms % 1000) * 1000000 + 1 },
	};

	timerfd_settime(c->timer_fd, 0, &at, NULL);
}

/* Has the guest said it, on a serial port that goes to a file? */
static bool said(const struct cycle *c)
{
	_cleanup_fclose_ FILE *f = fopen(c->cfg.serial.path, "r");
	_cleanup_free_ char *text = calloc(1, MAX_LOG);

	return f && text && fread(text, 1, MAX_LOG - 1, f) &&
	       strstr(text, c->opt.await);
}

static void on_timer(void *ctx, uint32_t events)
{
	struct cycle *c = ctx;

	io_eventfd_drain(c->timer_fd);
	if (c->opt.await && !c->done && !said(c)) {
		arm(c, AWAIT_MS);
		return;
	}
	if (c->done == c->opt.cycles) {
		if (!c->opt.to_the_end)
			finish(c, 0);
		return;
	}
	if (cycle(c))
		fail(c, "failed");
	else
		arm(c, c->opt.every_ms);
}

static void on_end(void *ctx, uint32_t events)
{
	struct cycle *c = ctx;
	int end = atomic_load(&c->end);

	io_eventfd_drain(c->end_fd);
	/* A guest may crash itself: who started it knows whether that is fine.
	 */
	finish(c, end == MACHINE_END_ERROR);
}

/* ---- all of it ---- */

static int set_up(struct cycle *c)
{
	int r = kvm_vcpu_setup_kick();

	vm_config_init(&c->cfg);
	if (!r)
		r = vm_config_load(&c->cfg, c->opt.config, NULL, &c->err);
	if (!r)
		r = vm_config_check(&c->cfg, &c->err);
	if (!r)
		r = evloop_new(&c->loop);
	c->timer_fd = timerfd_create(CLOCK_MONOTONIC,
				     TFD_NONBLOCK | TFD_CLOEXEC);
	c->end_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (!r)
		r = evloop_add(c->loop, c->timer_fd, EPOLLIN, on_timer, c);
	if (!r)
		r = evloop_add(c->loop, c->end_fd, EPOLLIN, on_end, c);
	if (!r)
		r = chardev_new(&c->chardev, &c->cfg.serial, &c->err);
	if (!r)
		r = build(c, false, &c->m);
	if (!r)
		r = chardev_start(c->chardev, c->loop, &c->err);
	return r ? r : machine_start(c->m, &c->err);
}

static void report(const struct cycle *c)
{
	fprintf(stderr,
		"{\"cycles\": %u, \"state_bytes\": %" PRIu64
		", \"save_ms\": %.3f, \"load_ms\": %.3f, \"refused\": %u, "
		"\"accepted\": %u, \"end\": %d}\n",
		c->done, c->state_bytes,
		c->done ? (double)c->save_ns / 1e6 / c->done : 0.0,
		c->done ? (double)c->load_ns / 1e6 / c->done : 0.0, c->refused,
		c->accepted, atomic_load(&c->end));
}

static int parse(struct options *opt, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "cycles", required_argument, NULL, 'n' },
		{ "every", required_argument, NULL, 'e' },
		{ "first", required_argument, NULL, 'f' },
		{ "save-to", required_argument, NULL, 's' },
		{ "damage", required_argument, NULL, 'd' },
		{ "resume-first", no_argument, NULL, 'r' },
		{ "shuffle", no_argument, NULL, 'x' },
		{ "to-the-end", no_argument, NULL, 't' },
		{ "await", required_argument, NULL, 'a' },
		{ NULL, 0, NULL, 0 },
	};
	int o;

	*opt = (struct options){ .cycles = 1,
				 .every_ms = 100,
				 .first_ms = 1000 };
	while ((o = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (o == 'n')
			opt->cycles = (unsigned int)atoi(optarg);
		else if (o == 'e')
			opt->every_ms = (unsigned int)atoi(optarg);
		else if (o == 'f')
			opt->first_ms = (unsigned int)atoi(optarg);
		else if (o == 's')
			opt->save_to = optarg;
		else if (o == 'd')
			opt->damage = (unsigned int)atoi(optarg);
		else if (o == 'r')
			opt->resume_first = true;
		else if (o == 'x')
			opt->shuffle = true;
		else if (o == 't')
			opt->to_the_end = true;
		else if (o == 'a')
			opt->await = optarg;
		else
			return 2;
	}
	if (optind + 1 != argc)
		return 2;
	opt->config = argv[optind];
	return 0;
}

int main(int argc, char **argv)
{
	static struct cycle c = { .timer_fd = -1, .end_fd = -1, .seed = 1 };
	int r = parse(&c.opt, argc, argv);

	if (r) {
		fprintf(stderr, "usage: state_cycle [--cycles N] [--every MS] "
				"[--first MS] [--save-to FILE] [--damage N] "
				"[--resume-first] [--shuffle] [--to-the-end] "
				"[--await TEXT] CONFIG.json\n");
		return r;
	}
	if (access(KVM_DEVICE_PATH, R_OK | W_OK)) {
		fprintf(stderr, "state_cycle: no usable %s\n", KVM_DEVICE_PATH);
		return SKIPPED;
	}
	if (set_up(&c)) {
		fail(&c, "starting");
	} else {
		arm(&c, c.opt.first_ms);
		r = evloop_run(c.loop);
	}
	if (c.m) {
		machine_stop(c.m);
		machine_free(c.m);
	}
	report(&c);
	chardev_free(c.chardev);
	vm_config_fini(&c.cfg);
	evloop_free(c.loop);
	return r < 0 ? 1 : c.status;
}
