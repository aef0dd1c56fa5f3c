/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/sender.h"

#include <errno.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/thread.h"
#include "mem/pagemap_scan.h"

#define SIGN_NS (15 * NSEC_PER_SEC) /* of life, where a rate is kept */

/* ---- keeping the pace ---- */

/* Of life: any unit of the stream's. There is none where memory is tiny. */
static int send_sign(struct sender *s, struct err *err)
{
	const struct ram *ram = s->out.ram;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *r = &ram->regions[i];
		uint64_t end = r->base.v + r->size, at = r->base.v;

		while (at < end &&
		       wire_stream_of(at, s->common->num) != s->index)
			at += WIRE_UNIT_BYTES;
		if (at < end)
			return stream_out_mark(&s->out.stream, WIRE_UNIT, at,
					       MIN(end - at, WIRE_UNIT_BYTES),
					       err);
	}
	return 0;
}

/*
 * Ahead of the rate that was asked for: wait, but not for longer than that, nor
 * silently for so long that the destination takes us for dead.
 */
static int keep_pace(struct sender *s, struct err *err)
{
	struct pace *pace = &s->common->pace;
	uint64_t sent = atomic_load(&s->out.stream.wire_bytes), now;
	uint64_t until = pace_use(pace, sent - s->paced_bytes);
	int r = 0;

	s->paced_bytes = sent;
	while (!r && (now = clock_now_ns()) < until) {
		if (!pace_wait_until(pace, MIN(until, now + SIGN_NS)))
			return 0;
		if (until > now + SIGN_NS)
			r = send_sign(s, err);
	}
	return r;
}

/* ---- pieces ---- */

static uint64_t count_bits(const uint64_t *bits, unsigned int words)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bits[i]);
	return n;
}

/* Regions begin at multiples of a unit, pieces are some units. */
static int send_memory(struct sender *s, const struct piece *piece,
		       struct err *err)
{
	const struct ram_region *region = &s->out.ram->regions[piece->region];
	uint64_t start = region->base.v + piece->first * PAGE_4K;
	uint64_t end = start + piece->num * PAGE_4K;
	const uint64_t *bits = piece->bits;
	int r = 0;

	for (; !r && start < end; start += WIRE_UNIT_BYTES) {
		uint64_t len = MIN(end - start, WIRE_UNIT_BYTES);
		const struct mem_range where = { .start = start, .len = len };
		unsigned int words = (unsigned int)div_round_up(
			where.len / PAGE_4K, 64);
		uint64_t pages = 0;

		if (wire_stream_of(start, s->common->num) == s->index)
			pages = count_bits(bits, words);
		if (pages) {
			r = unit_out_memory(&s->out, &where, bits, !s->rounds,
					    err);
			atomic_fetch_sub(&s->common->in_hand, pages);
			if (!r)
				r = keep_pace(s, err);
		}
		bits += words;
	}
	return r;
}

static int send_disk(struct sender *s, const struct piece *piece,
		     struct err *err)
{
	int r = 0;

	unit_out_next_disk(&s->out);
	for (uint64_t i = 0; !r && i < piece->num; i += DISK_UNIT_CLUSTERS) {
		uint64_t at = (piece->first + i) * WIRE_CLUSTER_BYTES;
		uint32_t bits = (uint32_t)(piece->bits[i / 64] >> (i % 64));

		if (!bits || wire_stream_of(at, s->common->num) != s->index)
			continue;
		r = unit_out_disk(&s->out, piece->region, at, bits, err);
		atomic_fetch_sub(&s->common->in_hand,
				 (uint64_t)__builtin_popcount(bits) *
					 SENDER_CLUSTER_PAGES);
		if (!r)
			r = keep_pace(s, err);
	}
	return r;
}

/* ---- the thread ---- */

static int do_work(struct sender *s, enum piece_work work,
		   const struct piece *piece, struct err *err)
{
	struct stream_out *stream = &s->out.stream;

	switch (work) {
	case PIECE_SEND:
		return piece->of_disk ? send_disk(s, piece, err)
				      : send_memory(s, piece, err);
	case PIECE_END_ROUND:
		s->rounds++;
		return stream_out_mark(stream, WIRE_ROUND, s->rounds, 0, err);
	case PIECE_END:
		return stream_out_mark(stream, WIRE_END, s->rounds,
				       atomic_load(&stream->page_bytes) +
					       atomic_load(&s->out.disk_bytes),
				       err);
	case PIECE_STOP:
		break;
	}
	return 0;
}

static void *sender_main(void *arg)
{
	struct sender *s = arg;
	struct piece_ring *ring = &s->common->ring;
	struct err err = ERR_INIT;
	const struct piece *piece;
	enum piece_work work;
	int r = 0;

	do {
		work = piece_ring_next(ring, s->index - 1, &piece);
		r = do_work(s, work, piece, &err);
		piece_ring_done(ring, s->index - 1, work);
	} while (!r && work != PIECE_STOP && work != PIECE_END);
	if (r) {
		piece_ring_fail(ring, r, &err);
		pace_release(&s->common->pace);
	}
	return NULL;
}

static const struct thread_call send_calls[] = {
	CALL(sendmsg),
	CALL_IOCTL(PAGEMAP_SCAN_IOCTL),
	RARE("the network is slower than memory", poll),
	CALL(pread64),
	RARE("shared=on, memory mapped from a snapshot, or disks", lseek),
};

static const struct thread_call prepare_calls[] = {
	RARE_READ_ONLY("/proc/self/pagemap"),
};

const struct thread_class migrate_send_thread_class = {
	.name = "migrate-send",
	.what = "sends guest memory to another host",
	THREAD_CALLS(send_calls),
	.prepare_calls = prepare_calls,
	.num_prepare_calls = ARRAY_SIZE(prepare_calls),
};

static int prepare(void *arg)
{
	struct sender *s = arg;

	return unit_out_init(&s->out, s->common->pack);
}

int sender_start(struct sender *s)
{
	const struct thread_spec spec = {
		.cls = &migrate_send_thread_class,
		.name = "migrate-send",
		.prepare = prepare,
		.run = sender_main,
		.arg = s,
	};
	int r = thread_create(&s->thread, &spec);

	s->started = !r;
	return r;
}

void sender_join(struct sender *s)
{
	if (s->started)
		pthread_join(s->thread, NULL);
	s->started = false;
}
