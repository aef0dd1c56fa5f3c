/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The caller's thread goes over memory in pieces of 64
 * MiB: dirty_take(), which arms the pages again, then it publishes the bits in
 * a ring of pieces. Each sender goes over all pieces in the same order and
 * sends the units that are its stream's (wire_stream_of()); a piece that all
 * have done makes room for another. So pages are taken a few pieces before they
 * are sent at the most, with few calls into KVM, and no sender waits for
 * another but at the ends of a round.
 *
 * A unit is read where it is, while the guest may write it: what is torn was
 * written after it was taken, so it is dirty again and comes with a later
 * round. In the first round memory is looked through without faulting in what
 * the guest never touched (unit_pages.h); zeroes are not sent at all, since the
 * destination begins with nothing else, nor is what the guest does not need
 * (mem/hints.h). Later a page that is dirty was written,
 * and is there.
 *
 * Images of disks come before memory in each round, in pieces of as many
 * clusters, by the same rule: what was written after its bit was taken is dirty
 * again. Holes and zeroes are told, for nobody knows what is there.
 */
#include "migrate/send_pages.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/zero.h"
#include "mem/pagemap_scan.h"
#include "migrate/disk_unit.h"
#include "snapshot/unit_pages.h"

#define PIECE_PAGES    16384u
#define NUM_PIECES     4u
#define PIECE_CLUSTERS 1024u /* the same 64 MiB */
#define CLUSTER_PAGES  (WIRE_CLUSTER_BYTES / PAGE_4K)
#define TICK_NS	       (50 * NSEC_PER_MSEC)
#define PACK_BYTES     (256u << 10)	   /* are compressed together */
#define SIGN_NS	       (15 * NSEC_PER_SEC) /* of life, where a rate is kept */
#define MAX_IOV	       1024u /* what the kernel takes at once: UIO_MAXIOV */

struct piece {
	bool of_disk;
	unsigned int region; /* or which disk */
	uint64_t first, num; /* pages in the region, or clusters */
	uint64_t bits[PIECE_PAGES / 64];
};

struct sender {
	struct send_pages *p;
	pthread_t thread;
	bool started;
	struct link link;
	unsigned int index; /* of the stream, from 1 on */
	struct unit_pages pages;

	uint64_t done, rounds; /* under the lock */
	uint64_t paced_bytes;  /* of wire_bytes, out of the budget */
	_Atomic uint64_t page_bytes, zero_bytes, unused_bytes, wire_bytes;
	_Atomic uint64_t disk_bytes, disk_zero_bytes;
	struct disk_unit disk; /* with disks */

	/* The unit that is being sent. */
	uint8_t headers[WIRE_UNIT_PAGES + 1][WIRE_DATA_BYTES];
	struct iovec iov[MAX_IOV];
	unsigned int num_headers, num_iov;

	/* NULL: nothing is compressed. */
	struct packer *packer;
	uint8_t *copy;	 /* PACK_BYTES, which no guest changes */
	uint8_t *packed; /* of the unit; it never becomes larger */
	size_t packed_len;
	_Atomic uint64_t pack_from, pack_to;
};

struct send_pages {
	struct send_pages_config cfg;
	unsigned int num_started;
	_Atomic bool stop, last;
	/* Pages, and of disks so many, taken out of the log, not yet sent. */
	_Atomic uint64_t in_hand;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	struct piece pieces[NUM_PIECES]; /* those between done and taken */
	uint64_t taken, rounds;		 /* published; closed */
	uint64_t free_at_ns;		 /* the budget of bytes per second */
	bool ended;
	int error;
	struct err err;
	struct sender senders[];
};

static void fail(struct send_pages *p, int error, const struct err *err)
{
	pthread_mutex_lock(&p->lock);
	if (!p->error) {
		p->error = error;
		p->err = *err;
	}
	atomic_store(&p->stop, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

static bool is_stopped(void *ctx)
{
	struct send_pages *p = ctx;

	return atomic_load_explicit(&p->stop, memory_order_relaxed);
}

static void deadline_at(struct timespec *ret, uint64_t ns)
{
	*ret = (struct timespec){
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};
}

/* ---- a unit ---- */

static void put_any_header(struct sender *s, const struct wire_data_header *h)
{
	uint8_t *out = s->headers[s->num_headers++];

	wire_put_data(out, h);
	s->iov[s->num_iov++] = (struct iovec){ out, WIRE_DATA_BYTES };
}

static void put_header(struct sender *s, enum wire_data type, uint64_t gpa,
		       uint64_t len)
{
	const struct wire_data_header h = { .type = type,
					    .gpa = gpa,
					    .len = len };

	put_any_header(s, &h);
}

static int flush(struct sender *s, struct err *err)
{
	uint64_t bytes = 0;
	int r;

	for (unsigned int i = 0; i < s->num_iov; i++)
		bytes += s->iov[i].iov_len;
	r = link_send(&s->link, s->iov, s->num_iov);
	s->num_iov = s->num_headers = 0;
	s->packed_len = 0;
	atomic_fetch_add(&s->wire_bytes, bytes);
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the other side is gone");
	return r ? err_errno(err, -r, "sending memory and disks") : 0;
}

/*
 * False: it is not worth it. What is compressed is a copy: the guest may write
 * these pages meanwhile, and no compressor says what it does then.
 */
static bool put_packed(struct sender *s, uint64_t gpa, const char *from,
		       size_t len)
{
	struct wire_data_header h = {
		.type = s->p->cfg.pack == PACK_LZ4 ? WIRE_PAGES_LZ4
						   : WIRE_PAGES_ZSTD,
		.gpa = gpa,
		.len = len,
	};
	uint8_t *to = s->packed + s->packed_len;
	size_t n;

	memcpy(s->copy, from, len);
	n = packer_pack(s->packer, s->copy, len, to, len - len / 16);
	if (!n)
		return false;
	s->packed_len += n;
	h.packed = (uint32_t)n;
	put_any_header(s, &h);
	s->iov[s->num_iov++] = (struct iovec){ to, n };
	atomic_fetch_add(&s->pack_from, len);
	atomic_fetch_add(&s->pack_to, n);
	return true;
}

static int put_run(struct sender *s, uint64_t gpa, const char *from,
		   uint64_t len, struct err *err);

/* In pieces that fit into the copy. */
static int put_run_packed(struct sender *s, uint64_t gpa, const char *from,
			  uint64_t len, struct err *err)
{
	int r = 0;

	for (uint64_t at = 0; !r && at < len; at += PACK_BYTES)
		r = put_run(s, gpa + at, from + at,
			    MIN(len - at, (uint64_t)PACK_BYTES), err);
	return r;
}

/* A run of pages that follow each other also in our memory; NULL: zeroes. */
static int put_run(struct sender *s, uint64_t gpa, const char *from,
		   uint64_t len, struct err *err)
{
	int r;

	if (s->packer && from && len > PACK_BYTES)
		return put_run_packed(s, gpa, from, len, err);
	/* This one, and UNIT behind it. */
	r = s->num_iov + 3 > MAX_IOV ? flush(s, err) : 0;
	if (r)
		return r;
	atomic_fetch_add(from ? &s->page_bytes : &s->zero_bytes, len);
	if (s->packer && from && put_packed(s, gpa, from, len))
		return 0;
	put_header(s, from ? WIRE_PAGES : WIRE_ZERO, gpa, len);
	if (from)
		s->iov[s->num_iov++] = (struct iovec){ (char *)from, len };
	return 0;
}

static bool follows(const char *a, const char *b, uint64_t distance)
{
	return a ? b == a + distance : !b;
}

static bool has_bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

/* pages[i]: where page i of the unit is to be read; NULL: it is zero. */
static int put_runs(struct sender *s, uint64_t start, const uint64_t *bits,
		    const char *const *pages, unsigned int num, bool zeroes,
		    struct err *err)
{
	unsigned int i = 0, next;
	int r = 0;

	for (; !r && i < num; i = next) {
		next = i + 1;
		if (!has_bit(bits, i) || (!pages[i] && !zeroes))
			continue;
		while (next < num && has_bit(bits, next) &&
		       follows(pages[i], pages[next], (next - i) * PAGE_4K))
			next++;
		r = put_run(s, start + i * PAGE_4K, pages[i],
			    (next - i) * PAGE_4K, err);
	}
	return r;
}

/* What was written is there, and read where it is. */
static void look_at(const struct ram *ram, const struct mem_range *where,
		    const uint64_t *bits, const char **pages)
{
	for (unsigned int i = 0; i < where->len / PAGE_4K; i++) {
		const char *at = ram->base + where->start + i * PAGE_4K;

		pages[i] = has_bit(bits, i) && !zero_is_all(at, PAGE_4K) ? at
									 : NULL;
	}
}

/*
 * In the first round alone: what is dirty later was written since, and so is in
 * use again. The log began before, so nothing falls in between.
 */
static void leave_out_unused(struct sender *s, const struct mem_range *where,
			     uint64_t bits[WIRE_UNIT_PAGES / 64])
{
	const struct mem_hints *hints = s->p->cfg.hints;
	uint64_t unused[WIRE_UNIT_PAGES / 64] = { 0 };
	uint64_t left_out = 0;

	if (!hints)
		return;
	hints->unused(hints->ctx, GPA(where->start), where->len, unused);
	for (size_t w = 0; w < ARRAY_SIZE(unused); w++) {
		left_out += (uint64_t)__builtin_popcountll(bits[w] & unused[w]);
		bits[w] &= ~unused[w];
	}
	atomic_fetch_add(&s->unused_bytes, left_out * PAGE_4K);
}

static int send_first(struct sender *s, const struct mem_range *where,
		      const uint64_t *dirty, struct err *err)
{
	unsigned int num = (unsigned int)(where->len / PAGE_4K);
	uint64_t bits[WIRE_UNIT_PAGES / 64] = { 0 };
	int r;

	memcpy(bits, dirty, div_round_up(num, 64) * sizeof(bits[0]));
	leave_out_unused(s, where, bits);
	r = unit_pages_load(&s->pages, where, err);
	if (!r)
		r = put_runs(s, where->start, bits, s->pages.pages, num, false,
			     err);
	if (!r && s->num_iov)
		put_header(s, WIRE_UNIT, where->start, where->len);
	return r;
}

static int send_unit(struct sender *s, const struct mem_range *where,
		     const uint64_t *bits, bool first, struct err *err)
{
	unsigned int num = (unsigned int)(where->len / PAGE_4K);
	const char *pages[WIRE_UNIT_PAGES];
	int r;

	s->num_iov = s->num_headers = 0;
	if (first) {
		r = send_first(s, where, bits, err);
	} else {
		look_at(s->p->cfg.ram, where, bits, pages);
		r = put_runs(s, where->start, bits, pages, num, true, err);
	}
	return r || !s->num_iov ? r : flush(s, err);
}

/* ---- a sender ---- */

static int send_mark(struct sender *s, enum wire_data type, uint64_t gpa,
		     uint64_t len, struct err *err)
{
	s->num_iov = s->num_headers = 0;
	put_header(s, type, gpa, len);
	return flush(s, err);
}

/* Of life: any unit of the stream's. There is none where memory is tiny. */
static int send_sign(struct sender *s, struct err *err)
{
	const struct ram *ram = s->p->cfg.ram;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *r = &ram->regions[i];
		uint64_t end = r->base.v + r->size, at = r->base.v;

		while (at < end &&
		       wire_stream_of(at, s->p->cfg.num) != s->index)
			at += WIRE_UNIT_BYTES;
		if (at < end)
			return send_mark(s, WIRE_UNIT, at,
					 MIN(end - at, WIRE_UNIT_BYTES), err);
	}
	return 0;
}

/* Until then, or it is not to wait any more. True: it was long enough. */
static bool wait_until(struct send_pages *p, uint64_t ns)
{
	struct timespec until;
	int r = 0;

	deadline_at(&until, ns);
	pthread_mutex_lock(&p->lock);
	while (!r && !atomic_load(&p->stop) && !atomic_load(&p->last))
		r = pthread_cond_timedwait(&p->changed, &p->lock, &until);
	pthread_mutex_unlock(&p->lock);
	return r == ETIMEDOUT;
}

/*
 * All streams draw on one budget, a unit at a time: what each has sent puts off
 * when the next may go on, whosever that is. What a slow network, or a look
 * through untouched memory, left unused is not made up for. Returns until when.
 */
static uint64_t spend(struct sender *s)
{
	struct send_pages *p = s->p;
	uint64_t sent = atomic_load(&s->wire_bytes), now = clock_now_ns();
	uint64_t bytes = sent - s->paced_bytes, until;

	s->paced_bytes = sent;
	pthread_mutex_lock(&p->lock);
	until = MAX(p->free_at_ns, now) +
		(uint64_t)((double)bytes * 1e9 /
			   (double)p->cfg.rate_bytes_per_s);
	p->free_at_ns = until;
	pthread_mutex_unlock(&p->lock);
	return until;
}

/*
 * Ahead of the rate that was asked for: wait, but not for longer than that, nor
 * silently for so long that the destination takes us for dead.
 */
static int keep_pace(struct sender *s, struct err *err)
{
	struct send_pages *p = s->p;
	uint64_t until, now;
	int r = 0;

	if (!p->cfg.rate_bytes_per_s || atomic_load(&p->last))
		return 0;
	until = spend(s);
	while (!r && (now = clock_now_ns()) < until) {
		if (!wait_until(p, MIN(until, now + SIGN_NS)))
			return 0;
		if (until > now + SIGN_NS)
			r = send_sign(s, err);
	}
	return r;
}

static uint64_t count_bits(const uint64_t *bits, unsigned int words)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bits[i]);
	return n;
}

/* Regions begin at multiples of a unit, pieces are some units. */
static int send_piece(struct sender *s, const struct piece *piece, bool first,
		      struct err *err)
{
	const struct ram_region *region =
		&s->p->cfg.ram->regions[piece->region];
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

		if (wire_stream_of(start, s->p->cfg.num) == s->index)
			pages = count_bits(bits, words);
		if (pages) {
			r = send_unit(s, &where, bits, first, err);
			atomic_fetch_sub(&s->p->in_hand, pages);
			if (!r)
				r = keep_pace(s, err);
		}
		bits += words;
	}
	return r;
}

/* ---- a piece of an image ---- */

static int send_disk_unit(struct sender *s, unsigned int disk, uint64_t start,
			  uint32_t bits, struct err *err)
{
	const struct blockdev *dev = s->p->cfg.disks.list[disk];
	int r = disk_unit_read(&s->disk, dev, start, bits, err);

	if (r)
		return r;
	s->num_iov = s->num_headers = 0;
	for (unsigned int i = 0; i < s->disk.num_runs; i++) {
		const struct disk_run *run = &s->disk.runs[i];
		const struct wire_data_header h = {
			.type = run->data ? WIRE_DISK : WIRE_DISK_ZERO,
			.gpa = run->offset,
			.len = run->len,
			.disk = disk,
		};

		atomic_fetch_add(run->data ? &s->disk_bytes
					   : &s->disk_zero_bytes,
				 run->len);
		put_any_header(s, &h);
		if (run->data)
			s->iov[s->num_iov++] =
				(struct iovec){ (char *)run->data, run->len };
	}
	return flush(s, err);
}

static int send_disk_piece(struct sender *s, const struct piece *piece,
			   struct err *err)
{
	int r = 0;

	disk_unit_forget(&s->disk);
	for (uint64_t i = 0; !r && i < piece->num; i += DISK_UNIT_CLUSTERS) {
		uint64_t at = (piece->first + i) * WIRE_CLUSTER_BYTES;
		uint32_t bits = (uint32_t)(piece->bits[i / 64] >> (i % 64));

		if (!bits || wire_stream_of(at, s->p->cfg.num) != s->index)
			continue;
		r = send_disk_unit(s, piece->region, at, bits, err);
		atomic_fetch_sub(&s->p->in_hand,
				 (uint64_t)__builtin_popcount(bits) *
					 CLUSTER_PAGES);
		if (!r)
			r = keep_pace(s, err);
	}
	return r;
}

enum work { WORK_STOP, WORK_PIECE, WORK_ROUND, WORK_END };

static enum work next_work(struct sender *s)
{
	struct send_pages *p = s->p;
	enum work work;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		if (atomic_load(&p->stop))
			work = WORK_STOP;
		else if (s->done < p->taken)
			work = WORK_PIECE;
		else if (s->rounds < p->rounds)
			work = WORK_ROUND;
		else if (p->ended)
			work = WORK_END;
		else {
			pthread_cond_wait(&p->changed, &p->lock);
			continue;
		}
		break;
	}
	pthread_mutex_unlock(&p->lock);
	return work;
}

static void count_done(struct sender *s, uint64_t *what)
{
	pthread_mutex_lock(&s->p->lock);
	(*what)++;
	pthread_cond_broadcast(&s->p->changed);
	pthread_mutex_unlock(&s->p->lock);
}

static int do_work(struct sender *s, enum work work, struct err *err)
{
	struct send_pages *p = s->p;
	const struct piece *piece = &p->pieces[s->done % NUM_PIECES];
	int r;

	switch (work) {
	case WORK_PIECE:
		r = piece->of_disk ? send_disk_piece(s, piece, err)
				   : send_piece(s, piece, s->rounds == 0, err);
		count_done(s, &s->done);
		return r;
	case WORK_ROUND:
		r = send_mark(s, WIRE_ROUND, s->rounds + 1, 0, err);
		count_done(s, &s->rounds);
		return r;
	case WORK_END:
		return send_mark(s, WIRE_END, s->rounds,
				 atomic_load(&s->page_bytes) +
					 atomic_load(&s->disk_bytes),
				 err);
	case WORK_STOP:
		break;
	}
	return 0;
}

static void *sender_main(void *arg)
{
	struct sender *s = arg;
	struct err err = ERR_INIT;
	enum work work;
	int r = 0;

	do {
		work = next_work(s);
		r = do_work(s, work, &err);
	} while (!r && work != WORK_STOP && work != WORK_END);
	if (r)
		fail(s->p, r, &err);
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

static int prepare_packing(struct sender *s)
{
	int r = packer_new(&s->packer, s->p->cfg.pack);

	if (r)
		return r;
	s->copy = malloc(PACK_BYTES);
	s->packed = malloc(WIRE_UNIT_BYTES);
	return s->copy && s->packed ? 0 : -ENOMEM;
}

static int prepare(void *arg)
{
	struct sender *s = arg;
	int r = s->p->cfg.pack == PACK_NONE ? 0 : prepare_packing(s);

	if (!r && s->p->cfg.disks.num)
		r = disk_unit_init(&s->disk);
	return r ? r : unit_pages_init(&s->pages, s->p->cfg.ram, NULL, NULL);
}

/* ---- the caller ---- */

static int init_sync(struct send_pages *p)
{
	pthread_condattr_t attr;
	int r = pthread_condattr_init(&attr);

	if (r)
		return -r;
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	r = pthread_cond_init(&p->changed, &attr);
	pthread_condattr_destroy(&attr);
	if (!r)
		pthread_mutex_init(&p->lock, NULL);
	return -r;
}

static int start_sender(struct send_pages *p, unsigned int i, struct err *err)
{
	struct sender *s = &p->senders[i];
	const struct thread_spec spec = {
		.cls = &migrate_send_thread_class,
		.name = "migrate-send",
		.prepare = prepare,
		.run = sender_main,
		.arg = s,
	};
	int r;

	s->p = p;
	s->index = i + 1;
	s->link.fd = p->cfg.fds[i];
	s->link.tls = p->cfg.tls ? p->cfg.tls[i] : NULL;
	s->link.patience_ns = p->cfg.patience_ns;
	s->link.given_up = is_stopped;
	s->link.ctx = p;
	r = thread_create(&s->thread, &spec);
	s->started = !r;
	return r ? err_errno(err, -r, "starting a thread") : 0;
}

int send_pages_start(struct send_pages **ret,
		     const struct send_pages_config *cfg, struct err *err)
{
	struct send_pages *p = calloc(
		1, sizeof(*p) + cfg->num * sizeof(p->senders[0]));
	int r = p ? init_sync(p) : -ENOMEM;

	if (r) {
		free(p);
		return err_errno(err, -r, "sending memory");
	}
	p->cfg = *cfg;
	/* Also those that are never started have nothing to close. */
	for (unsigned int i = 0; i < cfg->num; i++)
		p->senders[i].pages.pagemap.fd = -1;
	for (unsigned int i = 0; !r && i < cfg->num; i++)
		r = start_sender(p, i, err);
	if (r)
		send_pages_free(p);
	else
		*ret = p;
	return r;
}

/* For all to have done so many pieces, or rounds. */
static bool all_have(const struct send_pages *p, uint64_t pieces,
		     uint64_t rounds)
{
	for (unsigned int i = 0; i < p->cfg.num; i++) {
		if (p->senders[i].done < pieces ||
		    p->senders[i].rounds < rounds)
			return false;
	}
	return true;
}

static int wait_for(struct send_pages *p, uint64_t pieces, uint64_t rounds,
		    struct err *err)
{
	int r = 0;

	pthread_mutex_lock(&p->lock);
	while (!r && !p->error && !all_have(p, pieces, rounds)) {
		struct timespec until;

		deadline_at(&until, clock_now_ns() + TICK_NS);
		if (pthread_cond_timedwait(&p->changed, &p->lock, &until) !=
		    ETIMEDOUT)
			continue;
		pthread_mutex_unlock(&p->lock);
		r = p->cfg.tick(p->cfg.ctx, err);
		pthread_mutex_lock(&p->lock);
	}
	if (!r && p->error) {
		r = p->error;
		if (err)
			*err = p->err;
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}

static void publish(struct send_pages *p)
{
	pthread_mutex_lock(&p->lock);
	p->taken++;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/* A piece that all are done with. */
static int free_piece(struct send_pages *p, struct piece **ret, struct err *err)
{
	*ret = &p->pieces[p->taken % NUM_PIECES];
	return p->taken < NUM_PIECES
		       ? 0
		       : wait_for(p, p->taken - NUM_PIECES + 1, 0, err);
}

static int take_piece(struct send_pages *p, unsigned int region, uint64_t first,
		      struct err *err)
{
	const struct ram_region *r = &p->cfg.ram->regions[region];
	struct piece *piece;
	int64_t n;
	int error = free_piece(p, &piece, err);

	if (error)
		return error;
	piece->of_disk = false;
	piece->region = region;
	piece->first = first;
	piece->num = MIN(ram_region_pages(r) - first, (uint64_t)PIECE_PAGES);
	n = dirty_take(p->cfg.dirty, region, first, piece->num, piece->bits);
	if (n < 0)
		return err_errno(
			err, (int)-n, "what was written to memory at %#llx",
			(unsigned long long)(r->base.v + first * PAGE_4K));
	atomic_fetch_add(&p->in_hand, (uint64_t)n);
	if (n)
		publish(p);
	return 0;
}

static int take_disk_piece(struct send_pages *p, unsigned int disk,
			   uint64_t first, uint64_t num, struct err *err)
{
	struct piece *piece;
	uint64_t n;
	int r = free_piece(p, &piece, err);

	if (r)
		return r;
	piece->of_disk = true;
	piece->region = disk;
	piece->first = first;
	piece->num = num;
	memset(piece->bits, 0, PIECE_CLUSTERS / 8);
	n = block_track_take(blockdev_track(p->cfg.disks.list[disk]), first,
			     num, piece->bits);
	atomic_fetch_add(&p->in_hand, n * CLUSTER_PAGES);
	if (n)
		publish(p);
	return 0;
}

/*
 * A tick for each piece of which something is sent: 1 TiB is 16384 pieces, most
 * of them clean, and the last round has the guest wait.
 */
static int take_disk(struct send_pages *p, unsigned int disk, struct err *err)
{
	uint64_t num = div_round_up(blockdev_size(p->cfg.disks.list[disk]),
				    WIRE_CLUSTER_BYTES);
	int r = 0;

	for (uint64_t at = 0; !r && at < num; at += PIECE_CLUSTERS) {
		uint64_t before = p->taken;

		r = take_disk_piece(p, disk, at,
				    MIN(num - at, (uint64_t)PIECE_CLUSTERS),
				    err);
		if (!r && p->taken != before)
			r = p->cfg.tick(p->cfg.ctx, err);
	}
	return r ? r : p->cfg.tick(p->cfg.ctx, err);
}

static int take_disks(struct send_pages *p, struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < p->cfg.disks.num; i++)
		r = take_disk(p, i, err);
	return r;
}

int send_pages_round(struct send_pages *p, bool last, struct err *err)
{
	const struct ram *ram = p->cfg.ram;
	int r;

	atomic_store(&p->last, last);
	r = take_disks(p, err);
	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		uint64_t num = ram_region_pages(&ram->regions[i]);

		for (uint64_t at = 0; !r && at < num; at += PIECE_PAGES) {
			r = take_piece(p, i, at, err);
			if (!r)
				r = p->cfg.tick(p->cfg.ctx, err);
		}
	}
	if (r)
		return r;
	pthread_mutex_lock(&p->lock);
	p->rounds++;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	return wait_for(p, 0, p->rounds, err);
}

static void join(struct send_pages *p)
{
	for (unsigned int i = 0; i < p->cfg.num; i++) {
		if (p->senders[i].started)
			pthread_join(p->senders[i].thread, NULL);
		p->senders[i].started = false;
	}
}

int send_pages_end(struct send_pages *p, struct err *err)
{
	pthread_mutex_lock(&p->lock);
	p->ended = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	join(p);
	if (p->error && err)
		*err = p->err;
	return p->error;
}

static void free_sender(struct sender *s)
{
	unit_pages_fini(&s->pages);
	disk_unit_fini(&s->disk);
	packer_free(s->packer);
	free(s->copy);
	free(s->packed);
}

void send_pages_free(struct send_pages *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	atomic_store(&p->stop, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	join(p);
	for (unsigned int i = 0; i < p->cfg.num; i++)
		free_sender(&p->senders[i]);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

void send_pages_set_patience(struct send_pages *p, uint64_t ns)
{
	for (unsigned int i = 0; i < p->cfg.num; i++)
		atomic_store(&p->senders[i].link.patience_ns, ns);
}

void send_pages_read(struct send_pages *p, struct send_pages_count *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->in_hand_bytes = atomic_load(&p->in_hand) * PAGE_4K;
	for (unsigned int i = 0; i < p->cfg.num; i++) {
		struct sender *s = &p->senders[i];

		ret->page_bytes += atomic_load(&s->page_bytes);
		ret->zero_bytes += atomic_load(&s->zero_bytes);
		ret->disk_bytes += atomic_load(&s->disk_bytes);
		ret->disk_zero_bytes += atomic_load(&s->disk_zero_bytes);
		ret->unused_bytes += atomic_load(&s->unused_bytes);
		ret->wire_bytes += atomic_load(&s->wire_bytes);
		ret->pack_from_bytes += atomic_load(&s->pack_from);
		ret->pack_to_bytes += atomic_load(&s->pack_to);
	}
}
