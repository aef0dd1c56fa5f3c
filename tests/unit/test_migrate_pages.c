/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory from one place to another through sockets (migrate/send_pages.c,
 * land.c), while it is written: over a model of KVM's log, with a model of the
 * second stage on the other side.
 */
#include "fake_kvm_log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "migrate/land.h"
#include "migrate/send_pages.h"
#include "ram_present.h"
#include "steady_clock.h"

#define MAX_STREAMS 8
#define MAX_ROUNDS  4
#define PAGES	    (5 * 512 + 70) /* not whole units, not whole words */
#define SIZE	    (PAGES * PAGE_4K)
#define PATIENCE    (20 * NSEC_PER_SEC)

struct pair {
	struct fake_kvm *from;
	struct ram to;
	unsigned int num;
	int out[MAX_STREAMS], in[MAX_STREAMS];
	struct send_pages *send;
	struct land *land;
	struct second_stage_filler filler;
	_Atomic uint64_t filled[PAGES]; /* times that a page was mapped */
	_Atomic int in_port[2];
	int tick_result;
	_Atomic unsigned int ticks;
	/* Rounds in their place, and how many pages were mapped by then. */
	_Atomic unsigned int landed;
	uint64_t mapped[MAX_ROUNDS];
	int landed_result;
};

static int tick(void *ctx, struct err *err)
{
	struct pair *p = ctx;

	atomic_fetch_add(&p->ticks, 1);
	return p->tick_result ? err_set(err, -p->tick_result, "given up") : 0;
}

/* What is mapped is there; nobody else is in the same port. */
static int fill(void *ctx, unsigned int port, struct gpa gpa, uint64_t len)
{
	struct pair *p = ctx;

	assert_true(port < 2);
	assert_int_equal(atomic_fetch_add(&p->in_port[port], 1), 0);
	for (uint64_t at = gpa.v; at < gpa.v + len; at += PAGE_4K)
		atomic_fetch_add(&p->filled[at / PAGE_4K], 1);
	atomic_fetch_sub(&p->in_port[port], 1);
	return 0;
}

static int count_landed(void *ctx, struct err *err)
{
	struct pair *p = ctx;
	unsigned int i = atomic_load(&p->landed);
	uint64_t mapped = 0;

	if (p->landed_result)
		return err_set(err, -p->landed_result, "nobody listens");
	for (uint64_t page = 0; page < PAGES; page++)
		mapped += atomic_load(&p->filled[page]) > 0;
	if (i < MAX_ROUNDS)
		p->mapped[i] = mapped;
	atomic_store(&p->landed, i + 1);
	return 0;
}

/* Each third page was written, and is needed by nobody. */
static bool is_unused(uint64_t page)
{
	return page % 3 == 1;
}

static void list_unused(void *ctx, struct gpa gpa, uint64_t len, uint64_t *ret)
{
	for (uint64_t i = 0; i < len / PAGE_4K; i++) {
		if (is_unused(gpa.v / PAGE_4K + i))
			ret[i / 64] |= 1ull << (i % 64);
	}
}

static const struct mem_hints hints_of_thirds = { list_unused, NULL };
static const struct mem_hints *hints; /* of the next pair */

static struct pair *pair_make(unsigned int num, uint32_t ring, bool fills_host,
			      uint64_t rate, uint64_t patience_ns,
			      enum pack_method pack)
{
	struct pair *p = calloc(1, sizeof(*p));
	const struct ram_config rc = {
		.size_bytes = SIZE,
		.hole_start = GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct send_pages_config sc = {
		.num = num,
		.patience_ns = PATIENCE,
		.rate_bytes_per_s = rate,
		.pack = pack,
		.tick = tick,
		.ctx = p,
	};
	struct land_config lc = {
		.num = num,
		.patience_ns = patience_ns,
		.landed = count_landed,
		.ctx = p,
	};
	struct err err = ERR_INIT;

	p->num = num;
	p->from = fake_new(SIZE, ring);
	assert_int_equal(ram_init(&p->to, &rc, &err), 0);
	for (unsigned int i = 0; i < num; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
		p->out[i] = fds[0];
		p->in[i] = fds[1];
	}
	p->filler = (struct second_stage_filler){
		.name = "model", .num_ports = 2, .fill = fill, .ctx = p
	};
	lc.fds = p->in;
	lc.features = pack == PACK_NONE ? 0 : WIRE_FEATURES;
	lc.landing.ram = &p->to;
	lc.landing.second_stage = &p->filler;
	lc.landing.fills_host = fills_host;
	sc.fds = p->out;
	sc.ram = &p->from->ram;
	sc.dirty = p->from->tracker;
	sc.hints = hints;
	assert_int_equal(dirty_start(p->from->tracker, &p->from->ram, &err), 0);
	assert_int_equal(land_start(&p->land, &lc, &err), 0);
	assert_int_equal(send_pages_start(&p->send, &sc, &err), 0);
	return p;
}

static struct pair *pair_new(unsigned int num, uint32_t ring, bool fills_host,
			     uint64_t rate)
{
	return pair_make(num, ring, fills_host, rate, PATIENCE, PACK_NONE);
}

static void pair_free(struct pair *p)
{
	send_pages_free(p->send);
	land_free(p->land);
	for (unsigned int i = 0; i < p->num; i++) {
		close(p->out[i]);
		close(p->in[i]);
	}
	dirty_stop(p->from->tracker);
	fake_free(p->from);
	ram_fini(&p->to);
	free(p);
}

static void store(struct pair *p, uint64_t page, uint64_t value)
{
	while (!fake_store(p->from, page % FAKE_RINGS, 0, page, value))
		(void)!dirty_ring_full(p->from->tracker, page % FAKE_RINGS);
}

static void round_ok(struct pair *p, bool last)
{
	struct err err = ERR_INIT;

	assert_int_equal(send_pages_round(p->send, last, &err), 0);
}

static void harvest(struct pair *p)
{
	struct err err = ERR_INIT;

	assert_int_equal(dirty_harvest(p->from->tracker, NULL, &err), 0);
}

static void finish(struct pair *p, struct vm_landed *ret)
{
	struct err err = ERR_INIT;

	assert_int_equal(send_pages_end(p->send, &err), 0);
	assert_int_equal(land_finish(p->land, ret, &err), 0);
}

static void check_same(const struct pair *p)
{
	assert_memory_equal(p->from->ram.base, p->to.base, SIZE);
}

/* What is there is mapped, and what is not is not. A look makes pages be there,
 * so it comes first. */
static void check_mapped(const struct pair *p)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		bool there = ram_present(&p->to, page * PAGE_4K, PAGE_4K);

		assert_int_equal(atomic_load(&p->filled[page]) > 0, there);
	}
}

static void test_once(void **state)
{
	struct pair *p = pair_new(3, 0, false, 0);
	struct send_pages_count count;
	struct vm_landed landed;

	store(p, 0, 1);
	store(p, 511, 2);
	store(p, 512, 3);
	store(p, PAGES - 1, 4);
	store(p, 100, 0); /* there, and zero */
	harvest(p);
	round_ok(p, true);
	finish(p, &landed);
	/* Nothing else was sent, nor is anything else there. */
	assert_int_equal(landed.page_bytes, 4 * PAGE_4K);
	assert_int_equal(landed.zero_bytes, 0);
	assert_int_equal(landed.rounds, 1);
	assert_int_equal(landed.second_stage_bytes, 4 * PAGE_4K);
	check_mapped(p);
	assert_false(ram_present(&p->to, 100 * PAGE_4K, PAGE_4K));
	check_same(p);
	send_pages_read(p->send, &count);
	assert_int_equal(count.page_bytes, landed.page_bytes);
	assert_int_equal(count.in_hand_bytes, 0);
	/* 4 of pages, 3 of units, ROUND and END on each of 3. */
	assert_int_equal(count.wire_bytes,
			 landed.page_bytes + 13ull * WIRE_DATA_BYTES);
	pair_free(p);
}

/* What nobody needs stays behind, until it is written. */
static void test_hints(void **state)
{
	const uint64_t again = 3 * 700 + 1;
	struct send_pages_count count;
	struct vm_landed landed;
	struct pair *p;
	uint64_t unused = 0;

	hints = &hints_of_thirds;
	p = pair_new(2, 0, false, 0);
	hints = NULL;
	for (uint64_t page = 0; page < PAGES; page++) {
		store(p, page, page + 1);
		unused += is_unused(page);
	}
	round_ok(p, false);
	send_pages_read(p->send, &count);
	assert_int_equal(count.unused_bytes, unused * PAGE_4K);
	assert_int_equal(count.page_bytes, (PAGES - unused) * PAGE_4K);
	/* Those were all dirty from the start; this one is written again. */
	store(p, again, 77);
	harvest(p);
	round_ok(p, true);
	finish(p, &landed);
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t is = *(uint64_t *)(p->to.base + page * PAGE_4K);

		if (page == again)
			assert_int_equal(is, 77);
		else
			assert_int_equal(is, is_unused(page) ? 0 : page + 1);
	}
	pair_free(p);
}

/* Later a page that became zero is told, and one that came new is mapped. */
static void test_rounds(void **state)
{
	struct pair *p = pair_new(2, 0, false, 0);
	struct vm_landed landed;

	for (uint64_t page = 0; page < 600; page++)
		store(p, page, page + 1);
	harvest(p);
	round_ok(p, false);
	for (uint64_t page = 200; page < 210; page++)
		store(p, page, 0);
	store(p, 300, 77);
	store(p, 1500, 78);
	harvest(p);
	round_ok(p, false);
	harvest(p);
	round_ok(p, true);
	finish(p, &landed);
	check_mapped(p);
	check_same(p);
	assert_int_equal(landed.rounds, 3);
	assert_int_equal(landed.page_bytes, (600 + 2) * PAGE_4K);
	assert_int_equal(landed.zero_bytes, 10 * PAGE_4K);
	/* What was mapped already was not mapped again. */
	assert_int_equal(atomic_load(&p->filled[300]), 1);
	pair_free(p);
}

static void test_populates(void **state)
{
	struct pair *p = pair_new(3, 0, true, 0);
	struct vm_landed landed;

	store(p, 5, 1);
	round_ok(p, false);
	harvest(p);
	round_ok(p, true);
	finish(p, &landed);
	check_same(p);
	for (uint64_t page = 0; page < PAGES; page++)
		assert_true(ram_present(&p->to, page * PAGE_4K, PAGE_4K));
	check_mapped(p);
	assert_int_equal(landed.page_bytes, PAGE_4K);
	pair_free(p);
}

static void wait_landed(struct pair *p, unsigned int rounds)
{
	while (atomic_load(&p->landed) < rounds)
		usleep(1000);
	assert_int_equal(atomic_load(&p->landed), rounds);
}

/* Each round is told of when all of it is mapped, by whichever stream is last.
 */
static void test_landed(void **state)
{
	struct pair *p = pair_new(3, 0, true, 0);
	struct vm_landed landed;

	store(p, 5, 1);
	round_ok(p, false);
	wait_landed(p, 1);
	assert_int_equal(p->mapped[0], PAGES);
	harvest(p);
	store(p, 6, 1);
	harvest(p);
	round_ok(p, false);
	wait_landed(p, 2);
	round_ok(p, true);
	finish(p, &landed);
	assert_int_equal(atomic_load(&p->landed), 3);
	assert_int_equal(landed.rounds, 3);
	check_same(p);
	pair_free(p);
}

/* Who cannot be told is gone, or takes nothing. */
static void test_landed_fails(void **state)
{
	struct pair *p = pair_new(2, 0, false, 0);
	struct err err = ERR_INIT;

	p->landed_result = -EPIPE;
	store(p, 5, 1);
	round_ok(p, false);
	while (!land_failed(p->land, &err))
		usleep(1000);
	assert_string_equal(err.text, "nobody listens");
	pair_free(p);
}

/* A page of a full unit that alternates: as many pieces as there can be. */
static void test_many_runs(void **state)
{
	struct pair *p = pair_new(1, 0, false, 0);
	struct vm_landed landed;

	for (uint64_t page = 0; page < PAGES; page += 2)
		store(p, page, page + 1);
	harvest(p);
	round_ok(p, false);
	/* And now each is another, or zero. */
	for (uint64_t page = 0; page < PAGES; page++)
		store(p, page, page % 2 ? page : 0);
	harvest(p);
	round_ok(p, true);
	finish(p, &landed);
	check_mapped(p);
	check_same(p);
	pair_free(p);
}

/* Nothing makes such a page smaller. */
static void store_noise(struct pair *p, uint64_t page)
{
	uint64_t *at = (uint64_t *)(p->from->ram.base + page * PAGE_4K);
	uint64_t n = page + 1;

	for (size_t i = 0; i < PAGE_4K / 8; i++) {
		n = n * 6364136223846793005ull + 1442695040888963407ull;
		at[i] = n ^ n >> 29;
	}
	store(p, page, n);
}

static void send_packed(enum pack_method pack)
{
	struct pair *p = pair_make(2, 0, false, 0, PATIENCE, pack);
	struct send_pages_count count;
	struct vm_landed landed;

	/* Also a run that is longer than what is packed together. */
	for (uint64_t page = 0; page < 300; page++)
		store(p, page, page + 1);
	for (uint64_t page = 600; page < 620; page++)
		store_noise(p, page);
	harvest(p);
	round_ok(p, false);
	for (uint64_t page = 0; page < PAGES; page += 3)
		store(p, page, page % 2 ? page : 0);
	harvest(p);
	round_ok(p, true);
	send_pages_read(p->send, &count);
	finish(p, &landed);
	check_mapped(p);
	check_same(p);
	assert_int_equal(landed.page_bytes, count.page_bytes);
	/* All but the noise: 20 pages, of which 7 were sent again. */
	assert_int_equal(count.pack_from_bytes,
			 count.page_bytes - 27 * PAGE_4K);
	assert_true(count.pack_to_bytes * 10 < count.pack_from_bytes);
	assert_true(count.wire_bytes < 27 * PAGE_4K + count.pack_to_bytes +
					       2 * PAGES * WIRE_DATA_BYTES);
	pair_free(p);
}

static void test_packed(void **state)
{
	send_packed(PACK_LZ4);
	send_packed(PACK_ZSTD);
}

/* What is not of the method, or not as long, ends it. */
static void test_badly_packed(void **state)
{
	for (unsigned int i = 0; i < 4; i++) {
		struct pair *p = pair_make(1, 0, false, 0, PATIENCE, PACK_LZ4);
		struct {
			uint8_t header[WIRE_DATA_BYTES];
			uint8_t bytes[40];
		} message = { .bytes = { 0 } };
		const struct wire_data_header h = {
			.type = i % 2 ? WIRE_PAGES_ZSTD : WIRE_PAGES_LZ4,
			.gpa = 4 * PAGE_4K,
			.len = 8 * PAGE_4K,
			.packed = sizeof(message.bytes),
		};
		struct vm_landed landed;
		struct err err = ERR_INIT;

		if (i >= 2)
			memset(message.bytes, 0xff, sizeof(message.bytes));
		wire_put_data(message.header, &h);
		assert_int_equal(write(p->out[0], &message, sizeof(message)),
				 sizeof(message));
		assert_int_equal(land_finish(p->land, &landed, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "compressed memory"));
		pair_free(p);
	}
}

/*
 * Memory that is sent while it is written is read as it is, on purpose, and
 * comes again: TSan is to look at the rest.
 */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);

static void be_the_guest(bool on)
{
	if (on)
		AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
	else
		AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}
#else
static void be_the_guest(bool on)
{
}
#endif

struct writer {
	struct pair *p;
	_Atomic bool stop;
	uint64_t seed;
};

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint64_t n = w->seed;

	be_the_guest(true);
	while (!atomic_load(&w->stop)) {
		n = n * 6364136223846793005ull + 1442695040888963407ull;
		if (n >> 60 == 0)
			fake_vmm_store(w->p->from, 0, (n >> 20) % PAGES, n);
		else
			store(w->p, (n >> 20) % PAGES, n >> 61 ? n : 0);
	}
	be_the_guest(false);
	return NULL;
}

static void migrate_under_writes(unsigned int streams, uint32_t ring)
{
	struct pair *p = pair_new(streams, ring, false, 0);
	struct writer writers[2] = { { p, false, 1 }, { p, false, 2 } };
	pthread_t threads[2];
	struct vm_landed landed;
	struct err err = ERR_INIT;

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, writer_main,
						&writers[i]),
				 0);
	for (int i = 0; i < 6; i++) {
		round_ok(p, false);
		harvest(p);
	}
	for (int i = 0; i < 2; i++) {
		atomic_store(&writers[i].stop, true);
		pthread_join(threads[i], NULL);
	}
	assert_int_equal(dirty_final(p->from->tracker, NULL, &err), 0);
	round_ok(p, true);
	finish(p, &landed);
	assert_int_equal(landed.rounds, 7);
	check_mapped(p);
	check_same(p);
	pair_free(p);
}

static void test_under_writes(void **state)
{
	static const unsigned int streams[] = { 1, 2, 3, 8 };

	for (size_t i = 0; i < ARRAY_SIZE(streams); i++) {
		migrate_under_writes(streams[i], 0);
		migrate_under_writes(streams[i], 1024);
	}
}

/* The other side hangs up: an error, and all threads end. */
static void test_hung_up(void **state)
{
	struct pair *p = pair_new(2, 0, false, 0);
	struct err err = ERR_INIT;

	for (uint64_t page = 0; page < PAGES; page++)
		store(p, page, page + 1);
	harvest(p);
	shutdown(p->in[1], SHUT_RDWR);
	assert_int_equal(send_pages_round(p->send, false, &err), -EPIPE);
	assert_non_null(strstr(err.text, "gone"));
	while (!land_failed(p->land, NULL))
		usleep(1000);
	pair_free(p);
}

static void test_given_up(void **state)
{
	struct pair *p = pair_new(2, 0, false, 1);
	struct err err = ERR_INIT;

	for (uint64_t page = 0; page < PAGES; page++)
		store(p, page, page + 1);
	harvest(p);
	p->tick_result = -ECANCELED;
	/* A byte a second: it would not end. */
	assert_int_equal(send_pages_round(p->send, false, &err), -ECANCELED);
	assert_string_equal(err.text, "given up");
	pair_free(p);
}

/* A stream with nothing to say for longer than all of them may be silent. */
static void test_one_is_silent(void **state)
{
	/*
	 * A unit in 3.5 s, three on the first stream, none on the other. A
	 * machine that is busy adds to what the first is silent between them,
	 * but not what it stands still (steady_clock.h).
	 */
	struct pair *p = pair_make(2, 0, false, 4 * MIB / 7, 10 * NSEC_PER_SEC,
				   PACK_NONE);
	struct vm_landed landed;
	uint64_t from_ns = clock_now_ns();

	for (uint64_t page = 0; page < 5ull * 512; page++) {
		if (page / 512 % 2 == 0)
			store(p, page, page + 1);
	}
	harvest(p);
	round_ok(p, false);
	assert_true(clock_now_ns() - from_ns > 10 * NSEC_PER_SEC);
	round_ok(p, true);
	finish(p, &landed);
	check_same(p);
	pair_free(p);
}

/* Nothing comes, and nobody hangs up. */
static void test_all_are_silent(void **state)
{
	struct pair *p = pair_make(2, 0, false, 0, NSEC_PER_SEC / 4, PACK_NONE);
	struct vm_landed landed;
	struct err err = ERR_INIT;

	assert_int_equal(land_finish(p->land, &landed, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "says nothing"));
	pair_free(p);
}

/* No descriptor for the second sender: what is open stays open. */
static void test_no_descriptors(void **state)
{
	struct pair *p = pair_new(1, 0, false, 0);
	int fds[3] = { p->out[0], p->out[0], p->out[0] };
	const struct send_pages_config cfg = {
		.ram = &p->from->ram,
		.dirty = p->from->tracker,
		.fds = fds,
		.num = 3,
		.patience_ns = PATIENCE,
		.tick = tick,
		.ctx = p,
	};
	struct rlimit old, low;
	struct send_pages *send = NULL;
	struct err err = ERR_INIT;
	int next = dup(0), r;

	assert_true(next > 0);
	close(next);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = (struct rlimit){ (rlim_t)next + 1, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	r = send_pages_start(&send, &cfg, &err);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(r, -EMFILE);
	assert_null(send);
	assert_true(fcntl(0, F_GETFD) >= 0);
	pair_free(p);
}

static void test_source_is_gone(void **state)
{
	struct pair *p = pair_new(1, 0, false, 0);
	struct err err = ERR_INIT;

	store(p, 7, 1);
	shutdown(p->out[0], SHUT_WR);
	while (!land_failed(p->land, &err))
		usleep(1000);
	assert_int_equal(err.code, EPIPE);
	assert_non_null(strstr(err.text, "stream 1"));
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_once),
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_rounds),
		cmocka_unit_test(test_populates),
		cmocka_unit_test(test_landed),
		cmocka_unit_test(test_landed_fails),
		cmocka_unit_test(test_many_runs),
		cmocka_unit_test(test_packed),
		cmocka_unit_test(test_badly_packed),
		cmocka_unit_test(test_under_writes),
		cmocka_unit_test(test_hung_up),
		cmocka_unit_test(test_given_up),
		cmocka_unit_test(test_source_is_gone),
		cmocka_unit_test(test_one_is_silent),
		cmocka_unit_test(test_all_are_silent),
		cmocka_unit_test(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
