/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A page is pending until it is in the pager. One that is
 * not pending is there, or is zero: so that is what the source says of it, and
 * of those that are there nobody asks. A page of zeroes is not pending any more
 * before the pager hears of it; one with data only after, since the source has
 * none to give.
 *
 * A page may come twice, pushed and as it was asked for; userfaultfd leaves
 * what is there as it is, so the guest's writes are never overwritten. The
 * page was in `ever`, the map that the source sent at first: others are
 * refused.
 *
 * A page is asked for once on a connection, whoever waits for it: `asked` says
 * so. After a new connection those that did not come are asked for again.
 *
 * A source may take no request for as long as it likes. That holds up who asks,
 * under a lock of their own (`asking`), and nobody who only looks: the control
 * thread is one of these. It is different until follow_commit(): the control
 * thread may be who waits then, for a page, and nobody could end it. So an
 * answer that takes too long is the end of it all.
 *
 * Locks: asking before pager_lock before lock.
 */
#include "migrate/follow.h"

#include <errno.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "migrate/pack.h"

#define MAX_TIMED 256u		     /* requests that are timed at once */
#define AWAY_NS	  (2 * NSEC_PER_SEC) /* without an answer */

struct stream {
	struct follow *f;
	pthread_t thread;
	bool started;
	struct link link;
	struct wire_stream wire;
	char *buf; /* a unit */
	/* Compressed pages; NULL: there are none. */
	uint8_t *packed;
	struct unpacker *unpacker;
};

struct request {
	uint64_t gpa, ns;
};

struct follow {
	struct mem_source source;
	struct ram *ram; /* until the VM ends: follow_new(), follow_begin() */
	struct page_map pending, ever, asked;
	_Atomic uint64_t pages_left, requests;
	uint64_t pages_total;
	_Atomic unsigned int refs;
	_Atomic bool cut; /* the streams end, for one has failed, or by us */
	struct histogram urgent;

	/* Held for reading while the pager is used, so that it stays. */
	pthread_rwlock_t pager_lock;
	struct pager *pager; /* NULL: not yet, or not any more */

	pthread_mutex_t asking; /* held while a request is sent */

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	bool committed, ended, connected;
	bool comes; /* there are streams: they may put something at any time */
	int error;  /* of the connections that there are */
	struct err err;
	_Atomic unsigned int breaks;
	uint64_t patience_ns; /* with an answer, until it is committed */
	struct request timed[MAX_TIMED];
	unsigned int num_timed;
	struct stream urgent_stream;
	struct stream *streams;
	unsigned int num_streams;
};

/* ---- failing ---- */

static bool is_cut(void *ctx)
{
	struct follow *f = ctx;

	return atomic_load_explicit(&f->cut, memory_order_relaxed);
}

/* The control thread may be waiting for memory while the state is loaded. */
static void give_up_memory(struct follow *f)
{
	pthread_rwlock_rdlock(&f->pager_lock);
	if (f->pager)
		pager_abandon(f->pager);
	pthread_rwlock_unlock(&f->pager_lock);
}

static void broken_locked(struct follow *f, int error, const struct err *err)
{
	if (!f->error) {
		f->error = error;
		f->err = *err;
	}
	atomic_store(&f->cut, true);
	pthread_cond_broadcast(&f->changed);
}

static void broken(struct follow *f, int error, const struct err *err)
{
	bool committed;

	pthread_mutex_lock(&f->lock);
	broken_locked(f, error, err);
	committed = f->committed;
	pthread_mutex_unlock(&f->lock);
	if (!committed)
		give_up_memory(f);
}

static bool is_late_locked(const struct follow *f, uint64_t patience_ns)
{
	uint64_t now = clock_now_ns();

	for (unsigned int i = 0; i < f->num_timed; i++) {
		if (now - f->timed[i].ns > patience_ns)
			return true;
	}
	return false;
}

/* Of the urgent connection. */
static bool is_cut_or_late(void *ctx)
{
	struct follow *f = ctx;
	struct err err = ERR_INIT;
	bool late;

	pthread_mutex_lock(&f->lock);
	late = !f->committed && is_late_locked(f, f->patience_ns);
	pthread_mutex_unlock(&f->lock);
	if (late)
		broken(f,
		       err_set(&err, ETIMEDOUT,
			       "the source does not answer when it is asked "
			       "for memory"),
		       &err);
	return is_cut(f);
}

/* ---- the source ---- */

static int source_extent(void *ctx, struct gpa gpa, uint64_t len,
			 enum mem_content *ret_content, uint64_t *ret_len)
{
	struct follow *f = ctx;
	bool pending;

	*ret_len = page_map_run(&f->pending, gpa.v, len, &pending);
	*ret_content = pending ? MEM_CONTENT_ABSENT : MEM_CONTENT_ZERO;
	return 0;
}

static int send_request(struct follow *f, uint64_t gpa)
{
	const struct wire_data_header h = {
		.type = WIRE_REQUEST,
		.gpa = gpa,
		.len = PAGE_4K,
	};
	uint8_t out[WIRE_DATA_BYTES];
	struct iovec iov = { out, sizeof(out) };

	wire_put_data(out, &h);
	return link_send(&f->urgent_stream.link, &iov, 1);
}

static bool begin_request(struct follow *f, uint64_t gpa)
{
	bool goes;

	pthread_mutex_lock(&f->lock);
	goes = f->connected && !f->error;
	if (goes && f->num_timed < MAX_TIMED)
		f->timed[f->num_timed++] = (struct request){
			.gpa = gpa,
			.ns = clock_now_ns(),
		};
	pthread_mutex_unlock(&f->lock);
	return goes;
}

/* In order, and one at a time: under asking, so that it stays connected. */
static void ask(struct follow *f, uint64_t gpa)
{
	struct err err = ERR_INIT;
	int r = begin_request(f, gpa) ? send_request(f, gpa) : 0;

	if (!r || r == -ECANCELED)
		return;
	(void)err_errno(&err, -r, "asking for memory");
	broken(f, r, &err);
}

static int source_read(void *ctx, struct gpa gpa, void *buf, uint64_t len,
		       struct err *err)
{
	struct follow *f = ctx;

	pthread_mutex_lock(&f->asking);
	for (uint64_t at = gpa.v; at < gpa.v + len; at += PAGE_4K) {
		if (!page_map_test(&f->pending, at) ||
		    !page_map_set(&f->asked, at, PAGE_4K))
			continue;
		atomic_fetch_add(&f->requests, 1);
		ask(f, at);
	}
	pthread_mutex_unlock(&f->asking);
	return -EAGAIN;
}

/* The pager goes: nobody touches it after this. */
static void source_abort(void *ctx)
{
	struct follow *f = ctx;

	/* Streams that never rest might keep the pager for ever. */
	atomic_store(&f->cut, true);
	/* What the pager has is counted, so that the end is known. */
	pthread_rwlock_wrlock(&f->pager_lock);
	f->pager = NULL;
	pthread_rwlock_unlock(&f->pager_lock);
	pthread_mutex_lock(&f->lock);
	f->ended = true;
	atomic_store(&f->cut, true);
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

static bool source_is_away(void *ctx)
{
	struct follow *f = ctx;
	bool away;

	pthread_mutex_lock(&f->lock);
	away = !f->connected || f->error || is_late_locked(f, AWAY_NS);
	pthread_mutex_unlock(&f->lock);
	return away;
}

static const struct mem_source_ops source_ops = {
	.name = "migration",
	.extent = source_extent,
	.read = source_read,
	.abort = source_abort,
	.is_away = source_is_away,
};

/* ---- what comes ---- */

static void arrived(struct follow *f, uint64_t pages)
{
	if (!pages || atomic_fetch_sub(&f->pages_left, pages) != pages)
		return;
	pthread_mutex_lock(&f->lock);
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

/* buf NULL: zeroes. */
static int put(struct follow *f, uint64_t gpa, const char *buf, uint64_t len)
{
	uint64_t pages = 0;
	int r = 0;

	pthread_rwlock_rdlock(&f->pager_lock);
	if (f->pager) {
		if (!buf)
			pages = page_map_clear(&f->pending, gpa, len);
		r = pager_put(f->pager, GPA(gpa), buf, len);
		if (buf && !r)
			pages = page_map_clear(&f->pending, gpa, len);
		arrived(f, pages);
	}
	pthread_rwlock_unlock(&f->pager_lock);
	return r;
}

static void end_request(struct follow *f, uint64_t gpa)
{
	pthread_mutex_lock(&f->lock);
	for (unsigned int i = 0; i < f->num_timed; i++) {
		if (f->timed[i].gpa != gpa)
			continue;
		histogram_record(&f->urgent, clock_now_ns() - f->timed[i].ns);
		f->timed[i] = f->timed[--f->num_timed];
		break;
	}
	pthread_mutex_unlock(&f->lock);
}

static int explain(const struct stream *s, int r, struct err *err)
{
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the source is gone (stream %u)",
			       s->wire.index);
	return r == -ECANCELED ? r
			       : err_errno(err, -r, "stream %u", s->wire.index);
}

/* Their content, into buf. */
static int read_pages(struct stream *s, const struct wire_data_header *h,
		      struct err *err)
{
	bool packed = h->type != WIRE_PAGES;
	int r = link_recv(&s->link, packed ? (char *)s->packed : s->buf,
			  packed ? h->packed : h->len);

	if (r)
		return explain(s, r, err);
	if (!packed ||
	    !unpacker_unpack(s->unpacker,
			     h->type == WIRE_PAGES_LZ4 ? PACK_LZ4 : PACK_ZSTD,
			     s->packed, h->packed, s->buf, h->len))
		return 0;
	return err_set(err, EBADMSG, "stream %u: compressed memory at %#llx",
		       s->wire.index, (unsigned long long)h->gpa);
}

static int take_message(struct stream *s, const struct wire_data_header *h,
			struct err *err)
{
	bool zeroes = h->type == WIRE_ZERO;
	int r = zeroes ? 0 : read_pages(s, h, err);

	if (r)
		return r;
	r = put(s->f, h->gpa, zeroes ? NULL : s->buf, h->len);
	if (r)
		return err_errno(err, -r, "putting memory at %#llx",
				 (unsigned long long)h->gpa);
	if (s->wire.index == WIRE_URGENT)
		end_request(s->f, h->gpa);
	return 0;
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;
	struct wire_data_header h = { .type = WIRE_DONE };
	uint8_t in[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;
	int r = 0;

	while (!r && !s->wire.ended) {
		/* Also of a source that never has us wait. */
		r = is_cut(s->f) ? -ECANCELED
				 : link_recv(&s->link, in, sizeof(in));
		if (r)
			r = explain(s, r, &err);
		else
			r = wire_parse_follow(in, &s->wire, &s->f->ever, &h,
					      &err);
		if (!r && h.type != WIRE_DONE)
			r = take_message(s, &h, &err);
	}
	if (r && r != -ECANCELED)
		broken(s->f, r, &err);
	return NULL;
}

static const struct thread_call follow_calls[] = {
	CALL(recvfrom),
	CALL(poll),
	CALL_IOCTL(UFFDIO_COPY),
	RARE_IOCTL("zeroes come", UFFDIO_WAKE),
	RARE_IOCTL("a connection fails before the VM is here",
		   UFFDIO_UNREGISTER),
};

const struct thread_class migrate_follow_thread_class = {
	.name = "migrate-follow",
	.what = "takes memory that comes after its VM",
	THREAD_CALLS(follow_calls),
};

/* ---- connections ---- */

static int prepare_stream(struct stream *s)
{
	s->buf = aligned_alloc(PAGE_4K, WIRE_UNIT_BYTES);
	if (!s->buf)
		return -ENOMEM;
	if (!s->wire.features)
		return 0;
	s->packed = malloc(WIRE_UNIT_BYTES);
	return s->packed ? unpacker_new(&s->unpacker) : -ENOMEM;
}

/* Index, fd and tls are those of a data stream, or the urgent connection. */
static int start_stream(struct follow *f, struct stream *s,
			const struct follow_connections *c, unsigned int index)
{
	bool urgent = index == WIRE_URGENT;
	const struct page_map *map = &f->ever;
	int r;

	*s = (struct stream){
		.f = f,
		.link = { .fd = urgent ? c->urgent_fd : c->fds[index - 1],
			  .tls = urgent ? c->urgent_tls : c->tls[index - 1],
			  .given_up = urgent ? is_cut_or_late : is_cut,
			  .ctx = f },
		.wire = { .index = index,
			  .num = c->num,
			  .num_regions = map->num_regions,
			  .features = urgent ? 0 : c->features },
	};
	/* The source may have nothing to say for long. */
	atomic_store(&s->link.patience_ns, UINT64_MAX);
	for (unsigned int k = 0; k < map->num_regions; k++)
		s->wire.regions[k] = (struct wire_range){
			.start = map->regions[k].start,
			.len = map->regions[k].pages * PAGE_4K,
		};
	r = prepare_stream(s);
	if (!r)
		r = thread_start(&s->thread, &migrate_follow_thread_class,
				 "migrate-follow", stream_main, s);
	s->started = !r;
	return r;
}

/* Who waits for them has asked on a connection that is no more. */
static void ask_again(struct follow *f)
{
	for (unsigned int i = 0; i < f->asked.num_regions; i++) {
		const struct page_map_region *region = &f->asked.regions[i];
		uint64_t at = region->start, len;
		uint64_t end = at + region->pages * PAGE_4K;
		bool asked;

		for (; at < end; at += len) {
			len = page_map_run(&f->asked, at, end - at, &asked);
			for (uint64_t p = at; asked && p < at + len;
			     p += PAGE_4K) {
				if (page_map_test(&f->pending, p))
					ask(f, p);
			}
		}
	}
}

int follow_connect(struct follow *f, const struct follow_connections *c,
		   struct err *err)
{
	int r = 0;

	atomic_store(&f->cut, false);
	f->patience_ns = c->patience_ns;
	f->streams = calloc(c->num, sizeof(f->streams[0]));
	f->num_streams = f->streams ? c->num : 0;
	if (!f->streams)
		r = -ENOMEM;
	for (unsigned int i = 0; !r && i < c->num; i++)
		r = start_stream(f, &f->streams[i], c, i + 1);
	if (!r)
		r = start_stream(f, &f->urgent_stream, c, WIRE_URGENT);
	if (r) {
		follow_disconnect(f);
		return err_errno(err, -r, "receiving memory");
	}
	/* Nobody asks for what is just being asked for again. */
	pthread_mutex_lock(&f->asking);
	pthread_mutex_lock(&f->lock);
	if (f->ended)
		atomic_store(&f->cut, true);
	f->connected = f->comes = true;
	pthread_mutex_unlock(&f->lock);
	ask_again(f);
	pthread_mutex_unlock(&f->asking);
	return 0;
}

static void end_stream(struct stream *s)
{
	if (s->started)
		pthread_join(s->thread, NULL);
	free(s->buf);
	free(s->packed);
	unpacker_free(s->unpacker);
	*s = (struct stream){ .f = s->f };
}

void follow_disconnect(struct follow *f)
{
	atomic_store(&f->cut, true);
	/* Who is asking sees that soon. */
	pthread_mutex_lock(&f->asking);
	pthread_mutex_lock(&f->lock);
	f->connected = false;
	pthread_mutex_unlock(&f->lock);
	pthread_mutex_unlock(&f->asking);
	if (f->urgent_stream.f)
		end_stream(&f->urgent_stream);
	for (unsigned int i = 0; i < f->num_streams; i++)
		end_stream(&f->streams[i]);
	free(f->streams);
	f->streams = NULL;
	f->num_streams = 0;
	pthread_mutex_lock(&f->lock);
	/* When all has come who was the source closes them, too. */
	atomic_fetch_add(&f->breaks, f->error && atomic_load(&f->pages_left));
	f->error = 0;
	f->comes = false;
	f->num_timed = 0;
	pthread_mutex_unlock(&f->lock);
}

void follow_break(struct follow *f, const struct err *err)
{
	broken(f, -EPIPE, err);
}

bool follow_commit(struct follow *f, struct err *err)
{
	bool fine;

	pthread_mutex_lock(&f->lock);
	fine = !f->error;
	f->committed = fine;
	if (!fine && err)
		*err = f->err;
	pthread_mutex_unlock(&f->lock);
	return fine;
}

/* ---- how it goes ---- */

static enum follow_state look_locked(struct follow *f, struct err *err)
{
	if (!atomic_load(&f->pages_left))
		return FOLLOW_COMPLETE;
	if (f->ended)
		return FOLLOW_ENDED;
	if (!f->error)
		return FOLLOW_GOES_ON;
	if (err)
		*err = f->err;
	return FOLLOW_BROKEN;
}

enum follow_state follow_look(struct follow *f, struct err *err)
{
	enum follow_state state;

	pthread_mutex_lock(&f->lock);
	state = look_locked(f, err);
	pthread_mutex_unlock(&f->lock);
	return state;
}

enum follow_state follow_wait(struct follow *f, uint64_t ns, struct err *err)
{
	uint64_t until = clock_now_ns() + ns;
	enum follow_state state;
	bool more = true;

	pthread_mutex_lock(&f->lock);
	while ((state = look_locked(f, err)) == FOLLOW_GOES_ON && more)
		more = cond_wait_until(&f->changed, &f->lock, until);
	pthread_mutex_unlock(&f->lock);
	return state;
}

const struct page_map *follow_pending(const struct follow *f)
{
	return &f->pending;
}

/* Paused: nothing comes any more, also of what was on its way. */
static const char *state_text(struct follow *f)
{
	const char *text;

	pthread_mutex_lock(&f->lock);
	if (!atomic_load(&f->pages_left))
		text = "complete";
	else if (f->comes)
		text = "active";
	else
		text = "paused";
	pthread_mutex_unlock(&f->lock);
	return text;
}

json_t *follow_info(void *follow)
{
	struct follow *f = follow;
	struct histogram_snapshot urgent;

	histogram_read(&f->urgent, &urgent);
	return json_pack(
		"{s:s, s:s, s:I, s:I, s:I, s:i, s:I, s:I, s:I}", "role",
		"destination", "postcopy", state_text(f), "pending_bytes",
		json_int_u64(atomic_load(&f->pages_left) * PAGE_4K),
		"followed_bytes", json_int_u64(f->pages_total * PAGE_4K),
		"requests", json_int_u64(atomic_load(&f->requests)), "breaks",
		(int)atomic_load(&f->breaks), "urgent_pages",
		json_int_u64(urgent.count), "urgent_p50_us",
		json_int_u64(histogram_percentile(&urgent, 50) / 1000),
		"urgent_p99_us",
		json_int_u64(histogram_percentile(&urgent, 99) / 1000));
}

/* ---- making ---- */

static void init_sync(struct follow *f)
{
	pthread_cond_init(&f->changed, NULL);
	pthread_mutex_init(&f->lock, NULL);
	pthread_mutex_init(&f->asking, NULL);
	pthread_rwlock_init(&f->pager_lock, NULL);
}

int follow_new(struct follow **ret, struct ram *ram, const uint8_t *map,
	       size_t bytes, struct err *err)
{
	struct follow *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return err_set(err, ENOMEM, "receiving memory: out of memory");
	init_sync(f);
	f->ram = ram;
	f->source = (struct mem_source){ &source_ops, f };
	f->refs = 1;
	r = page_map_init(&f->pending, ram);
	if (!r)
		r = page_map_init(&f->ever, ram);
	if (!r)
		r = page_map_init(&f->asked, ram);
	if (r) {
		follow_unref(f);
		return err_errno(err, -r, "receiving memory");
	}
	r = wire_parse_map(map, bytes, &f->pending, err);
	if (!r)
		r = wire_parse_map(map, bytes, &f->ever, err);
	if (r) {
		follow_unref(f);
		return r;
	}
	f->pages_total = page_map_count(&f->pending);
	f->pages_left = f->pages_total;
	*ret = f;
	return 0;
}

void follow_ref(struct follow *f)
{
	atomic_fetch_add(&f->refs, 1);
}

void follow_unref(void *follow)
{
	struct follow *f = follow;

	if (!f || atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	page_map_fini(&f->pending);
	page_map_fini(&f->ever);
	page_map_fini(&f->asked);
	pthread_cond_destroy(&f->changed);
	pthread_mutex_destroy(&f->lock);
	pthread_mutex_destroy(&f->asking);
	pthread_rwlock_destroy(&f->pager_lock);
	free(f);
}

const struct mem_source *follow_source(const struct follow *f)
{
	return &f->source;
}

/* Where a region's page is in the memfd. */
static uint64_t file_offset(const struct ram *ram, unsigned int region,
			    uint64_t gpa)
{
	uint64_t offset = gpa - ram->regions[region].base.v;

	for (unsigned int i = 0; i < region; i++)
		offset += ram->regions[i].size;
	return offset;
}

/*
 * What came in a round and was written since is not the guest's any more. It is
 * registered by now: khugepaged makes no page of zeroes of what goes here.
 */
static int discard(struct follow *f, unsigned int region, uint64_t gpa,
		   uint64_t len)
{
	const struct ram *ram = f->ram;

	if (ram->fd >= 0)
		return fallocate(ram->fd,
				 FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)file_offset(ram, region, gpa),
				 (off_t)len)
			       ? -errno
			       : 0;
	return madvise(ram->base + gpa, len, MADV_DONTNEED) ? -errno : 0;
}

/* A unit with nothing pending is not the pager's at all. */
static int begin_unit(struct follow *f, unsigned int region, uint64_t start,
		      uint64_t end)
{
	uint64_t len;
	bool pending;
	int r = 0;

	if (page_map_run(&f->pending, start, end - start, &pending) ==
		    end - start &&
	    !pending)
		return 0;
	for (uint64_t at = start; !r && at < end; at += len) {
		len = page_map_run(&f->pending, at, end - at, &pending);
		r = pending ? discard(f, region, at, len)
			    : pager_put(f->pager, GPA(at), NULL, len);
	}
	return r;
}

int follow_begin(struct follow *f, struct pager *pager, struct err *err)
{
	int r = 0;

	pthread_rwlock_wrlock(&f->pager_lock);
	f->pager = pager;
	pthread_rwlock_unlock(&f->pager_lock);
	for (unsigned int i = 0; !r && i < f->ram->num_regions; i++) {
		uint64_t at = f->ram->regions[i].base.v;
		uint64_t end = at + f->ram->regions[i].size, next;

		for (; !r && at < end; at = next) {
			next = MIN(at + WIRE_UNIT_BYTES, end);
			r = begin_unit(f, i, at, next);
		}
	}
	return r ? err_errno(err, -r, "preparing memory that is to come") : 0;
}
