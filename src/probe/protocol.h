/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the probe guest's payload (guest/probe/payload.c) and the host agree on:
 * addresses, commands, results. Compiled into both, so it includes nothing that
 * needs a library.
 *
 * The payload runs in long mode at CPL3 on every vCPU. It has no memory of its
 * own beyond a stack: each vCPU has a slot through which it takes commands and
 * leaves results, and all share one header page. A write to PROBE_PORT is the
 * only signal: "my slot holds a result, put the next command there". The host
 * owns a slot from that exit until it enters the vCPU again, and the payload
 * owns it in between, so no field of a slot is ever shared; the header's fields
 * are, and are accessed atomically.
 *
 * Address map of the guest (virtual = physical below the test area):
 *
 *	PROBE_VA_GDT	 descriptor table, task state: not reachable from CPL3
 *	PROBE_VA_CODE	 payload, read-only
 *	PROBE_VA_SHARED	 struct probe_shared
 *	PROBE_VA_SLOTS	 one struct probe_slot per vCPU
 *	...		 one struct probe_times per vCPU
 *	...		 stacks (a hole below each), page tables (read-only)
 *	PROBE_VA_TEST	 the test area: all other RAM, contiguous
 *
 * Everything else is unmapped and there is no IDT: a stray access is a triple
 * fault, which the host reports with its RIP.
 */
#ifndef QUIRE_PROBE_PROTOCOL_H
#define QUIRE_PROBE_PROTOCOL_H

#include <stdint.h>

#include "base/histogram_bucket.h"

#define PROBE_VA_GDT	0x1000ull
#define PROBE_VA_CODE	0x10000ull
#define PROBE_CODE_MAX	0x10000ull
#define PROBE_VA_SHARED 0x20000ull
#define PROBE_VA_SLOTS	0x21000ull
#define PROBE_VA_TEST	(1ull << 40)

#define PROBE_STACK_BYTES 0x4000ull

#define PROBE_PORT 0x5150

/* The step between two words of the test area is at least one word. */
#define PROBE_MIN_STRIDE 8ull

enum probe_op {
	PROBE_OP_NOP = 0,
	/* One access to each stride-th word of the range, in each pass. */
	PROBE_OP_READ = 1,
	PROBE_OP_WRITE = 2,
	/* Store / compare probe_pattern(seed, offset) there. */
	PROBE_OP_FILL = 3,
	PROBE_OP_VERIFY = 4,
	/*
	 * Link the range's stride-sized nodes into one cycle in random order;
	 * follow such a cycle for passes steps. After as many steps as there
	 * are nodes a walk is back at its start.
	 */
	PROBE_OP_LINK = 5,
	PROBE_OP_WALK = 6,
	/* Spin until told to stop, or for seed TSC ticks when that is not 0. */
	PROBE_OP_SPIN = 7,
	/* Leave for good: the vCPU never runs again. */
	PROBE_OP_EXIT = 8,
	/* For testing the host's error paths. */
	PROBE_OP_FAULT = 9, /* read start, whatever is there */
	PROBE_OP_HANG = 10, /* spin and ignore the stop flag */
	/*
	 * Store to random words of the range, passes times (0: until stopped):
	 * the n-th, counted from 0, is probe_pattern(seed + n, offset), so that
	 * a word tells of its place and, with the seed, of its time.
	 */
	PROBE_OP_SCATTER = 11,
};

/* Wait, spinning, until barrier_count vCPUs have started their command. */
#define PROBE_F_BARRIER 1u
/* start is a guest-virtual address, not an offset in the test area. */
#define PROBE_F_ABSOLUTE 2u
/*
 * READ, WRITE: time each access and count it in the vCPU's struct probe_times,
 * which the command empties first. Reading the clock twice costs more than an
 * access without a fault, so times of timed passes compare only with others.
 */
#define PROBE_F_TIMED 4u
/*
 * LINK, WALK: the word of a node is not its first but the first of one of its
 * 64-byte lines, another for each. Nodes a page apart would otherwise all
 * compete for the same few sets of every cache. Nodes lie wholly in the range.
 */
#define PROBE_F_STAGGER 8u

enum probe_status {
	PROBE_DONE = 0,
	PROBE_STOPPED = 1, /* the stop flag ended it early */
	PROBE_MISMATCH = 2,
	PROBE_BAD_COMMAND = 3,
};

struct probe_command {
	uint32_t op;	 /* enum probe_op */
	uint32_t flags;	 /* PROBE_F_* */
	uint64_t start;	 /* offset in the test area, a multiple of 8 */
	uint64_t len;	 /* bytes */
	uint64_t stride; /* bytes, a multiple of 8 */
	uint64_t seed;	 /* pattern seed; the value for WRITE; ticks for SPIN */
	uint64_t passes; /* repetitions (steps for WALK); 0: until stopped */
	uint32_t barrier_count;
	uint32_t tick_scale; /* TIMED, set by the host: ns per tick << 24 */
};

#define PROBE_TICK_SHIFT 24

struct probe_result {
	uint32_t status; /* enum probe_status */
	uint32_t reserved;
	uint64_t tsc_start; /* after the barrier */
	uint64_t tsc_end;
	uint64_t passes;   /* completed */
	uint64_t accesses; /* words read or written */
	uint64_t value;	   /* READ: sum of all words; WALK: where it ended */
	/* VERIFY: how many words differ, and the first of them. */
	uint64_t bad_words;
	uint64_t bad_offset;
	uint64_t bad_expected;
	uint64_t bad_found;
};

#define PROBE_SLOT_BYTES 256

struct probe_slot {
	struct probe_command command;
	struct probe_result result;
	uint64_t times; /* address of this vCPU's struct probe_times */
	uint32_t index; /* of this vCPU */
	uint8_t pad[PROBE_SLOT_BYTES - sizeof(struct probe_command) -
		    sizeof(struct probe_result) - sizeof(uint64_t) -
		    sizeof(uint32_t)];
};

_Static_assert(sizeof(struct probe_slot) == PROBE_SLOT_BYTES, "slot size");

#define PROBE_TIMES_BYTES 2048

/* How long accesses took, in ns. Changes hands together with the slot. */
struct probe_times {
	uint64_t buckets[HISTOGRAM_BUCKETS];
	uint64_t sum;
	uint64_t max;
	uint64_t max_complement; /* largest ~value: 0 while empty */
	uint64_t pad;
};

_Static_assert(sizeof(struct probe_times) == PROBE_TIMES_BYTES, "times size");

struct probe_shared {
	uint32_t stop; /* host to guest: end the command now */
	uint32_t barrier_arrived;
	uint32_t barrier_generation;
};

/*
 * The word a filled test area holds at offset: a bijective mix of both, so that
 * a page in the wrong place, a stale one and a zeroed one all differ.
 */
static inline uint64_t probe_pattern(uint64_t seed, uint64_t offset)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + offset;

	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
	return x ^ (x >> 32);
}

#endif
