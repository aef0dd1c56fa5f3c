/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that follows its VM: maps of pages (migrate/page_map.c), what may be
 * said (wire.c), and from one memory to another (push.c, follow.c) through
 * sockets that break, while it is touched there.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "mem/uffd.h"
#include "migrate/follow.h"
#include "migrate/push.h"

#define PAGES	    (9 * 512 + 70) /* not whole units, not whole words */
#define SIZE	    (PAGES * PAGE_4K)
#define MAX_STREAMS 3
#define PATIENCE    (20 * NSEC_PER_SEC)

static void make_ram(struct ram *ram, enum ram_page page, bool shared)
{
	const struct ram_config cfg = {
		.size_bytes = SIZE,
		.hole_start = GIB,
		.hole_end = 4 * GIB,
		.page = page,
		.shared = shared,
	};
	struct err err = ERR_INIT;

	assert_int_equal(ram_init(ram, &cfg, &err), 0);
}

/* ---- maps ---- */

static void test_map(void **state)
{
	struct ram ram;
	struct page_map m, other;
	bool set;

	make_ram(&ram, RAM_PAGE_4K, false);
	assert_int_equal(page_map_init(&m, &ram), 0);
	assert_int_equal(page_map_run(&m, 0, SIZE, &set), SIZE);
	assert_false(set);
	assert_int_equal(page_map_set(&m, 60 * PAGE_4K, 200 * PAGE_4K), 200);
	assert_int_equal(page_map_set(&m, 50 * PAGE_4K, 20 * PAGE_4K), 10);
	assert_int_equal(page_map_count(&m), 210);
	assert_int_equal(page_map_run(&m, 0, SIZE, &set), 50 * PAGE_4K);
	assert_false(set);
	assert_int_equal(page_map_run(&m, 50 * PAGE_4K, SIZE - 50 * PAGE_4K,
				      &set),
			 210 * PAGE_4K);
	assert_true(set);
	assert_int_equal(page_map_run(&m, 55 * PAGE_4K, 3 * PAGE_4K, &set),
			 3 * PAGE_4K);
	assert_true(page_map_has(&m, 50 * PAGE_4K, 210 * PAGE_4K));
	assert_false(page_map_has(&m, 49 * PAGE_4K, 2 * PAGE_4K));
	assert_false(page_map_has(&m, SIZE, PAGE_4K));
	assert_false(page_map_has(&m, UINT64_MAX - 4095, PAGE_4K));
	assert_int_equal(page_map_init(&other, &ram), 0);
	assert_true(page_map_has_more(&m, &other, 0, SIZE));
	assert_true(page_map_has_more(&m, &other, 259 * PAGE_4K, PAGE_4K));
	assert_false(page_map_has_more(&m, &other, 0, 50 * PAGE_4K));
	assert_false(page_map_has_more(&m, &other, 260 * PAGE_4K,
				       SIZE - 260 * PAGE_4K));
	page_map_set(&other, 0, 259 * PAGE_4K);
	assert_true(page_map_has_more(&m, &other, 0, SIZE));
	page_map_set(&other, 0, SIZE);
	assert_false(page_map_has_more(&m, &other, 0, SIZE));
	page_map_fini(&other);
	assert_int_equal(page_map_clear(&m, 0, SIZE), 210);
	assert_int_equal(page_map_set(&m, 0, SIZE), PAGES);
	assert_true(page_map_has(&m, 0, SIZE));
	page_map_fini(&m);
	page_map_fini(&m);
	ram_fini(&ram);
}

static void test_map_on_the_wire(void **state)
{
	struct ram ram;
	struct page_map m, n;
	uint8_t *bytes;
	size_t num;

	make_ram(&ram, RAM_PAGE_4K, false);
	assert_int_equal(page_map_init(&m, &ram), 0);
	assert_int_equal(page_map_init(&n, &ram), 0);
	page_map_set(&m, SIZE - 3 * PAGE_4K, 3 * PAGE_4K);
	num = wire_map_bytes(&m);
	assert_int_equal(num, (PAGES + 63) / 64 * 8);
	bytes = calloc(1, num + 8);
	wire_put_map(bytes, &m);
	assert_int_equal(wire_parse_map(bytes, num, &n, NULL), 0);
	assert_true(page_map_has(&n, SIZE - 3 * PAGE_4K, 3 * PAGE_4K));
	assert_int_equal(page_map_count(&n), 3);
	/* Not of this memory; pages that there are none of. */
	assert_int_equal(wire_parse_map(bytes, num - 8, &n, NULL), -EBADMSG);
	assert_int_equal(wire_parse_map(bytes, num + 8, &n, NULL), -EBADMSG);
	bytes[num - 1] = 0x80;
	assert_int_equal(wire_parse_map(bytes, num, &n, NULL), -EBADMSG);
	free(bytes);
	page_map_fini(&m);
	page_map_fini(&n);
	ram_fini(&ram);
}

struct words {
	struct ram ram;
	struct page_map pending, asked;
	struct wire_stream s;
};

static struct words *words_new(unsigned int index)
{
	struct words *w = calloc(1, sizeof(*w));

	make_ram(&w->ram, RAM_PAGE_4K, false);
	assert_int_equal(page_map_init(&w->pending, &w->ram), 0);
	assert_int_equal(page_map_init(&w->asked, &w->ram), 0);
	page_map_set(&w->pending, 0, 8 * PAGE_4K);
	page_map_set(&w->pending, 512 * PAGE_4K, PAGE_4K);
	w->s = (struct wire_stream){
		.index = index,
		.num = 2,
		.num_regions = 1,
		.regions = { { 0, SIZE } },
	};
	return w;
}

static void words_free(struct words *w)
{
	page_map_fini(&w->pending);
	page_map_fini(&w->asked);
	ram_fini(&w->ram);
	free(w);
}

static int say(struct words *w, enum wire_data type, uint64_t gpa, uint64_t len,
	       bool request)
{
	const struct wire_data_header h = { type, gpa, len, 0, 0 };
	struct wire_data_header got = { .gpa = 1 };
	struct err err = ERR_INIT;
	uint8_t bytes[WIRE_DATA_BYTES];
	int r;

	wire_put_data(bytes, &h);
	r = request ? wire_parse_request(bytes, &w->pending, &w->asked, &got,
					 &err)
		    : wire_parse_follow(bytes, &w->s, &w->pending, &got, &err);
	if (r)
		assert_true(r == -EBADMSG && err.text[0]);
	else
		assert_true(got.gpa == gpa && got.len == len);
	return r;
}

static void test_what_may_follow(void **state)
{
	struct words *w = words_new(1);

	assert_int_equal(say(w, WIRE_PAGES, 0, 8 * PAGE_4K, false), 0);
	assert_int_equal(say(w, WIRE_ZERO, PAGE_4K, PAGE_4K, false), 0);
	/* Twice is fine: as it was asked for, and pushed. */
	assert_int_equal(say(w, WIRE_PAGES, 0, PAGE_4K, false), 0);
	/* Not pending; partly; another stream's; not whole; no memory. */
	assert_true(say(w, WIRE_PAGES, 8 * PAGE_4K, PAGE_4K, false));
	assert_true(say(w, WIRE_PAGES, 0, 9 * PAGE_4K, false));
	assert_true(say(w, WIRE_PAGES, 512 * PAGE_4K, PAGE_4K, false));
	assert_true(say(w, WIRE_PAGES, 0, 4095, false));
	assert_true(say(w, WIRE_PAGES, 0, 0, false));
	assert_true(say(w, WIRE_PAGES, UINT64_MAX - 4095, PAGE_4K, false));
	/* Messages of before, and the other way. */
	assert_true(say(w, WIRE_UNIT, 0, PAGE_4K, false));
	assert_true(say(w, WIRE_ROUND, 1, 0, false));
	assert_true(say(w, WIRE_END, 0, 0, false));
	assert_true(say(w, WIRE_REQUEST, 0, PAGE_4K, false));
	assert_true(say(w, WIRE_DONE, 0, 1, false));
	/* And nothing after the end. */
	assert_int_equal(say(w, WIRE_DONE, 0, 0, false), 0);
	assert_true(say(w, WIRE_PAGES, 0, PAGE_4K, false));
	words_free(w);
	/* The urgent connection has all units, and no end. */
	w = words_new(WIRE_URGENT);
	assert_int_equal(say(w, WIRE_PAGES, 0, PAGE_4K, false), 0);
	assert_int_equal(say(w, WIRE_ZERO, 512 * PAGE_4K, PAGE_4K, false), 0);
	assert_true(say(w, WIRE_DONE, 0, 0, false));
	words_free(w);
}

static int say_packed(struct words *w, enum wire_data type, uint64_t gpa,
		      uint64_t len, uint32_t packed)
{
	const struct wire_data_header h = { type, gpa, len, packed, 0 };
	struct wire_data_header got;
	uint8_t bytes[WIRE_DATA_BYTES];

	wire_put_data(bytes, &h);
	return wire_parse_follow(bytes, &w->s, &w->pending, &got, NULL);
}

/* As it was announced, and on a data stream. */
static void test_what_may_follow_compressed(void **state)
{
	struct words *w = words_new(1);
	const enum wire_data lz4 = WIRE_PAGES_LZ4, zstd = WIRE_PAGES_ZSTD;

	assert_int_equal(say_packed(w, lz4, 0, PAGE_4K, 9), -EBADMSG);
	w->s.features = WIRE_FEATURE_LZ4;
	assert_int_equal(say_packed(w, lz4, 0, PAGE_4K, 9), 0);
	assert_int_equal(say_packed(w, lz4, 0, 8 * PAGE_4K, 9), 0);
	assert_int_equal(say_packed(w, zstd, 0, PAGE_4K, 9), -EBADMSG);
	assert_int_equal(say_packed(w, lz4, 0, PAGE_4K, 0), -EBADMSG);
	assert_int_equal(say_packed(w, lz4, 0, PAGE_4K, PAGE_4K), -EBADMSG);
	assert_int_equal(say_packed(w, lz4, 0, 9 * PAGE_4K, 9), -EBADMSG);
	assert_int_equal(say_packed(w, lz4, 512 * PAGE_4K, PAGE_4K, 9),
			 -EBADMSG);
	assert_int_equal(say_packed(w, WIRE_PAGES, 0, PAGE_4K, 9), -EBADMSG);
	assert_int_equal(say_packed(w, WIRE_ZERO, 0, PAGE_4K, 9), -EBADMSG);
	assert_int_equal(say_packed(w, WIRE_DONE, 0, 0, 9), -EBADMSG);
	words_free(w);
}

static void test_again(void **state)
{
	uint8_t bytes[WIRE_AGAIN_BYTES];
	uint64_t features = 1;

	wire_put_again(bytes, WIRE_FEATURE_ZSTD);
	assert_int_equal(wire_parse_again(bytes, &features, NULL), 0);
	assert_true(features == WIRE_FEATURE_ZSTD);
	wire_put_again(bytes, WIRE_FEATURE_POSTCOPY);
	assert_int_equal(wire_parse_again(bytes, &features, NULL), -ENOTSUP);
	assert_true(features == WIRE_FEATURE_ZSTD);
}

static void test_what_may_be_asked_for(void **state)
{
	struct words *w = words_new(1);

	assert_int_equal(say(w, WIRE_REQUEST, 0, PAGE_4K, true), 0);
	assert_int_equal(say(w, WIRE_REQUEST, 512 * PAGE_4K, PAGE_4K, true), 0);
	/* Once. */
	assert_true(say(w, WIRE_REQUEST, 0, PAGE_4K, true));
	assert_true(say(w, WIRE_REQUEST, PAGE_4K, 2 * PAGE_4K, true));
	assert_true(say(w, WIRE_REQUEST, PAGE_4K + 1, PAGE_4K, true));
	assert_true(say(w, WIRE_REQUEST, 9 * PAGE_4K, PAGE_4K, true));
	assert_true(say(w, WIRE_REQUEST, SIZE, PAGE_4K, true));
	assert_true(say(w, WIRE_REQUEST, UINT64_MAX - 4095, PAGE_4K, true));
	assert_true(say(w, WIRE_PAGES, PAGE_4K, PAGE_4K, true));
	words_free(w);
}

/* ---- from one to the other ---- */

static bool may_page(void)
{
	struct err err = ERR_INIT;
	int fd = uffd_open(NULL, true, false, &err);

	if (fd < 0)
		print_message("skipped: %s\n", err.text);
	else
		close(fd);
	return fd >= 0;
}

struct pair {
	struct ram from, to;
	struct page_map pending; /* the source's */
	struct follow *follow;
	struct pager *pager;
	struct push *push;
	enum pack_method pack;
	unsigned int num;
	int out[MAX_STREAMS + 1], in[MAX_STREAMS + 1]; /* the last is urgent */
};

static uint64_t word(uint64_t page)
{
	/* Zeroes between, and at the end what was never touched. */
	return page % 5 == 3 || page >= PAGES - 40
		       ? 0
		       : (page + 1) * 0x9e3779b97f4a7c15ull;
}

static uint64_t *at(const struct ram *ram, uint64_t page)
{
	return (uint64_t *)(ram->base + page * PAGE_4K);
}

static void open_sockets(struct pair *p)
{
	for (unsigned int i = 0; i <= p->num; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
		p->out[i] = fds[0];
		p->in[i] = fds[1];
	}
}

static void close_sockets(struct pair *p)
{
	for (unsigned int i = 0; i <= p->num; i++) {
		close_fd(&p->out[i]);
		close_fd(&p->in[i]);
	}
}

static void connect_pair(struct pair *p, uint64_t rate)
{
	static const uint64_t features[PACK_NUM_METHODS] = {
		[PACK_LZ4] = WIRE_FEATURE_LZ4,
		[PACK_ZSTD] = WIRE_FEATURE_ZSTD,
	};
	struct tls *none[MAX_STREAMS] = { NULL };
	struct push_config cfg = {
		.ram = &p->from,
		.pending = &p->pending,
		.fds = p->out,
		.tls = none,
		.num = p->num,
		.patience_ns = PATIENCE,
		.pack = p->pack,
		.rate_bytes_per_s = rate,
	};
	struct follow_connections c = {
		.fds = p->in,
		.tls = none,
		.num = p->num,
		.features = features[p->pack],
	};
	struct err err = ERR_INIT;

	open_sockets(p);
	cfg.urgent_fd = p->out[p->num];
	c.urgent_fd = p->in[p->num];
	assert_int_equal(push_start(&p->push, &cfg, &err), 0);
	assert_int_equal(follow_connect(p->follow, &c, &err), 0);
}

static void write_from(struct pair *p, uint64_t first)
{
	for (uint64_t i = 0; i < PAGES - 40; i++) {
		/* Of a page of zeroes as well, but for the last ones. */
		*at(&p->from, i) = word(i);
		if (i >= first)
			page_map_set(&p->pending, i * PAGE_4K, PAGE_4K);
	}
}

/*
 * Pages from first on follow. Those before are there; of those after some are,
 * from a round before, and are old.
 */
static struct pair *pair_new(unsigned int num, enum ram_page page, bool shared,
			     uint64_t first)
{
	struct pair *p;
	struct pager_config cfg = { .sweep = false };
	struct err err = ERR_INIT;
	uint8_t *map;
	size_t bytes;

	if (!may_page())
		skip();
	p = calloc(1, sizeof(*p));
	cfg.ram = &p->to;
	p->num = num;
	make_ram(&p->from, page, shared);
	make_ram(&p->to, page, shared);
	assert_int_equal(page_map_init(&p->pending, &p->from), 0);
	write_from(p, first);
	for (uint64_t i = 0; first && i < PAGES - 40; i++) {
		if (i < first || i % 2)
			*at(&p->to, i) = i < first ? word(i) : ~word(i);
	}
	bytes = wire_map_bytes(&p->pending);
	map = calloc(1, bytes);
	wire_put_map(map, &p->pending);
	assert_int_equal(follow_new(&p->follow, &p->to, map, bytes, &err), 0);
	free(map);
	cfg.source = follow_source(p->follow);
	assert_int_equal(pager_new(&p->pager, &cfg, &err), 0);
	assert_int_equal(follow_begin(p->follow, p->pager, &err), 0);
	return p;
}

static void disconnect(struct pair *p)
{
	follow_disconnect(p->follow);
	push_free(take_ptr(p->push));
	close_sockets(p);
}

static void pair_free(struct pair *p)
{
	if (p->push)
		disconnect(p);
	pager_free(p->pager);
	follow_unref(p->follow);
	page_map_fini(&p->pending);
	ram_fini(&p->from);
	ram_fini(&p->to);
	free(p);
}

static void wait_complete(struct pair *p)
{
	struct err err = ERR_INIT;

	assert_int_equal(follow_wait(p->follow, PATIENCE, &err),
			 FOLLOW_COMPLETE);
	assert_int_equal(pager_wait_complete(p->pager, PATIENCE), 0);
}

static void is_all_there(const struct pair *p)
{
	for (uint64_t i = 0; i < PAGES; i++)
		assert_int_equal(*at(&p->to, i), word(i));
}

static void all_of_it_packed(unsigned int num, enum ram_page page, bool shared,
			     uint64_t first, enum pack_method pack)
{
	struct pair *p = pair_new(num, page, shared, first);
	struct push_count count;

	p->pack = pack;
	connect_pair(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	/* Before anything is pushed: that is asked for, once. */
	assert_int_equal(*at(&p->to, 4000), word(4000));
	assert_int_equal(*at(&p->to, 4003), word(4003));
	assert_int_equal(*at(&p->to, 4000), word(4000));
	push_read(p->push, &count);
	assert_int_equal(count.urgent_pages, 2);
	/* What is written there stays so. */
	*at(&p->to, 4004) = 77;
	push_go(p->push);
	wait_complete(p);
	assert_int_equal(*at(&p->to, 4004), 77);
	*at(&p->to, 4004) = word(4004);
	is_all_there(p);
	assert_false(push_failed(p->push, NULL));
	push_read(p->push, &count);
	/* But for what was asked for: that goes as it is. */
	if (pack == PACK_NONE)
		assert_int_equal(count.pack_from_bytes, 0);
	else
		assert_in_range(count.pack_from_bytes, count.page_bytes / 2,
				count.page_bytes - 2 * PAGE_4K);
	assert_true(count.pack_to_bytes <= count.pack_from_bytes / 4);
	pair_free(p);
}

static void all_of_it(unsigned int num, enum ram_page page, bool shared,
		      uint64_t first)
{
	all_of_it_packed(num, page, shared, first, PACK_NONE);
}

static void test_all_follows_compressed(void **state)
{
	all_of_it_packed(1, RAM_PAGE_4K, false, 0, PACK_LZ4);
	all_of_it_packed(3, RAM_PAGE_4K, false, 1333, PACK_ZSTD);
	all_of_it_packed(2, RAM_PAGE_THP, true, 0, PACK_ZSTD);
}

static void test_all_follows(void **state)
{
	all_of_it(1, RAM_PAGE_4K, false, 0);
	all_of_it(3, RAM_PAGE_4K, false, 0);
	all_of_it(2, RAM_PAGE_THP, false, 0);
	all_of_it(2, RAM_PAGE_4K, true, 0);
}

static void test_some_follows(void **state)
{
	all_of_it(2, RAM_PAGE_4K, false, 1333);
	all_of_it(1, RAM_PAGE_THP, false, 1333);
	all_of_it(2, RAM_PAGE_4K, true, 1333);
}

struct toucher {
	struct pair *p;
	uint64_t step;
	_Atomic uint64_t *may; /* so many pages, for now */
};

static void *touch(void *arg)
{
	const struct toucher *t = arg;

	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t page = i * t->step % PAGES;

		while (i >= atomic_load(t->may))
			usleep(1000);
		assert_int_equal(*at(&t->p->to, page), word(page));
	}
	return NULL;
}

/* Again and again; who waits goes on once it is connected again. */
static void test_connections_break(void **state)
{
	struct pair *p = pair_new(2, RAM_PAGE_4K, false, 0);
	_Atomic uint64_t may = 0;
	struct toucher touchers[2] = { { p, 1, &may }, { p, 1009, &may } };
	pthread_t threads[2];
	struct err err = ERR_INIT;
	json_t *info;

	connect_pair(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	for (unsigned int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, touch,
						&touchers[i]),
				 0);
	for (unsigned int i = 0; i < 5; i++) {
		/*
		 * They break at any point of any connection, but not when all
		 * has come, as it might where the touchers are quicker.
		 */
		atomic_store(&may, (i + 1) * (PAGES / 6 / 2));
		shutdown(p->out[i % 3], SHUT_RDWR);
		assert_int_equal(follow_wait(p->follow, PATIENCE, &err),
				 FOLLOW_BROKEN);
		disconnect(p);
		page_map_fini(&p->pending);
		assert_int_equal(page_map_init(&p->pending, &p->from), 0);
		for (uint64_t k = 0; k < PAGES; k++) {
			if (page_map_test(follow_pending(p->follow),
					  k * PAGE_4K))
				page_map_set(&p->pending, k * PAGE_4K, PAGE_4K);
		}
		connect_pair(p, 0);
	}
	atomic_store(&may, PAGES);
	push_go(p->push);
	wait_complete(p);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	is_all_there(p);
	info = follow_info(p->follow);
	assert_int_equal(json_integer_value(json_object_get(info, "breaks")),
			 5);
	assert_string_equal(
		json_string_value(json_object_get(info, "postcopy")),
		"complete");
	json_decref(info);
	pair_free(p);
}

static bool is_said(struct pair *p, const char *state, unsigned int breaks)
{
	json_t *info = follow_info(p->follow);
	const char *postcopy = json_string_value(
		json_object_get(info, "postcopy"));
	bool ok = !strcmp(postcopy, state) &&
		  json_integer_value(json_object_get(info, "breaks")) ==
			  (json_int_t)breaks;

	json_decref(info);
	return ok;
}

/* It counts, though all that bring memory are sound. Paused: none comes. */
static void test_control_breaks(void **state)
{
	struct pair *p = pair_new(2, RAM_PAGE_4K, false, 0);
	struct err err = ERR_INIT, found = ERR_INIT;

	connect_pair(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	assert_true(is_said(p, "active", 0));
	err_set(&err, EPIPE, "the source is gone");
	follow_break(p->follow, &err);
	assert_int_equal(follow_wait(p->follow, PATIENCE, &found),
			 FOLLOW_BROKEN);
	assert_string_equal(found.text, err.text);
	/* A stream may be just putting what came. */
	assert_true(is_said(p, "active", 0));
	disconnect(p);
	assert_true(is_said(p, "paused", 1));
	connect_pair(p, 0);
	assert_true(is_said(p, "active", 1));
	push_go(p->push);
	wait_complete(p);
	is_all_there(p);
	assert_true(is_said(p, "complete", 1));
	pair_free(p);
}

/* Nobody is left waiting for a VM that will not be. */
static void test_breaks_before_it_is_ours(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);
	struct err err = ERR_INIT;

	connect_pair(p, 0);
	shutdown(p->out[0], SHUT_RDWR);
	assert_int_equal(follow_wait(p->follow, PATIENCE, &err), FOLLOW_BROKEN);
	assert_int_equal(*at(&p->to, 9), 0);
	assert_false(follow_commit(p->follow, &err));
	assert_true(err.text[0]);
	pair_free(p);
}

/* The VM is at its end: the streams are let go. */
static void test_vm_ends(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);

	connect_pair(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	pager_free(take_ptr(p->pager));
	assert_int_equal(follow_wait(p->follow, PATIENCE, NULL), FOLLOW_ENDED);
	pair_free(p);
}

/* A page that nobody told of, and a request that may not be. */
static void test_hostile(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 1333);
	const struct wire_data_header page = { WIRE_PAGES, 0, PAGE_4K, 0, 0 };
	const struct wire_data_header request = { WIRE_REQUEST, 0, PAGE_4K, 0,
						  0 };
	uint8_t bytes[WIRE_DATA_BYTES];
	struct err err = ERR_INIT;

	connect_pair(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	wire_put_data(bytes, &page);
	assert_int_equal(write(p->out[0], bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(follow_wait(p->follow, PATIENCE, &err), FOLLOW_BROKEN);
	assert_non_null(strstr(err.text, "not pending"));
	wire_put_data(bytes, &request);
	assert_int_equal(write(p->in[1], bytes, sizeof(bytes)), sizeof(bytes));
	while (!push_failed(p->push, &err))
		usleep(1000);
	assert_non_null(strstr(err.text, "a request"));
	pair_free(p);
}

/*
 * A source that is there, and says or takes nothing: the other ends of sockets
 * that nobody reads.
 */
static void connect_to_nobody(struct pair *p, uint64_t patience_ns)
{
	struct tls *none[MAX_STREAMS] = { NULL };
	struct follow_connections c = {
		.fds = p->in,
		.tls = none,
		.num = p->num,
		.patience_ns = patience_ns,
	};
	struct err err = ERR_INIT;

	open_sockets(p);
	c.urgent_fd = p->in[p->num];
	assert_int_equal(follow_connect(p->follow, &c, &err), 0);
}

static void *touch_one(void *arg)
{
	(void)*(volatile char *)arg;
	return NULL;
}

/* Each a page of its own, upon which they wait. */
static void touch_many(struct pair *p, pthread_t *threads, unsigned int num)
{
	for (unsigned int i = 0; i < num; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, touch_one,
						at(&p->to, 7ull * i)),
				 0);
}

static uint64_t requests(struct pair *p)
{
	json_t *info = follow_info(p->follow);
	json_int_t n = json_integer_value(json_object_get(info, "requests"));

	json_decref(info);
	return (uint64_t)n;
}

/*
 * One that takes no requests holds up who asks, and nobody else: it can be
 * told how it is, and the VM can end.
 */
static void test_requests_are_not_taken(void **state)
{
	enum { NUM = 40 };
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);
	const char full[4096] = { 0 };
	pthread_t threads[NUM];

	connect_to_nobody(p, 0);
	assert_true(follow_commit(p->follow, NULL));
	/* There is no room for one more. */
	while (send(p->in[1], full, sizeof(full), MSG_DONTWAIT) > 0 ||
	       send(p->in[1], full, 1, MSG_DONTWAIT) > 0)
		;
	touch_many(p, threads, NUM);
	while (!requests(p))
		usleep(1000);
	usleep(100000); /* it waits for the socket by now */
	assert_int_equal(follow_look(p->follow, NULL), FOLLOW_GOES_ON);
	json_decref(follow_info(p->follow));
	pager_free(take_ptr(p->pager));
	assert_int_equal(follow_look(p->follow, NULL), FOLLOW_ENDED);
	for (unsigned int i = 0; i < NUM; i++)
		pthread_join(threads[i], NULL);
	follow_disconnect(p->follow);
	close_sockets(p);
	pair_free(p);
}

/* Who waits then may be the one that nobody could end. */
static void test_nobody_answers_before_it_is_ours(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);
	struct err err = ERR_INIT;

	connect_to_nobody(p, NSEC_PER_SEC / 10);
	assert_int_equal(follow_wait(p->follow, NSEC_PER_SEC / 2, &err),
			 FOLLOW_GOES_ON); /* nobody has asked */
	assert_int_equal(*at(&p->to, 9), 0);
	assert_int_equal(follow_look(p->follow, &err), FOLLOW_BROKEN);
	assert_non_null(strstr(err.text, "does not answer"));
	assert_false(follow_commit(p->follow, NULL));
	follow_disconnect(p->follow);
	close_sockets(p);
	pair_free(p);
}

/* Nor may a request that could not be sent. */
static void test_cannot_ask_before_it_is_ours(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);

	connect_to_nobody(p, PATIENCE);
	/* It reads no more, though it does not hang up. */
	shutdown(p->out[1], SHUT_RD);
	assert_int_equal(*at(&p->to, 9), 0);
	assert_false(follow_commit(p->follow, NULL));
	follow_disconnect(p->follow);
	close_sockets(p);
	pair_free(p);
}

/* Once it is, it waits for as long as it takes. */
static void test_nobody_answers_when_it_is_ours(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);
	pthread_t thread;

	connect_to_nobody(p, NSEC_PER_SEC / 10);
	assert_true(follow_commit(p->follow, NULL));
	touch_many(p, &thread, 1);
	while (!requests(p))
		usleep(1000);
	assert_int_equal(follow_wait(p->follow, NSEC_PER_SEC / 2, NULL),
			 FOLLOW_GOES_ON);
	assert_int_equal(requests(p), 1);
	follow_disconnect(p->follow);
	close_sockets(p);
	/* It is asked for again. */
	connect_pair(p, 0);
	push_go(p->push);
	wait_complete(p);
	pthread_join(thread, NULL);
	is_all_there(p);
	pair_free(p);
}

struct flood {
	int fd;
	atomic_bool stop;
};

static void *flood(void *arg)
{
	struct flood *f = arg;
	const struct wire_data_header page = { WIRE_ZERO, 0, PAGE_4K, 0, 0 };
	uint8_t bytes[64][WIRE_DATA_BYTES];

	for (unsigned int i = 0; i < 64; i++)
		wire_put_data(bytes[i], &page);
	while (!atomic_load(&f->stop) &&
	       send(f->fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0)
		;
	return NULL;
}

/* The same page for ever: it is let go nevertheless. */
static void test_never_stops_talking(void **state)
{
	struct pair *p = pair_new(1, RAM_PAGE_4K, false, 0);
	struct flood f = { .stop = false };
	pthread_t thread;

	connect_to_nobody(p, PATIENCE);
	assert_true(follow_commit(p->follow, NULL));
	f.fd = p->out[0];
	assert_int_equal(pthread_create(&thread, NULL, flood, &f), 0);
	usleep(100000);
	pager_free(take_ptr(p->pager));
	follow_disconnect(p->follow);
	atomic_store(&f.stop, true);
	shutdown(p->in[0], SHUT_RDWR);
	pthread_join(thread, NULL);
	close_sockets(p);
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_map_on_the_wire),
		cmocka_unit_test(test_what_may_follow),
		cmocka_unit_test(test_what_may_follow_compressed),
		cmocka_unit_test(test_again),
		cmocka_unit_test(test_what_may_be_asked_for),
		cmocka_unit_test(test_all_follows),
		cmocka_unit_test(test_some_follows),
		cmocka_unit_test(test_all_follows_compressed),
		cmocka_unit_test(test_connections_break),
		cmocka_unit_test(test_control_breaks),
		cmocka_unit_test(test_breaks_before_it_is_ours),
		cmocka_unit_test(test_vm_ends),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_requests_are_not_taken),
		cmocka_unit_test(test_nobody_answers_before_it_is_ours),
		cmocka_unit_test(test_cannot_ask_before_it_is_ours),
		cmocka_unit_test(test_nobody_answers_when_it_is_ours),
		cmocka_unit_test(test_never_stops_talking),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
