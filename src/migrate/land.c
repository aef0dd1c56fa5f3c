/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A unit belongs to one stream for good, so what is kept
 * of a unit belongs to one thread, and no page is written by two.
 *
 * Each unit has a bit for every page that is populated in the host. A page that
 * comes for the first time is populated before it is read into: a host without
 * memory is an error then, and not a signal or the OOM killer. A unit with such
 * pages is stale; when the source says that it has sent all of the unit, or at
 * the end of a round, its populated pages are mapped in the second stage. In
 * the rounds that follow pages come again, to where they are mapped already: so
 * while the guest stands still there is next to nothing left to map.
 *
 * What never comes is zero and stays unpopulated, unless the VM is one whose
 * memory is populated: then it is, at the end of the first round, while the
 * guest still runs at the source.
 *
 * Of disks each stream writes what it gets to the images, and makes that
 * durable every now and then and at the end of each round: so it takes no more
 * than the disks do, and there is little to wait for while the guest stands
 * still.
 *
 * Of each round the source hears when it is in its place, populated, mapped and
 * durable, by the last stream that comes to its end: before that it does not
 * stop its guest, which would wait for that.
 */
#include "migrate/land.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "mem/hostmem_guard.h"
#include "mem/host_fill.h"
#include "mem/populate.h"
#include "migrate/disk_unit.h"
#include "migrate/pack.h"
#include "migrate/stream_units.h"

#define BUFFER_BYTES (256u << 10)
#define SYNC_BYTES   (16 * MIB) /* of an image, are written without a sync */

struct unit {
	uint64_t gpa, len;
	uint64_t here[WIRE_UNIT_PAGES / 64]; /* populated pages */
	bool stale; /* of which some are not mapped in the second stage */
};

struct stream {
	struct land *land;
	pthread_t thread;
	bool started;
	struct link link;
	struct wire_stream wire;
	struct unit *units; /* its own, ascending */
	size_t num_units;
	unsigned int port;
	/* What was read from the socket and not yet looked at. */
	uint8_t *buffer;
	size_t at, filled;
	/* Compressed pages; NULL: there are none. */
	uint8_t *packed;
	struct unpacker *unpacker;
	/* With disks; and those that were written in this round. */
	struct disk_unit disk;
	bool written[VM_MAX_DEVICES];
	uint64_t unsynced[VM_MAX_DEVICES]; /* bytes of these */
	struct vm_landed landed;
	uint64_t rounds; /* in their place; with the lock */
};

struct port {
	pthread_mutex_t lock; /* one thread fills through it at a time */
};

struct land {
	struct land_config cfg;
	const struct ram *ram;
	struct hostmem_guard *guard;
	_Atomic bool stop;
	_Atomic uint64_t moved_ns; /* when something came, on any stream */
	_Atomic bool is_awaited;   /* and for that the source has patience_ns */
	_Atomic unsigned int at_disk; /* streams that wait for a disk */
	struct port *ports;
	unsigned int num_ports;

	pthread_mutex_t lock; /* what is below, and rounds of streams */
	uint64_t rounds;      /* of all streams */
	int error;
	struct err err;
	struct stream streams[];
};

static void fail(struct land *l, int error, const struct err *err)
{
	pthread_mutex_lock(&l->lock);
	if (!l->error) {
		l->error = error;
		l->err = *err;
	}
	pthread_mutex_unlock(&l->lock);
	atomic_store(&l->stop, true);
}

static void has_moved(struct land *l)
{
	atomic_store(&l->moved_ns, clock_now_ns());
}

/*
 * A stream alone may have nothing to say for as long as others have, and so has
 * the control connection meanwhile: it is all of them that may not be silent.
 */
static void check_silence(struct land *l)
{
	struct err err = ERR_INIT;
	/* In this order: what comes, or ends, in between is no silence. */
	bool at_disk = atomic_load(&l->at_disk);
	uint64_t moved = atomic_load(&l->moved_ns), now = clock_now_ns();

	if (!atomic_load(&l->is_awaited) || at_disk ||
	    now - moved <= l->cfg.patience_ns)
		return;
	fail(l, err_set(&err, ETIMEDOUT, "the source says nothing any more"),
	     &err);
}

static bool is_stopped(void *ctx)
{
	struct land *l = ctx;

	check_silence(l);
	return atomic_load_explicit(&l->stop, memory_order_relaxed) ||
	       (l->cfg.given_up && l->cfg.given_up(l->cfg.ctx));
}

/* ---- units ---- */

static int compare_unit(const void *key, const void *entry)
{
	uint64_t gpa = *(const uint64_t *)key;
	const struct unit *u = entry;

	if (gpa < u->gpa)
		return -1;
	return gpa >= u->gpa + u->len;
}

/* There is one: the header was checked. */
static struct unit *find_unit(const struct stream *s, uint64_t gpa)
{
	struct unit *u = bsearch(&gpa, s->units, s->num_units, sizeof(*u),
				 compare_unit);

	BUG_ON(!u);
	return u;
}

static int make_units(struct stream *s)
{
	struct stream_units all;
	int r = stream_units_make(&all, s->land->ram, s->wire.num,
				  s->wire.index);

	if (r)
		return r;
	s->units = calloc(all.num + 1, sizeof(*s->units));
	if (!s->units)
		r = -ENOMEM;
	for (; !r && s->num_units < all.num; s->num_units++)
		s->units[s->num_units] = (struct unit){
			.gpa = all.list[s->num_units].start,
			.len = all.list[s->num_units].len,
		};
	free(all.list);
	return r;
}

static bool is_here(const struct unit *u, uint64_t page)
{
	return u->here[page / 64] >> (page % 64) & 1;
}

/* The end of the pages from page on that are all (not) here. */
static uint64_t run_end(const struct unit *u, uint64_t page, uint64_t end)
{
	bool here = is_here(u, page);

	while (page < end && is_here(u, page) == here)
		page++;
	return page;
}

static int populate(struct stream *s, struct unit *u, uint64_t first,
		    uint64_t end, struct err *err)
{
	struct land *l = s->land;
	uint64_t page = ram_page_bytes(l->ram->page);
	uint64_t from = align_down(u->gpa + first * PAGE_4K, page);
	uint64_t to = align_up(u->gpa + end * PAGE_4K, page);
	int r = hostmem_guard_take(l->guard, GPA(from), to - from, err);

	if (r)
		return r;
	r = host_fill(l->ram, GPA(from), to - from, err);
	hostmem_guard_done(l->guard, to - from);
	for (uint64_t i = first; !r && i < end; i++)
		u->here[i / 64] |= 1ull << (i % 64);
	u->stale = true;
	return r;
}

/* [gpa, gpa + len) of the unit is about to be written. */
static int have_pages(struct stream *s, struct unit *u, uint64_t gpa,
		      uint64_t len, struct err *err)
{
	uint64_t page = (gpa - u->gpa) / PAGE_4K, end = page + len / PAGE_4K;
	uint64_t next;
	int r = 0;

	for (; !r && page < end; page = next) {
		next = run_end(u, page, end);
		if (!is_here(u, page))
			r = populate(s, u, page, next, err);
	}
	return r;
}

/* ---- the second stage ---- */

static int fill(struct stream *s, uint64_t gpa, uint64_t len)
{
	struct land *l = s->land;
	const struct second_stage_filler *f = l->cfg.landing.second_stage;
	int r;

	pthread_mutex_lock(&l->ports[s->port].lock);
	r = f->fill(f->ctx, s->port, GPA(gpa), len);
	pthread_mutex_unlock(&l->ports[s->port].lock);
	if (!r)
		s->landed.second_stage_bytes += len;
	return r;
}

static int map_unit(struct stream *s, struct unit *u, struct err *err)
{
	uint64_t page = 0, end = u->len / PAGE_4K, next;
	int r = 0;

	if (!u->stale || !s->land->num_ports)
		return 0;
	for (; !r && page < end; page = next) {
		next = run_end(u, page, end);
		if (is_here(u, page))
			r = fill(s, u->gpa + page * PAGE_4K,
				 (next - page) * PAGE_4K);
	}
	if (r)
		return err_errno(err, -r,
				 "mapping guest memory at %#llx in the second "
				 "stage",
				 (unsigned long long)u->gpa);
	u->stale = false;
	return 0;
}

/* What never comes is wanted as well. */
static int populate_rest(struct stream *s, struct err *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < s->num_units; i++) {
		struct unit *u = &s->units[i];

		if (is_stopped(s->land))
			return err_set(err, ECANCELED, "cancelled");
		r = have_pages(s, u, u->gpa, u->len, err);
		if (!r)
			r = map_unit(s, u, err);
		has_moved(s->land); /* that it waits is our doing */
	}
	return r;
}

/* ---- disks ---- */

/* As long as a disk takes it is not the source that is silent. */
static void begin_disk(struct land *l)
{
	atomic_fetch_add(&l->at_disk, 1);
}

static void end_disk(struct land *l)
{
	has_moved(l);
	atomic_fetch_sub(&l->at_disk, 1);
}

static int sync_disk(struct stream *s, unsigned int i, struct err *err)
{
	const struct blockdev *dev = s->land->cfg.disks.list[i];
	int r;

	begin_disk(s->land);
	r = fdatasync(blockdev_fd(dev)) ? errno : 0;
	end_disk(s->land);
	s->written[i] = false;
	s->unsynced[i] = 0;
	return r ? err_errno(err, r, "disk %s: fdatasync", blockdev_path(dev))
		 : 0;
}

static int sync_disks(struct stream *s, struct err *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < s->land->cfg.disks.num; i++) {
		if (s->written[i])
			r = sync_disk(s, i, err);
	}
	return r;
}

/* Was it the last stream to come to the end of a round? */
static bool has_landed(struct stream *s)
{
	struct land *l = s->land;
	uint64_t rounds = UINT64_MAX;
	bool last;

	pthread_mutex_lock(&l->lock);
	s->rounds = s->wire.rounds;
	for (unsigned int i = 0; i < l->cfg.num; i++)
		rounds = MIN(rounds, l->streams[i].rounds);
	last = rounds > l->rounds;
	l->rounds = rounds;
	pthread_mutex_unlock(&l->lock);
	return last;
}

static int end_round(struct stream *s, struct err *err)
{
	int r = sync_disks(s, err);

	if (!r && s->wire.rounds == 1 && s->land->cfg.landing.fills_host)
		r = populate_rest(s, err);
	for (size_t i = 0; !r && i < s->num_units; i++)
		r = map_unit(s, &s->units[i], err);
	if (!r && has_landed(s) && s->land->cfg.landed)
		r = s->land->cfg.landed(s->land->cfg.ctx, err);
	return r;
}

/* ---- a stream ---- */

static int explain(const struct stream *s, int r, struct err *err)
{
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the source is gone (stream %u)",
			       s->wire.index);
	if (r == -ECANCELED)
		return err_set(err, ECANCELED, "cancelled");
	return err_errno(err, -r, "stream %u", s->wire.index);
}

/*
 * Headers come through the buffer, with what of the pages follows in the same
 * read; the rest of the pages is read to where it belongs.
 */
static int read_bytes(struct stream *s, void *to, size_t len)
{
	while (len) {
		size_t have = MIN(s->filled - s->at, len);
		ssize_t n;

		memcpy(to, s->buffer + s->at, have);
		s->at += have;
		to = (char *)to + have;
		len -= have;
		if (len >= BUFFER_BYTES)
			return link_recv(&s->link, to, len);
		if (!len)
			break;
		n = link_recv_some(&s->link, s->buffer, BUFFER_BYTES);
		if (n < 0)
			return (int)n;
		s->at = 0;
		s->filled = (size_t)n;
	}
	return 0;
}

static int put_pages(struct stream *s, const struct wire_data_header *h,
		     struct err *err)
{
	int r = have_pages(s, find_unit(s, h->gpa), h->gpa, h->len, err);

	if (r)
		return r;
	s->landed.page_bytes += h->len;
	r = read_bytes(s, s->land->ram->base + h->gpa, h->len);
	return r ? explain(s, r, err) : 0;
}

/* Straight to where they belong: nobody else is there yet. */
static int put_packed(struct stream *s, const struct wire_data_header *h,
		      struct err *err)
{
	int r = have_pages(s, find_unit(s, h->gpa), h->gpa, h->len, err);

	if (r)
		return r;
	s->landed.page_bytes += h->len;
	r = read_bytes(s, s->packed, h->packed);
	if (r)
		return explain(s, r, err);
	r = unpacker_unpack(s->unpacker,
			    h->type == WIRE_PAGES_LZ4 ? PACK_LZ4 : PACK_ZSTD,
			    s->packed, h->packed, s->land->ram->base + h->gpa,
			    h->len);
	return r ? err_set(err, EBADMSG,
			   "stream %u: compressed memory at %#llx",
			   s->wire.index, (unsigned long long)h->gpa)
		 : 0;
}

/* Pages that are not populated are zero. */
static void put_zero(struct stream *s, const struct wire_data_header *h)
{
	const struct unit *u = find_unit(s, h->gpa);
	uint64_t page = (h->gpa - u->gpa) / PAGE_4K;
	uint64_t end = page + h->len / PAGE_4K, next;

	for (; page < end; page = next) {
		next = run_end(u, page, end);
		if (is_here(u, page))
			memset(s->land->ram->base + u->gpa + page * PAGE_4K, 0,
			       (next - page) * PAGE_4K);
	}
	s->landed.zero_bytes += h->len;
}

static int put_disk(struct stream *s, const struct wire_data_header *h,
		    struct err *err)
{
	const struct blockdev *dev = s->land->cfg.disks.list[h->disk];
	bool data = h->type == WIRE_DISK;
	int r = data ? read_bytes(s, s->disk.buffer, h->len) : 0;

	if (r)
		return explain(s, r, err);
	s->written[h->disk] = true;
	s->landed.disk_bytes += data ? h->len : 0;
	s->unsynced[h->disk] += data ? h->len : 0;
	begin_disk(s->land);
	r = disk_unit_write(&s->disk, dev, h->gpa, h->len, data, err);
	end_disk(s->land);
	return r || s->unsynced[h->disk] < SYNC_BYTES
		       ? r
		       : sync_disk(s, h->disk, err);
}

static int take_message(struct stream *s, const struct wire_data_header *h,
			struct err *err)
{
	switch (h->type) {
	case WIRE_PAGES:
		return put_pages(s, h, err);
	case WIRE_PAGES_LZ4:
	case WIRE_PAGES_ZSTD:
		return put_packed(s, h, err);
	case WIRE_ZERO:
		put_zero(s, h);
		return 0;
	case WIRE_DISK:
	case WIRE_DISK_ZERO:
		return put_disk(s, h, err);
	case WIRE_UNIT:
		return map_unit(s, find_unit(s, h->gpa), err);
	case WIRE_ROUND:
		return end_round(s, err);
	case WIRE_END: /* what a source sent after its last round, too */
		return sync_disks(s, err);
	case WIRE_REQUEST: /* not on such a stream */
	case WIRE_DONE:
		break;
	}
	return 0;
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;
	struct wire_data_header h = { .type = WIRE_END };
	uint8_t bytes[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;
	int r = 0;

	while (!r && !s->wire.ended) {
		/* Also of a source that never has us wait. */
		r = is_stopped(s->land) ? -ECANCELED
					: read_bytes(s, bytes, sizeof(bytes));
		if (r)
			r = explain(s, r, &err);
		else
			r = wire_parse_data(bytes, &s->wire, &h, &err);
		if (!r)
			r = take_message(s, &h, &err);
		has_moved(s->land);
	}
	/* Nobody has anything to say after that. */
	if (!r && s->at != s->filled)
		r = err_set(&err, EBADMSG, "stream %u: bytes after its end",
			    s->wire.index);
	if (r)
		fail(s->land, r, &err);
	return NULL;
}

static const struct thread_call land_calls[] = {
	CALL(recvfrom),
	CALL(sendto),
	RARE("with TLS", sendmsg),
	RARE("the network is slower than memory", poll),
	RARE("disks come, too", pwrite64),
	RARE("disks come, too", fallocate),
	RARE("disks come, too", fdatasync),
};

const struct thread_class migrate_land_thread_class = {
	.name = "migrate-land",
	.what = "puts guest memory that arrives in its place",
	THREAD_CALLS(land_calls),
	.also = &populate_thread_class,
};

/* ---- the caller ---- */

static int prepare_unpacking(struct stream *s)
{
	s->packed = malloc(WIRE_UNIT_BYTES);
	return s->packed ? unpacker_new(&s->unpacker) : -ENOMEM;
}

static int prepare_stream(struct land *l, unsigned int i)
{
	struct stream *s = &l->streams[i];
	int r;

	s->land = l;
	s->wire.index = i + 1;
	s->wire.num = l->cfg.num;
	s->wire.num_regions = l->ram->num_regions;
	for (unsigned int k = 0; k < l->ram->num_regions; k++)
		s->wire.regions[k] = (struct wire_range){
			.start = l->ram->regions[k].base.v,
			.len = l->ram->regions[k].size,
		};
	s->link.fd = l->cfg.fds[i];
	s->link.tls = l->cfg.tls ? l->cfg.tls[i] : NULL;
	s->link.patience_ns = UINT64_MAX; /* see check_silence() */
	s->link.given_up = is_stopped;
	s->link.ctx = l;
	s->port = l->num_ports ? i % l->num_ports : 0;
	s->buffer = malloc(BUFFER_BYTES);
	s->wire.num_disks = l->cfg.disks.num;
	for (unsigned int k = 0; k < l->cfg.disks.num; k++)
		s->wire.disk_bytes[k] = blockdev_size(l->cfg.disks.list[k]);
	s->wire.features = l->cfg.features;
	if (!s->buffer)
		return -ENOMEM;
	r = (s->wire.features & WIRE_FEATURES_PACKED) ? prepare_unpacking(s)
						      : 0;
	if (!r && l->cfg.disks.num)
		r = disk_unit_init(&s->disk);
	return r ? r : make_units(s);
}

static int start_stream(struct stream *s)
{
	int r = thread_start(&s->thread, &migrate_land_thread_class,
			     "migrate-land", stream_main, s);

	s->started = !r;
	return r;
}

static int make_ports(struct land *l)
{
	unsigned int num = l->cfg.landing.second_stage
				   ? l->cfg.landing.second_stage->num_ports
				   : 0;

	num = MIN(num, l->cfg.num);
	l->ports = calloc(num + 1, sizeof(*l->ports));
	if (!l->ports)
		return -ENOMEM;
	for (; l->num_ports < num; l->num_ports++)
		pthread_mutex_init(&l->ports[l->num_ports].lock, NULL);
	return 0;
}

int land_start(struct land **ret, const struct land_config *cfg,
	       struct err *err)
{
	struct land *l = calloc(1,
				sizeof(*l) + cfg->num * sizeof(l->streams[0]));
	int r;

	if (!l)
		return err_set(err, ENOMEM, "out of memory");
	l->cfg = *cfg;
	l->ram = cfg->landing.ram;
	has_moved(l);
	l->is_awaited = true;
	pthread_mutex_init(&l->lock, NULL);
	r = hostmem_guard_new(&l->guard, l->ram, "");
	if (!r)
		r = make_ports(l);
	for (unsigned int i = 0; !r && i < cfg->num; i++)
		r = prepare_stream(l, i);
	for (unsigned int i = 0; !r && i < cfg->num; i++)
		r = start_stream(&l->streams[i]);
	if (!r) {
		*ret = l;
		return 0;
	}
	land_free(l);
	return err_errno(err, -r, "receiving memory");
}

bool land_failed(struct land *l, struct err *err)
{
	int error;

	check_silence(l);
	pthread_mutex_lock(&l->lock);
	error = l->error;
	if (error && err)
		*err = l->err;
	pthread_mutex_unlock(&l->lock);
	return error != 0;
}

static void join(struct land *l)
{
	for (unsigned int i = 0; i < l->cfg.num; i++) {
		if (l->streams[i].started)
			pthread_join(l->streams[i].thread, NULL);
		l->streams[i].started = false;
	}
}

int land_finish(struct land *l, struct vm_landed *ret, struct err *err)
{
	join(l);
	atomic_store(&l->is_awaited, false);
	if (land_failed(l, err))
		return l->error;
	memset(ret, 0, sizeof(*ret));
	for (unsigned int i = 0; i < l->cfg.num; i++) {
		const struct stream *s = &l->streams[i];

		ret->page_bytes += s->landed.page_bytes;
		ret->zero_bytes += s->landed.zero_bytes;
		ret->disk_bytes += s->landed.disk_bytes;
		ret->second_stage_bytes += s->landed.second_stage_bytes;
		if (i && s->wire.rounds != ret->rounds)
			return err_set(err, EBADMSG,
				       "streams of %llu and %llu rounds",
				       (unsigned long long)ret->rounds,
				       (unsigned long long)s->wire.rounds);
		ret->rounds = s->wire.rounds;
	}
	return 0;
}

void land_free(struct land *l)
{
	if (!l)
		return;
	atomic_store(&l->stop, true);
	join(l);
	for (unsigned int i = 0; i < l->cfg.num; i++) {
		free(l->streams[i].buffer);
		free(l->streams[i].packed);
		disk_unit_fini(&l->streams[i].disk);
		unpacker_free(l->streams[i].unpacker);
		free(l->streams[i].units);
	}
	for (unsigned int i = 0; i < l->num_ports; i++)
		pthread_mutex_destroy(&l->ports[i].lock);
	free(l->ports);
	hostmem_guard_free(l->guard);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
