/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/memory_in.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/zero.h"
#include "snapshot/records.h"
#include "snapshot/sum.h"

/*
 * Theory of operation. A byte of memory is in the first layer whose runs hold
 * it. Whether it is data or a hole the file system says (SEEK_DATA).
 *
 * Sums are of units. The first read in a unit reads all of it, into the
 * caller's buffer if that is what was asked for or else into a scratch buffer,
 * and compares; a bit then says that the unit is good. Two threads may both do
 * so for one unit, which is a waste and no harm. That costs the first fault in
 * a unit some 0.3 ms from the page cache, and brings the rest of the unit into
 * it.
 */
#define MAP_MIN_BYTES  (64 * KIB) /* shorter runs are read */
#define SKIP_MIN_BYTES (64 * KIB) /* shorter holes are read with the data */
#define MAP_MAX_RUNS   4096	  /* of the 65530 mappings a process has */

/* Scratch buffers are kept for the next read; as many as threads at once. */
struct scratch {
	struct scratch *next;
	char bytes[];
};

/*
 * Where a file has data, asked once: on some file systems (tmpfs) each question
 * where a hole begins costs a walk over all pages up to there.
 */
struct data_map {
	_Atomic bool ready;
	bool failed; /* too many runs, or no memory: the file is asked */
	struct mem_range *runs;
	uint64_t num, room;
};

#define MAX_DATA_RUNS (1u << 20)

struct memory_in {
	struct data_map maps[SNAPSHOT_MAX_CHAIN];
	struct memory_layer layers[SNAPSHOT_MAX_CHAIN];
	unsigned int num_layers;
	const struct mem_range *ranges;
	unsigned int num_ranges;
	const uint64_t *sums;
	_Atomic uint64_t *good; /* a bit per unit */
	struct mem_source source;
	pthread_mutex_t map_lock; /* of making maps */
	pthread_mutex_t lock;	  /* of idle */
	struct scratch *idle;
};

/* ---- where bytes are ---- */

/* The run that holds at or, if none does, the first behind it. NULL: none. */
static const struct mem_range *find_run(const struct mem_range *runs,
					uint64_t num, uint64_t at)
{
	uint64_t low = 0, high = num;

	while (low < high) {
		uint64_t mid = low + (high - low) / 2;

		if (runs[mid].start + runs[mid].len <= at)
			low = mid + 1;
		else
			high = mid;
	}
	return low < num ? &runs[low] : NULL;
}

/* The layer that has at, and how much from there on, up to *len, it has. */
static const struct memory_layer *find_layer(const struct memory_in *in,
					     uint64_t at, uint64_t *len)
{
	for (unsigned int i = 0; i < in->num_layers; i++) {
		const struct memory_layer *layer = &in->layers[i];
		const struct mem_range *run;

		if (!layer->runs)
			return layer;
		run = find_run(layer->runs, layer->num_runs, at);
		if (run && run->start <= at) {
			*len = MIN(*len, run->start + run->len - at);
			return layer;
		}
		if (run)
			*len = MIN(*len, run->start - at);
	}
	BUG_ON(true);
}

static int ask_extent(const struct memory_layer *layer, struct gpa gpa,
		      uint64_t len, enum mem_content *ret_content,
		      uint64_t *ret_len)
{
	off_t next = lseek(layer->fd, (off_t)gpa.v, SEEK_DATA);
	uint64_t end = gpa.v + len, to;

	if (next < 0 && errno != ENXIO)
		return -errno;
	/*
	 * Behind its end there is no data either; that is no hole, but a file
	 * that was cut off meanwhile: reading will say so.
	 */
	if (next < 0 && lseek(layer->fd, 0, SEEK_END) < (off_t)end) {
		*ret_content = MEM_CONTENT_DATA;
		*ret_len = len;
		return 0;
	}
	/* Blocks may be smaller than pages; a page with any data is data. */
	to = next < 0 ? end : align_down((uint64_t)next, PAGE_4K);
	if (to > gpa.v) {
		*ret_content = MEM_CONTENT_ZERO;
		*ret_len = MIN(to, end) - gpa.v;
		return 0;
	}
	next = lseek(layer->fd, (off_t)gpa.v, SEEK_HOLE);
	if (next < 0)
		return -errno;
	/* A hole that begins where data does: blocks below a page. */
	to = MAX(align_up((uint64_t)next, PAGE_4K), gpa.v + PAGE_4K);
	*ret_content = MEM_CONTENT_DATA;
	*ret_len = MIN(to, end) - gpa.v;
	return 0;
}

/* Blocks may be smaller than pages; a page with any data is data. */
static int add_data_run(struct data_map *map, uint64_t start, uint64_t end)
{
	struct mem_range *last = map->num ? &map->runs[map->num - 1] : NULL;

	start = align_down(start, PAGE_4K);
	end = align_up(end, PAGE_4K);
	if (last && start <= last->start + last->len) {
		last->len = MAX(end, last->start + last->len) - last->start;
		return 0;
	}
	if (map->num == map->room) {
		uint64_t room = map->room ? 2 * map->room : 64;
		struct mem_range *runs =
			room > MAX_DATA_RUNS
				? NULL
				: realloc(map->runs, room * sizeof(*runs));

		if (!runs)
			return -ENOMEM;
		map->runs = runs;
		map->room = room;
	}
	BUG_ON(!map->runs); /* there is room */
	map->runs[map->num++] = (struct mem_range){ start, end - start };
	return 0;
}

static int read_data_map(struct data_map *map, int fd)
{
	off_t at = 0, end;
	int r = 0;

	while (!r) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		end = lseek(fd, at, SEEK_HOLE);
		if (end < 0)
			return -errno;
		/* No progress: a file system that makes no sense. */
		r = end > at ? add_data_run(map, (uint64_t)at, (uint64_t)end)
			     : -EIO;
		at = end;
	}
	return r;
}

/* NULL: there is none. */
static const struct data_map *data_map_of(struct memory_in *in,
					  const struct memory_layer *layer)
{
	struct data_map *map = &in->maps[layer - in->layers];
	const struct mem_range *last = &in->ranges[in->num_ranges - 1];
	off_t end = (off_t)(last->start + last->len);

	if (!atomic_load_explicit(&map->ready, memory_order_acquire)) {
		pthread_mutex_lock(&in->map_lock);
		if (!atomic_load(&map->ready)) {
			map->failed = read_data_map(map, layer->fd) ||
				      lseek(layer->fd, 0, SEEK_END) < end;
			atomic_store_explicit(&map->ready, true,
					      memory_order_release);
		}
		pthread_mutex_unlock(&in->map_lock);
	}
	return map->failed ? NULL : map;
}

static int extent(void *ctx, struct gpa gpa, uint64_t len,
		  enum mem_content *ret_content, uint64_t *ret_len)
{
	struct memory_in *in = ctx;
	const struct memory_layer *layer = find_layer(in, gpa.v, &len);
	const struct data_map *map = data_map_of(in, layer);
	const struct mem_range *run;

	if (!map)
		return ask_extent(layer, gpa, len, ret_content, ret_len);
	run = find_run(map->runs, map->num, gpa.v);
	if (!run || run->start > gpa.v) {
		*ret_content = MEM_CONTENT_ZERO;
		*ret_len = run ? MIN(len, run->start - gpa.v) : len;
	} else {
		*ret_content = MEM_CONTENT_DATA;
		*ret_len = MIN(len, run->start + run->len - gpa.v);
	}
	return 0;
}

/* ---- reading ---- */

/*
 * Up to len from at on that is one hole, or data with no hole worth another
 * call.
 */
static uint64_t next_piece(const struct data_map *map, uint64_t at,
			   uint64_t len, bool *ret_hole)
{
	const struct mem_range *run = find_run(map->runs, map->num, at);
	const struct mem_range *end = map->runs + map->num;
	uint64_t to;

	*ret_hole = !run || run->start >= at + MIN(len, SKIP_MIN_BYTES);
	if (*ret_hole)
		return run ? MIN(len, run->start - at) : len;
	for (to = run->start + run->len; ++run < end;
	     to = run->start + run->len)
		if (to >= at + len || run->start - to >= SKIP_MIN_BYTES)
			break;
	return MIN(len, to - at);
}

/*
 * A hole is not read: the kernel would make pages of zeroes for it in its page
 * cache, only for them to be copied from there.
 */
static int read_layer(struct memory_in *in, const struct memory_layer *layer,
		      uint64_t at, char *buf, uint64_t len)
{
	const struct data_map *map = data_map_of(in, layer);
	uint64_t step;
	int r = 0;

	if (!map)
		return io_pread_full(layer->fd, buf, len, at);
	for (uint64_t end = at + len; !r && at < end; at += step, buf += step) {
		bool hole;

		step = next_piece(map, at, end - at, &hole);
		if (!hole)
			r = io_pread_full(layer->fd, buf, step, at);
		else if (!zero_is_all(buf, step)) /* RAM, fresh, is */
			memset(buf, 0, step);
	}
	return r;
}

static int read_raw(struct memory_in *in, uint64_t at, char *buf, uint64_t len,
		    struct err *err)
{
	uint64_t step;

	for (uint64_t end = at + len; at < end; at += step, buf += step) {
		const struct memory_layer *layer;
		int r;

		step = end - at;
		layer = find_layer(in, at, &step);
		r = read_layer(in, layer, at, buf, step);
		if (r)
			return err_errno(err, -r,
					 "snapshot %s: reading " SNAPSHOT_MEMORY
					 " at offset %#llx",
					 layer->path, (unsigned long long)at);
	}
	return 0;
}

static bool is_good(const struct memory_in *in, uint64_t unit)
{
	return atomic_load_explicit(&in->good[unit / 64],
				    memory_order_relaxed) >>
		       (unit % 64) &
	       1;
}

static int check_unit(const struct memory_in *in, uint64_t unit,
		      const struct mem_range *where, const char *bytes,
		      struct err *err)
{
	if (sum_unit(bytes, where->len) != in->sums[unit])
		return err_set(err, EBADMSG,
			       "snapshot %s: " SNAPSHOT_MEMORY
			       " at offset %#llx-%#llx: checksum does not "
			       "match: the file is damaged",
			       in->layers[0].path,
			       (unsigned long long)where->start,
			       (unsigned long long)where->start + where->len);
	atomic_fetch_or_explicit(&in->good[unit / 64], 1ull << (unit % 64),
				 memory_order_relaxed);
	return 0;
}

static struct scratch *take_scratch(struct memory_in *in)
{
	struct scratch *s;

	pthread_mutex_lock(&in->lock);
	s = in->idle;
	if (s)
		in->idle = s->next;
	pthread_mutex_unlock(&in->lock);
	return s ? s : malloc(sizeof(*s) + MEM_UNIT_BYTES);
}

static void give_scratch(struct memory_in *in, struct scratch *s)
{
	pthread_mutex_lock(&in->lock);
	s->next = in->idle;
	in->idle = s;
	pthread_mutex_unlock(&in->lock);
}

/* [at, at + len) lies in unit, which is not known to be good yet. */
static int read_checked(struct memory_in *in, uint64_t unit,
			const struct mem_range *where, uint64_t at, char *buf,
			uint64_t len, struct err *err)
{
	struct scratch *s = NULL;
	char *bytes = buf;
	int r;

	if (len < where->len) {
		s = take_scratch(in);
		if (!s)
			return err_set(err, ENOMEM, "snapshot: out of memory");
		bytes = s->bytes;
	}
	r = read_raw(in, where->start, bytes, where->len, err);
	if (!r)
		r = check_unit(in, unit, where, bytes, err);
	if (!r && s)
		memcpy(buf, s->bytes + (at - where->start), len);
	if (s)
		give_scratch(in, s);
	return r;
}

/* The number of the unit that holds at, and where it is. */
static uint64_t find_unit(const struct memory_in *in, uint64_t at,
			  struct mem_range *ret)
{
	uint64_t before = 0;

	for (unsigned int i = 0; i < in->num_ranges; i++) {
		const struct mem_range *range = &in->ranges[i];

		if (at - range->start < range->len) {
			uint64_t unit = before +
					(at - range->start) / MEM_UNIT_BYTES;

			*ret = mem_unit(in->ranges, in->num_ranges, unit);
			return unit;
		}
		before += div_round_up(range->len, MEM_UNIT_BYTES);
	}
	BUG_ON(true);
}

static int read_memory(void *ctx, struct gpa gpa, void *buf, uint64_t len,
		       struct err *err)
{
	struct memory_in *in = ctx;
	uint64_t at = gpa.v, end = gpa.v + len, step;
	char *to = buf;
	int r = 0;

	for (; !r && at < end; at += step, to += step) {
		struct mem_range where;
		uint64_t unit = find_unit(in, at, &where);

		step = MIN(end, where.start + where.len) - at;
		r = is_good(in, unit)
			    ? read_raw(in, at, to, step, err)
			    : read_checked(in, unit, &where, at, to, step, err);
	}
	return r;
}

static const struct mem_source_ops source_ops = {
	.name = "snapshot",
	.by_unit = true,
	.extent = extent,
	.read = read_memory,
};

/* ---- mapping ---- */

/*
 * A layer's runs over what lies below. Mappings are few, so a short run is read
 * instead: its pages are this VM's own then.
 */
static int map_runs(const struct memory_layer *layer, struct ram *ram,
		    unsigned int *budget, struct err *err)
{
	int r = 0;

	for (uint64_t i = 0; !r && i < layer->num_runs; i++) {
		const struct mem_range *run = &layer->runs[i];

		if (run->len >= MAP_MIN_BYTES && *budget) {
			r = ram_map_file(ram, GPA(run->start), run->len,
					 layer->fd, err);
			(*budget)--;
			continue;
		}
		r = io_pread_full(layer->fd, ram->base + run->start, run->len,
				  run->start);
		if (r)
			err_errno(err, -r,
				  "snapshot %s: reading " SNAPSHOT_MEMORY
				  " at offset %#llx",
				  layer->path, (unsigned long long)run->start);
	}
	return r;
}

int memory_in_map(const struct memory_in *in, struct ram *ram, struct err *err)
{
	const struct memory_layer *whole = &in->layers[in->num_layers - 1];
	unsigned int budget = MAP_MAX_RUNS;
	int r = 0;

	for (unsigned int i = 0; !r && i < in->num_ranges; i++)
		r = ram_map_file(ram, GPA(in->ranges[i].start),
				 in->ranges[i].len, whole->fd, err);
	for (unsigned int i = in->num_layers - 1; !r && i-- > 0;)
		r = map_runs(&in->layers[i], ram, &budget, err);
	if (!r)
		ram->behind = &in->source;
	return r;
}

/* ---- making ---- */

int memory_in_new(struct memory_in **ret, const struct memory_layer *layers,
		  unsigned int num_layers, const struct mem_range *ranges,
		  unsigned int num_ranges, const uint64_t *sums)
{
	struct memory_in *in = calloc(1, sizeof(*in));
	uint64_t units = mem_units(ranges, num_ranges);

	if (!in)
		return -ENOMEM;
	BUG_ON(!num_layers || num_layers > SNAPSHOT_MAX_CHAIN);
	memcpy(in->layers, layers, num_layers * sizeof(*layers));
	in->num_layers = num_layers;
	in->ranges = ranges;
	in->num_ranges = num_ranges;
	in->sums = sums;
	in->source = (struct mem_source){ .ops = &source_ops, .ctx = in };
	in->good = calloc(div_round_up(units, 64), sizeof(*in->good));
	if (!in->good) {
		free(in);
		return -ENOMEM;
	}
	pthread_mutex_init(&in->lock, NULL);
	pthread_mutex_init(&in->map_lock, NULL);
	*ret = in;
	return 0;
}

void memory_in_free(struct memory_in *in)
{
	struct scratch *s;

	if (!in)
		return;
	while ((s = in->idle)) {
		in->idle = s->next;
		free(s);
	}
	pthread_mutex_destroy(&in->lock);
	pthread_mutex_destroy(&in->map_lock);
	for (unsigned int i = 0; i < in->num_layers; i++)
		free(in->maps[i].runs);
	free((void *)in->good);
	free(in);
}

const struct mem_source *memory_in_source(const struct memory_in *in)
{
	return &in->source;
}
