/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe guest's payload: the program each vCPU of a probe VM runs, in user
 * mode, started by the host without any kernel below it (src/probe/).
 *
 * It may use nothing but its stack, its slot and the shared header: the image
 * is mapped read-only, and the linker script refuses writable data. Built
 * without SSE, so that the host need not care what vector state looks like.
 */
#include "payload.h"

#define SHARED ((struct probe_shared *)PROBE_VA_SHARED)

/* Accesses between two looks at the stop flag. */
#define STOP_INTERVAL 4096ull
/* The same where each access may be a fault that the host takes long for. */
#define SCATTER_STOP_INTERVAL 64ull

#define LINE_BYTES 64

struct range {
	uint64_t start, stride, count;
	uint64_t lines;	    /* PROBE_F_STAGGER: in a node; else 0 */
	unsigned int shift; /* log2 of a stride that is a power of two */
};

static int stopped(void)
{
	return __atomic_load_n(&SHARED->stop, __ATOMIC_RELAXED) != 0;
}

/*
 * Returns non-zero when the stop flag ended the wait. The host zeroes `arrived`
 * between commands, so an abandoned barrier does not spoil the next.
 */
static int barrier_wait(uint32_t count)
{
	uint32_t gen = __atomic_load_n(&SHARED->barrier_generation,
				       __ATOMIC_ACQUIRE);

	if (__atomic_add_fetch(&SHARED->barrier_arrived, 1, __ATOMIC_ACQ_REL) ==
	    count) {
		__atomic_store_n(&SHARED->barrier_arrived, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&SHARED->barrier_generation, gen + 1,
				 __ATOMIC_RELEASE);
		return 0;
	}
	while (__atomic_load_n(&SHARED->barrier_generation, __ATOMIC_ACQUIRE) ==
	       gen) {
		if (stopped())
			return 1;
		cpu_pause();
	}
	return 0;
}

static volatile uint64_t *word(uint64_t va)
{
	return (volatile uint64_t *)va;
}

static uint64_t read_words(const struct range *r, uint64_t from, uint64_t to)
{
	uint64_t sum = 0;

	for (uint64_t i = from; i < to; i++)
		sum += *word(r->start + i * r->stride);
	return sum;
}

static void write_words(const struct range *r, uint64_t from, uint64_t to,
			uint64_t value)
{
	for (uint64_t i = from; i < to; i++)
		*word(r->start + i * r->stride) = value;
}

static void fill_words(const struct range *r, uint64_t from, uint64_t to,
		       uint64_t seed)
{
	uint64_t va;

	for (uint64_t i = from; i < to; i++) {
		va = r->start + i * r->stride;
		*word(va) = probe_pattern(seed, va - PROBE_VA_TEST);
	}
}

static void verify_words(const struct range *r, uint64_t from, uint64_t to,
			 uint64_t seed, struct probe_result *res)
{
	uint64_t va, want, found;

	for (uint64_t i = from; i < to; i++) {
		va = r->start + i * r->stride;
		want = probe_pattern(seed, va - PROBE_VA_TEST);
		found = *word(va);
		if (found == want)
			continue;
		if (!res->bad_words++) {
			res->bad_offset = va - PROBE_VA_TEST;
			res->bad_expected = want;
			res->bad_found = found;
		}
	}
}

static void count_ticks(struct probe_times *times, uint64_t ticks,
			uint32_t scale)
{
	uint64_t ns = (uint64_t)((unsigned __int128)ticks * scale >>
				 PROBE_TICK_SHIFT);

	times->buckets[histogram_bucket(ns)]++;
	times->sum += ns;
	if (times->max < ns)
		times->max = ns;
	if (times->max_complement < ~ns)
		times->max_complement = ~ns;
}

static void clear_times(struct probe_times *times)
{
	volatile uint64_t *words = (volatile uint64_t *)times;

	for (unsigned int i = 0; i < sizeof(*times) / sizeof(*words); i++)
		words[i] = 0;
}

/*
 * The clock reads are fences, so that a load has its value, and a store its
 * translation (what a fault delays), before the second.
 */
static void timed_words(const struct probe_command *cmd, const struct range *r,
			uint64_t from, uint64_t to, struct probe_times *times,
			struct probe_result *res)
{
	volatile uint64_t *at;
	uint64_t began;

	for (uint64_t i = from; i < to; i++) {
		at = word(r->start + i * r->stride);
		began = cpu_tsc();
		if (cmd->op == PROBE_OP_READ)
			res->value += *at;
		else
			*at = cmd->seed;
		count_ticks(times, cpu_tsc() - began, cmd->tick_scale);
	}
}

static void do_words(const struct probe_command *cmd, const struct range *r,
		     uint64_t from, uint64_t to, struct probe_result *res)
{
	switch (cmd->op) {
	case PROBE_OP_READ:
		res->value += read_words(r, from, to);
		break;
	case PROBE_OP_WRITE:
		write_words(r, from, to, cmd->seed);
		break;
	case PROBE_OP_FILL:
		fill_words(r, from, to, cmd->seed);
		break;
	default:
		verify_words(r, from, to, cmd->seed, res);
		break;
	}
}

/* READ, WRITE, FILL, VERIFY: passes over the range, in order. */
static void do_passes(const struct probe_command *cmd, const struct range *r,
		      struct probe_times *times, struct probe_result *res)
{
	uint64_t i, end;

	if (cmd->flags & PROBE_F_TIMED)
		clear_times(times);
	while (!cmd->passes || res->passes < cmd->passes) {
		for (i = 0; i < r->count; i = end) {
			if (stopped()) {
				res->status = PROBE_STOPPED;
				return;
			}
			end = r->count - i < STOP_INTERVAL ? r->count
							   : i + STOP_INTERVAL;
			if (cmd->flags & PROBE_F_TIMED)
				timed_words(cmd, r, i, end, times, res);
			else
				do_words(cmd, r, i, end, res);
			res->accesses += end - i;
		}
		res->passes++;
		if (!r->count && !cmd->passes)
			return; /* an empty range has no end to wait for */
	}
}

/* Multiplicative hashing spreads neighbours evenly; node 0 is at its start. */
static uint64_t node_at(const struct range *r, uint64_t i)
{
	uint64_t hash = i * 0x9e3779b97f4a7c15ull >> 32;

	return r->start + i * r->stride + (hash * r->lines >> 32) * LINE_BYTES;
}

/* A step from node to node is to cost no more than the load: no division. */
static uint64_t node_of(const struct range *r, uint64_t off)
{
	return r->shift ? off >> r->shift : off / r->stride;
}

/*
 * Sattolo's shuffle, in place: node i starts out pointing at itself, and
 * swapping each with an earlier one leaves a permutation of one single cycle.
 */
static void do_link(const struct probe_command *cmd, const struct range *r,
		    struct probe_result *res)
{
	uint64_t rng = cmd->seed, i, a, b, tmp;

	for (i = 0; i < r->count; i++) {
		a = node_at(r, i);
		*word(a) = a;
	}
	for (i = r->count; i-- > 1;) {
		if (i % STOP_INTERVAL == 0 && stopped()) {
			res->status = PROBE_STOPPED;
			return;
		}
		a = node_at(r, i);
		b = node_at(r, rng_next(&rng) % i);
		tmp = *word(a);
		*word(a) = *word(b);
		*word(b) = tmp;
		res->accesses += 4;
	}
	res->passes = 1;
}

static void do_walk(const struct probe_command *cmd, const struct range *r,
		    struct probe_result *res)
{
	uint64_t at = r->start, off = 0, i;

	for (uint64_t n = 0; !cmd->passes || n < cmd->passes; n++) {
		if (n % STOP_INTERVAL == 0 && stopped()) {
			res->status = PROBE_STOPPED;
			break;
		}
		at = *word(at);
		off = at - r->start;
		/* Not a node of this range: the memory is not what we wrote. */
		i = node_of(r, off);
		if (i >= r->count || at != node_at(r, i)) {
			res->status = PROBE_MISMATCH;
			res->bad_words = 1;
			res->bad_found = at;
			break;
		}
		res->accesses++;
		res->passes++;
	}
	res->value = off;
}

static void do_scatter(const struct probe_command *cmd, const struct range *r,
		       struct probe_result *res)
{
	uint64_t rng = cmd->seed, va;

	if (!r->count)
		return;
	for (uint64_t n = 0; !cmd->passes || n < cmd->passes; n++) {
		if (n % SCATTER_STOP_INTERVAL == 0 && stopped()) {
			res->status = PROBE_STOPPED;
			return;
		}
		va = r->start + rng_next(&rng) % r->count * r->stride;
		*word(va) = probe_pattern(cmd->seed + n, va - PROBE_VA_TEST);
		res->accesses++;
		res->passes++;
	}
}

static void do_spin(const struct probe_command *cmd, struct probe_result *res)
{
	do {
		if (stopped()) {
			res->status = PROBE_STOPPED;
			return;
		}
		res->passes++;
		cpu_pause();
	} while (!cmd->seed || cpu_tsc() - res->tsc_start < cmd->seed);
}

static void execute(const struct probe_command *cmd, const struct range *r,
		    struct probe_times *times, struct probe_result *res)
{
	switch (cmd->op) {
	case PROBE_OP_NOP:
		break;
	case PROBE_OP_READ:
	case PROBE_OP_WRITE:
	case PROBE_OP_FILL:
	case PROBE_OP_VERIFY:
		do_passes(cmd, r, times, res);
		if (res->bad_words)
			res->status = PROBE_MISMATCH;
		break;
	case PROBE_OP_LINK:
		do_link(cmd, r, res);
		break;
	case PROBE_OP_WALK:
		do_walk(cmd, r, res);
		break;
	case PROBE_OP_SPIN:
		do_spin(cmd, res);
		break;
	case PROBE_OP_SCATTER:
		do_scatter(cmd, r, res);
		break;
	case PROBE_OP_FAULT:
		res->value = *word(r->start);
		break;
	case PROBE_OP_HANG:
		for (;;)
			cpu_pause();
	default:
		res->status = PROBE_BAD_COMMAND;
		break;
	}
}

/* Work on copies: nothing but the final store touches the slot's page. */
static void run_command(struct probe_slot *slot)
{
	struct probe_command cmd = slot->command;
	struct probe_result res = { .status = PROBE_DONE };
	struct range r = {
		.start = cmd.start,
		.stride = cmd.stride < PROBE_MIN_STRIDE ? PROBE_MIN_STRIDE
							: cmd.stride,
	};

	if (!(cmd.flags & PROBE_F_ABSOLUTE))
		r.start += PROBE_VA_TEST;
	/* How many words at multiples of the stride end within len? */
	if (cmd.len >= sizeof(uint64_t))
		r.count = (cmd.len - sizeof(uint64_t)) / r.stride + 1;
	if (!(r.stride & (r.stride - 1)))
		r.shift = (unsigned int)__builtin_ctzll(r.stride);
	if (cmd.flags & PROBE_F_STAGGER) {
		r.lines = r.stride / LINE_BYTES;
		r.count = cmd.len / r.stride;
	}
	if ((cmd.flags & PROBE_F_BARRIER) && barrier_wait(cmd.barrier_count))
		res.status = PROBE_STOPPED;
	res.tsc_start = cpu_tsc();
	if (res.status == PROBE_DONE)
		execute(&cmd, &r, (struct probe_times *)slot->times, &res);
	res.tsc_end = cpu_tsc();
	slot->result = res;
}

/* Entered by the host with the stack aligned for a call (start.S). */
void payload_main(struct probe_slot *slot)
{
	uint32_t exiting;

	do {
		exiting = slot->command.op == PROBE_OP_EXIT;
		if (!exiting)
			run_command(slot);
		port_out32(PROBE_PORT, slot->index);
	} while (!exiting);
	for (;;)
		port_out32(PROBE_PORT, slot->index);
}
