/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A page is pushed once: whoever sets its bit in `sent`
 * sends it. One that is asked for is sent at once, also when it was pushed
 * before, for it may stand in a long queue; but it is asked for once on a
 * connection (wire_parse_request()), so that this is no way to make work.
 *
 * Each stream's thread has its own units, and takes them in this order: those
 * around pages that were asked for, the last first; then on from there, for who
 * reads memory in order will want what follows; then round again from the
 * lowest address, until none is left.
 */
#include "migrate/push.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/thread.h"
#include "mem/pagemap_scan.h"
#include "migrate/stream_units.h"
#include "snapshot/unit_pages.h"

#define MAX_IOV	   1024u	/* what the kernel takes at once: UIO_MAXIOV */
#define NUM_HINTS  32u		/* units that were asked for, of each stream */
#define PACK_BYTES (256u << 10) /* are compressed together */

struct pusher {
	struct push *p;
	pthread_t thread;
	bool started;
	struct link link;
	unsigned int index; /* of the stream, or WIRE_URGENT */
	struct unit_pages pages;

	struct stream_units units; /* its own */
	size_t next, left; /* the sweep: where it is, how many it has seen */
	/* Under the lock: indices into units, the newest last. */
	size_t hints[NUM_HINTS];
	unsigned int num_hints;

	uint64_t paced_bytes; /* of wire_bytes, out of the budget */
	_Atomic uint64_t page_bytes, zero_bytes, wire_bytes;

	/* The unit that is being sent. */
	uint8_t headers[MAX_IOV / 2][WIRE_DATA_BYTES];
	struct iovec iov[MAX_IOV];
	unsigned int num_headers, num_iov;

	/* NULL: nothing is compressed. */
	struct packer *packer;
	uint8_t *packed; /* of the unit; it never becomes larger */
	size_t packed_len;
	_Atomic uint64_t pack_from, pack_to;
};

struct push {
	struct push_config cfg;
	struct page_map sent, asked;
	_Atomic bool stop;
	_Atomic uint64_t urgent_pages;

	pthread_mutex_t lock; /* all below, and the hints */
	pthread_cond_t changed;
	bool goes;
	uint64_t free_at_ns; /* the budget of bytes per second */
	int error;
	struct err err;
	struct pusher urgent;
	struct pusher pushers[];
};

static bool is_stopped(void *ctx)
{
	struct push *p = ctx;

	return atomic_load_explicit(&p->stop, memory_order_relaxed);
}

static void fail(struct push *p, int error, const struct err *err)
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

/* ---- what is sent ---- */

static void put_header(struct pusher *s, enum wire_data type, uint64_t gpa,
		       uint64_t len, uint32_t packed)
{
	const struct wire_data_header h = { type, gpa, len, packed, 0 };
	uint8_t *out = s->headers[s->num_headers++];

	wire_put_data(out, &h);
	s->iov[s->num_iov++] = (struct iovec){ out, WIRE_DATA_BYTES };
}

static int flush(struct pusher *s, struct err *err)
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
	return r ? err_errno(err, -r, "sending memory") : 0;
}

/* False: it is not worth it. Nobody writes these pages any more. */
static bool put_packed(struct pusher *s, uint64_t gpa, const char *from,
		       size_t len)
{
	uint8_t *to = s->packed + s->packed_len;
	size_t n = packer_pack(s->packer, from, len, to, len - len / 16);

	if (!n)
		return false;
	s->packed_len += n;
	put_header(s,
		   s->p->cfg.pack == PACK_LZ4 ? WIRE_PAGES_LZ4
					      : WIRE_PAGES_ZSTD,
		   gpa, len, (uint32_t)n);
	s->iov[s->num_iov++] = (struct iovec){ to, n };
	atomic_fetch_add(&s->pack_from, len);
	atomic_fetch_add(&s->pack_to, n);
	return true;
}

static int put_piece(struct pusher *s, uint64_t gpa, const char *from,
		     uint64_t len, struct err *err)
{
	int r = s->num_iov + 2 > MAX_IOV || s->num_headers == MAX_IOV / 2
			? flush(s, err)
			: 0;

	if (r)
		return r;
	atomic_fetch_add(from ? &s->page_bytes : &s->zero_bytes, len);
	if (s->packer && from && put_packed(s, gpa, from, len))
		return 0;
	put_header(s, from ? WIRE_PAGES : WIRE_ZERO, gpa, len, 0);
	if (from)
		s->iov[s->num_iov++] = (struct iovec){ (char *)from, len };
	return 0;
}

/* A run of pages that follow each other also in our memory; NULL: zeroes. */
static int put_run(struct pusher *s, uint64_t gpa, const char *from,
		   uint64_t len, struct err *err)
{
	uint64_t step = s->packer && from ? PACK_BYTES : len;
	int r = 0;

	for (uint64_t at = 0; !r && at < len; at += step)
		r = put_piece(s, gpa + at, from ? from + at : NULL,
			      MIN(len - at, step), err);
	return r;
}

static bool follows(const char *a, const char *b, uint64_t distance)
{
	return a ? b == a + distance : !b;
}

/* Ours to send, from now on? */
static bool take_page(struct pusher *s, uint64_t gpa)
{
	return page_map_test(s->p->cfg.pending, gpa) &&
	       page_map_set(&s->p->sent, gpa, PAGE_4K);
}

static int push_unit(struct pusher *s, const struct mem_range *where,
		     struct err *err)
{
	unsigned int num = (unsigned int)(where->len / PAGE_4K), i, next;
	const char **pages = s->pages.pages;
	int r = unit_pages_load(&s->pages, where, err);

	for (i = 0; !r && i < num; i = next) {
		uint64_t gpa = where->start + i * PAGE_4K;

		next = i + 1;
		if (!take_page(s, gpa))
			continue;
		while (next < num &&
		       follows(pages[i], pages[next], (next - i) * PAGE_4K) &&
		       take_page(s, where->start + next * PAGE_4K))
			next++;
		r = put_run(s, gpa, pages[i], (next - i) * PAGE_4K, err);
	}
	return r || !s->num_iov ? r : flush(s, err);
}

/* ---- pushing ---- */

/* By words: a request may wait for the lock while all units are looked at. */
static bool has_left(const struct pusher *s, const struct mem_range *u)
{
	return page_map_has_more(s->p->cfg.pending, &s->p->sent, u->start,
				 u->len);
}

/* False: there is none, and nobody can ask for another. */
static bool choose_locked(struct pusher *s, const struct mem_range **ret)
{
	while (s->num_hints) {
		size_t i = s->hints[--s->num_hints];

		*ret = &s->units.list[i];
		if (!has_left(s, *ret))
			continue;
		s->next = i + 1;
		s->left = s->units.num;
		return true;
	}
	while (s->left) {
		*ret = &s->units.list[s->next++ % s->units.num];
		s->left--;
		if (has_left(s, *ret))
			return true;
	}
	return false;
}

/*
 * All that is pushed draws on one budget, as in pace.c; what is asked for
 * does not, for somebody waits. Ahead of the rate: wait, but not for longer
 * than that. There is no need for a sign of life: who follows has patience.
 */
static void keep_pace_locked(struct pusher *s)
{
	struct push *p = s->p;
	uint64_t sent = atomic_load(&s->wire_bytes), due;
	uint64_t bytes = sent - s->paced_bytes;

	if (!p->cfg.rate_bytes_per_s || !bytes)
		return;
	s->paced_bytes = sent;
	due = MAX(p->free_at_ns, clock_now_ns()) +
	      (uint64_t)((double)bytes * 1e9 / (double)p->cfg.rate_bytes_per_s);
	p->free_at_ns = due;
	while (!atomic_load(&p->stop) && clock_now_ns() < due)
		(void)cond_wait_until(&p->changed, &p->lock, due);
}

static bool next_unit(struct pusher *s, const struct mem_range **ret)
{
	struct push *p = s->p;
	bool some = false;

	pthread_mutex_lock(&p->lock);
	while (!p->goes && !atomic_load(&p->stop))
		pthread_cond_wait(&p->changed, &p->lock);
	keep_pace_locked(s);
	if (!atomic_load(&p->stop))
		some = choose_locked(s, ret);
	pthread_mutex_unlock(&p->lock);
	return some;
}

static void *pusher_main(void *arg)
{
	struct pusher *s = arg;
	const struct mem_range *where;
	struct err err = ERR_INIT;
	int r = 0;

	while (!r && next_unit(s, &where))
		r = push_unit(s, where, &err);
	if (!r && !is_stopped(s->p)) {
		put_header(s, WIRE_DONE, 0, 0, 0);
		r = flush(s, &err);
	}
	if (r)
		fail(s->p, r, &err);
	return NULL;
}

/* ---- what is asked for ---- */

static int compare_unit(const void *key, const void *entry)
{
	uint64_t gpa = *(const uint64_t *)key;
	const struct mem_range *u = entry;

	if (gpa < u->start)
		return -1;
	return gpa >= u->start + u->len;
}

/* What is around it is wanted next, probably. The oldest is forgotten. */
static void hint(struct push *p, uint64_t gpa)
{
	struct pusher *s = &p->pushers[wire_stream_of(gpa, p->cfg.num) - 1];
	const struct mem_range *u = bsearch(&gpa, s->units.list, s->units.num,
					    sizeof(*u), compare_unit);

	BUG_ON(!u);
	pthread_mutex_lock(&p->lock);
	if (s->num_hints == NUM_HINTS)
		memmove(s->hints, s->hints + 1,
			--s->num_hints * sizeof(s->hints[0]));
	s->hints[s->num_hints++] = (size_t)(u - s->units.list);
	pthread_mutex_unlock(&p->lock);
}

static int answer(struct pusher *s, uint64_t gpa, struct err *err)
{
	const struct mem_range where = { .start = gpa, .len = PAGE_4K };
	int r = unit_pages_load(&s->pages, &where, err);

	if (r)
		return r;
	page_map_set(&s->p->sent, gpa, PAGE_4K);
	/* Before who waits for it can look. */
	atomic_fetch_add(&s->p->urgent_pages, 1);
	r = put_run(s, gpa, s->pages.pages[0], PAGE_4K, err);
	return r ? r : flush(s, err);
}

static int serve_request(struct pusher *s, struct err *err)
{
	struct push *p = s->p;
	uint8_t in[WIRE_DATA_BYTES];
	struct wire_data_header h;
	int r = link_recv(&s->link, in, sizeof(in));

	if (r == -ECANCELED)
		return r;
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the other side is gone");
	if (r)
		return err_errno(err, -r, "waiting for requests");
	r = wire_parse_request(in, p->cfg.pending, &p->asked, &h, err);
	if (!r)
		r = answer(s, h.gpa, err);
	if (!r)
		hint(p, h.gpa);
	return r;
}

static void *urgent_main(void *arg)
{
	struct pusher *s = arg;
	struct err err = ERR_INIT;
	int r;

	/* Also of one that never has us wait. */
	do {
		r = is_stopped(s->p) ? -ECANCELED : serve_request(s, &err);
	} while (!r);
	if (r != -ECANCELED)
		fail(s->p, r, &err);
	return NULL;
}

static const struct thread_call push_calls[] = {
	CALL(sendmsg),
	CALL_IOCTL(PAGEMAP_SCAN_IOCTL),
	CALL(recvfrom),
	CALL(poll),
	RARE("this kernel has no PAGEMAP_SCAN, or memory is in a file",
	     pread64),
	RARE("shared=on, or memory mapped from a snapshot", lseek),
};

static const struct thread_call prepare_calls[] = {
	RARE_READ_ONLY("/proc/self/pagemap"),
};

const struct thread_class migrate_push_thread_class = {
	.name = "migrate-push",
	.what = "sends memory to where the VM runs already",
	THREAD_CALLS(push_calls),
	.prepare_calls = prepare_calls,
	.num_prepare_calls = ARRAY_SIZE(prepare_calls),
};

/* ---- the caller ---- */

static int prepare_packing(struct pusher *s)
{
	s->packed = malloc(WIRE_UNIT_BYTES);
	return s->packed ? packer_new(&s->packer, s->p->cfg.pack) : -ENOMEM;
}

static int prepare(void *arg)
{
	struct pusher *s = arg;
	/* A page that somebody waits for is the sooner there as it is. */
	int r = s->p->cfg.pack != PACK_NONE && s->index != WIRE_URGENT
			? prepare_packing(s)
			: 0;

	return r ? r : unit_pages_init(&s->pages, s->p->cfg.ram, NULL, NULL);
}

static int make_units(struct pusher *s)
{
	int r = stream_units_make(&s->units, s->p->cfg.ram, s->p->cfg.num,
				  s->index);

	s->left = s->units.num;
	return r;
}

static int start_pusher(struct push *p, struct pusher *s, unsigned int index)
{
	const bool urgent = index == WIRE_URGENT;
	const struct thread_spec spec = {
		.cls = &migrate_push_thread_class,
		.name = urgent ? "migrate-urgent" : "migrate-push",
		.prepare = prepare,
		.run = urgent ? urgent_main : pusher_main,
		.arg = s,
	};
	int r;

	s->p = p;
	s->index = index;
	s->pages.pagemap.fd = -1;
	s->link.fd = urgent ? p->cfg.urgent_fd : p->cfg.fds[index - 1];
	s->link.tls = urgent ? p->cfg.urgent_tls : p->cfg.tls[index - 1];
	/* Nobody has to ask for anything. */
	s->link.patience_ns = urgent ? UINT64_MAX : p->cfg.patience_ns;
	s->link.given_up = is_stopped;
	s->link.ctx = p;
	r = urgent ? 0 : make_units(s);
	if (!r)
		r = thread_create(&s->thread, &spec);
	s->started = !r;
	return r;
}

int push_start(struct push **ret, const struct push_config *cfg,
	       struct err *err)
{
	struct push *p = calloc(1,
				sizeof(*p) + cfg->num * sizeof(p->pushers[0]));
	int r;

	if (!p)
		return err_set(err, ENOMEM, "sending memory: out of memory");
	pthread_cond_init(&p->changed, NULL);
	pthread_mutex_init(&p->lock, NULL);
	p->cfg = *cfg;
	for (unsigned int i = 0; i < cfg->num; i++)
		p->pushers[i].pages.pagemap.fd = -1;
	p->urgent.pages.pagemap.fd = -1;
	r = page_map_init(&p->sent, cfg->ram);
	if (!r)
		r = page_map_init(&p->asked, cfg->ram);
	for (unsigned int i = 0; !r && i < cfg->num; i++)
		r = start_pusher(p, &p->pushers[i], i + 1);
	/* The last: it knows the units of the others. */
	if (!r)
		r = start_pusher(p, &p->urgent, WIRE_URGENT);
	if (!r) {
		*ret = p;
		return 0;
	}
	push_free(p);
	return err_errno(err, -r, "sending memory");
}

void push_go(struct push *p)
{
	pthread_mutex_lock(&p->lock);
	p->goes = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

bool push_failed(struct push *p, struct err *err)
{
	int error;

	pthread_mutex_lock(&p->lock);
	error = p->error;
	if (error && err)
		*err = p->err;
	pthread_mutex_unlock(&p->lock);
	return error != 0;
}

static void end_pusher(struct pusher *s)
{
	if (s->started)
		pthread_join(s->thread, NULL);
	unit_pages_fini(&s->pages);
	packer_free(s->packer);
	free(s->packed);
	free(s->units.list);
}

void push_free(struct push *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	atomic_store(&p->stop, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	/* The first: it speaks to the others. */
	end_pusher(&p->urgent);
	for (unsigned int i = 0; i < p->cfg.num; i++)
		end_pusher(&p->pushers[i]);
	page_map_fini(&p->sent);
	page_map_fini(&p->asked);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void add(const struct pusher *s, struct push_count *ret)
{
	ret->page_bytes += atomic_load(&s->page_bytes);
	ret->zero_bytes += atomic_load(&s->zero_bytes);
	ret->wire_bytes += atomic_load(&s->wire_bytes);
	ret->pack_from_bytes += atomic_load(&s->pack_from);
	ret->pack_to_bytes += atomic_load(&s->pack_to);
}

void push_read(struct push *p, struct push_count *ret)
{
	memset(ret, 0, sizeof(*ret));
	add(&p->urgent, ret);
	for (unsigned int i = 0; i < p->cfg.num; i++)
		add(&p->pushers[i], ret);
	ret->urgent_pages = atomic_load(&p->urgent_pages);
}
