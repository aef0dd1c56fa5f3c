/* SPDX-License-Identifier: Apache-2.0 */
/* mem/window.c: who waits, for what, and that nobody waits for ever. */
#include "cmocka_all.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "mem/uffd.h"
#include "mem/window.h"

#define SIZE	(8 * MIB)
#define HANG_MS 60000 /* a hang, not a slow machine */

struct kit {
	struct ram ram;
	int uffd;
	bool all_kinds;
	struct write_window *window;
};

static void start(struct kit *kit, enum ram_page page, bool shared)
{
	const struct ram_config cfg = {
		.size_bytes = SIZE,
		.hole_start = GIB,
		.hole_end = 2 * GIB,
		.page = page,
		.shared = shared,
	};
	struct err err = ERR_INIT;

	kit->uffd = uffd_open_protecting(NULL, &kit->all_kinds, &err);
	if (kit->uffd < 0) {
		print_message("skip: %s\n", err.text);
		skip();
	}
	assert_int_equal(ram_init(&kit->ram, &cfg, &err), 0);
	/* Of the second half nothing is there. */
	memset(kit->ram.base, 1, SIZE / 2);
}

static void arm(struct kit *kit)
{
	struct err err = ERR_INIT;

	assert_int_equal(write_window_open(&kit->window, &kit->ram, kit->uffd,
					   kit->all_kinds, &err),
			 0);
	assert_int_equal(write_window_arm(kit->window, &err), 0);
}

static void end(struct kit *kit)
{
	write_window_close(kit->window);
	ram_fini(&kit->ram);
	close(kit->uffd);
}

/* A thread that writes one byte at `at`. */
struct writer {
	struct kit *kit;
	uint64_t at;
	_Atomic bool done;
	pthread_t thread;
};

/*
 * The reader looks while the writer waits. Relaxed: under TSan any stronger
 * store waits with a lock held.
 */
static _Atomic char *byte(const struct kit *kit, uint64_t at)
{
	return (_Atomic char *)(kit->ram.base + at);
}

static void *write_it(void *arg)
{
	struct writer *w = arg;

	atomic_store_explicit(byte(w->kit, w->at), 2, memory_order_relaxed);
	atomic_store(&w->done, true);
	return NULL;
}

static void start_writer(struct writer *w, struct kit *kit, uint64_t at)
{
	*w = (struct writer){ .kit = kit, .at = at };
	assert_int_equal(pthread_create(&w->thread, NULL, write_it, w), 0);
}

static uint64_t wait_fault(const struct kit *kit)
{
	struct pollfd fd = { write_window_fd(kit->window), POLLIN, 0 };
	struct gpa gpa;

	assert_int_equal(poll(&fd, 1, HANG_MS), 1);
	assert_int_equal(write_window_next(kit->window, &gpa), 1);
	return gpa.v;
}

static void check_writes_wait(enum ram_page page, bool shared)
{
	struct kit kit = { 0 };
	struct writer writer;

	start(&kit, page, shared);
	if (shared && !kit.all_kinds) {
		close(kit.uffd);
		ram_fini(&kit.ram);
		skip();
	}
	arm(&kit);
	start_writer(&writer, &kit, 5 * PAGE_4K + 7);
	assert_int_equal(align_down(wait_fault(&kit), PAGE_4K), 5 * PAGE_4K);
	/* It is read meanwhile, as it was. */
	assert_false(atomic_load(&writer.done));
	assert_int_equal(atomic_load_explicit(byte(&kit, 5 * PAGE_4K + 7),
					      memory_order_relaxed),
			 1);
	assert_int_equal(write_window_release(kit.window, GPA(0), 2 * MIB), 0);
	pthread_join(writer.thread, NULL);
	assert_int_equal(kit.ram.base[5 * PAGE_4K + 7], 2);
	/* Nobody waits for what is released, and twice is fine. */
	kit.ram.base[9 * PAGE_4K] = 3;
	assert_int_equal(write_window_release(kit.window, GPA(0), 2 * MIB), 0);
	end(&kit);
}

static void test_writes_wait(void **state)
{
	check_writes_wait(RAM_PAGE_4K, false);
	check_writes_wait(RAM_PAGE_THP, false);
	check_writes_wait(RAM_PAGE_4K, true);
}

/* What was not there at the instant is known not to have been. */
static void test_what_comes_later(void **state)
{
	struct kit kit = { 0 };

	start(&kit, RAM_PAGE_4K, false);
	arm(&kit);
	assert_true(write_window_held(kit.window, 0, 0));
	assert_true(write_window_held(kit.window, 0, SIZE / 2 / PAGE_4K - 1));
	for (uint64_t at = SIZE / 2; at < SIZE; at += PAGE_4K)
		assert_false(write_window_held(kit.window, 0, at / PAGE_4K));
	kit.ram.base[SIZE / 2] = 4; /* waits for nobody */
	assert_false(write_window_held(kit.window, 0, SIZE / 2 / PAGE_4K));
	end(&kit);
}

/* In shared memory it is protected instead: another mapping may make it. */
static void test_missing_is_protected_where_shared(void **state)
{
	struct kit kit = { 0 };
	struct writer writer;

	start(&kit, RAM_PAGE_4K, true);
	if (!kit.all_kinds) {
		close(kit.uffd);
		ram_fini(&kit.ram);
		skip();
	}
	arm(&kit);
	start_writer(&writer, &kit, SIZE - PAGE_4K);
	assert_int_equal(align_down(wait_fault(&kit), PAGE_4K), SIZE - PAGE_4K);
	assert_int_equal(write_window_release(kit.window, GPA(SIZE - 2 * MIB),
					      2 * MIB),
			 0);
	pthread_join(writer.thread, NULL);
	end(&kit);
}

/* Whose fault was read, and whose was not: both go on when it is closed. */
static void test_closing_lets_all_go(void **state)
{
	struct kit kit = { 0 };
	struct writer writers[4];

	for (unsigned int round = 0; round < 20; round++) {
		start(&kit, round % 2 ? RAM_PAGE_THP : RAM_PAGE_4K, false);
		arm(&kit);
		for (unsigned int i = 0; i < 4; i++)
			start_writer(&writers[i], &kit, i * 16 * PAGE_4K);
		(void)wait_fault(&kit);
		if (round % 3)
			(void)wait_fault(&kit);
		write_window_close(take_ptr(kit.window));
		for (unsigned int i = 0; i < 4; i++)
			pthread_join(writers[i].thread, NULL);
		end(&kit);
	}
}

/* Serves as long as the test wants, before the instant. */
struct server {
	struct kit *kit;
	_Atomic bool stop;
	_Atomic unsigned int let;
	pthread_t thread;
};

static void *serve(void *arg)
{
	struct server *s = arg;
	struct pollfd fd = { write_window_fd(s->kit->window), POLLIN, 0 };
	struct gpa gpa;

	while (!atomic_load(&s->stop)) {
		(void)poll(&fd, 1, 10);
		if (write_window_next(s->kit->window, &gpa) > 0 &&
		    write_window_let_ahead(s->kit->window, gpa) == 1)
			atomic_fetch_add(&s->let, 1);
	}
	return NULL;
}

static void open_ahead(struct kit *kit, struct server *server)
{
	struct err err = ERR_INIT;

	assert_int_equal(write_window_open(&kit->window, &kit->ram, kit->uffd,
					   kit->all_kinds, &err),
			 0);
	*server = (struct server){ .kit = kit };
	assert_int_equal(pthread_create(&server->thread, NULL, serve, server),
			 0);
	assert_int_equal(write_window_protect_ahead(kit->window, &err), 0);
}

static void arm_ahead(struct kit *kit, struct server *server)
{
	struct err err = ERR_INIT;

	atomic_store(&server->stop, true);
	pthread_join(server->thread, NULL);
	assert_int_equal(write_window_arm(kit->window, &err), 0);
}

/*
 * Units 0 and 1 are there, 2 and 3 are not. One of each is written ahead: those
 * two are looked at again, and the other missing one, but not the other that
 * was there. After the instant all that is there waits, whenever it came.
 */
static void check_ahead(enum ram_page page)
{
	struct kit kit = { 0 };
	struct server server;
	struct writer writers[3];
	const uint64_t at[] = { 0, 2 * MIB, SIZE / 2 };
	struct gpa gpa;

	start(&kit, page, false);
	open_ahead(&kit, &server);
	kit.ram.base[2 * MIB + 5] = 7; /* waits, and is let go */
	kit.ram.base[SIZE / 2 + 5] = 7;
	arm_ahead(&kit, &server);
	assert_int_equal(atomic_load(&server.let), 1);
	assert_int_equal(write_window_armed_units(kit.window), 3);
	assert_true(write_window_held(kit.window, 0, SIZE / 2 / PAGE_4K));
	for (unsigned int i = 0; i < 3; i++) {
		start_writer(&writers[i], &kit, at[i] + 9);
		gpa = GPA(wait_fault(&kit));
		assert_int_equal(align_down(gpa.v, 2 * MIB), at[i]);
		/* The instant has come: it has to be copied. */
		assert_int_equal(write_window_let_ahead(kit.window, gpa), 0);
		assert_false(atomic_load(&writers[i].done));
		assert_int_equal(write_window_release(kit.window, GPA(at[i]),
						      2 * MIB),
				 0);
		pthread_join(writers[i].thread, NULL);
	}
	end(&kit);
}

static void test_ahead(void **state)
{
	check_ahead(RAM_PAGE_4K);
	check_ahead(RAM_PAGE_THP);
}

/* Nothing of what is written up to the instant is lost, or newer. */
static void *write_on(void *arg)
{
	struct writer *w = arg;
	volatile unsigned char *ram = (unsigned char *)w->kit->ram.base;

	for (uint64_t i = 0; !atomic_load(&w->done); i++)
		ram[(i * 37 % (SIZE / PAGE_4K)) * PAGE_4K + w->at]++;
	return NULL;
}

static void test_written_all_the_while(void **state)
{
	struct kit kit = { 0 };
	struct server server;
	struct writer writers[2];

	for (unsigned int round = 0; round < 20; round++) {
		start(&kit, round % 2 ? RAM_PAGE_THP : RAM_PAGE_4K, false);
		for (unsigned int i = 0; i < 2; i++) {
			writers[i] = (struct writer){ .kit = &kit, .at = i };
			assert_int_equal(pthread_create(&writers[i].thread,
							NULL, write_on,
							&writers[i]),
					 0);
		}
		open_ahead(&kit, &server);
		for (unsigned int i = 0; i < 2; i++) {
			atomic_store(&writers[i].done, true);
			pthread_join(writers[i].thread, NULL);
		}
		arm_ahead(&kit, &server);
		for (uint64_t i = 0; i < SIZE / PAGE_4K; i++) {
			bool held = write_window_held(kit.window, 0, i);

			assert_true(held || !kit.ram.base[i * PAGE_4K]);
		}
		/* Each page there is protected: somebody waits at the last. */
		start_writer(&writers[0], &kit, SIZE - PAGE_4K);
		if (write_window_held(kit.window, 0, SIZE / PAGE_4K - 1))
			(void)wait_fault(&kit);
		write_window_close(take_ptr(kit.window));
		pthread_join(writers[0].thread, NULL);
		end(&kit);
	}
}

static int next_is(const struct kit *kit)
{
	struct gpa gpa;

	return write_window_next(kit->window, &gpa);
}

/* One after the other over the same descriptor. */
static void test_again(void **state)
{
	struct kit kit = { 0 };
	struct err err = ERR_INIT;

	start(&kit, RAM_PAGE_4K, false);
	for (unsigned int i = 0; i < 3; i++) {
		arm(&kit);
		assert_int_equal(next_is(&kit), 0);
		write_window_close(take_ptr(kit.window));
		memset(kit.ram.base, (int)i, SIZE / 2);
	}
	/* One at a time, and not over somebody else's userfaultfd. */
	arm(&kit);
	{
		struct write_window *second = NULL;
		bool all;
		_cleanup_close_ int other = uffd_open_protecting(NULL, &all,
								 &err);

		assert_true(other >= 0);
		assert_int_equal(write_window_open(&second, &kit.ram, other,
						   all, &err),
				 -EBUSY);
		assert_null(second);
	}
	end(&kit);
}

static void test_refused(void **state)
{
	struct kit kit = { 0 };
	struct err err = ERR_INIT;

	start(&kit, RAM_PAGE_4K, true);
	assert_int_equal(write_window_open(&kit.window, &kit.ram, kit.uffd,
					   false, &err),
			 -ENOTSUP);
	assert_non_null(strstr(err.text, "shared"));
	kit.ram.page = RAM_PAGE_1G;
	assert_int_equal(write_window_open(&kit.window, &kit.ram, kit.uffd,
					   true, &err),
			 -ENOTSUP);
	kit.ram.page = RAM_PAGE_4K;
	assert_null(kit.window);
	end(&kit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_writes_wait),
		cmocka_unit_test(test_what_comes_later),
		cmocka_unit_test(test_missing_is_protected_where_shared),
		cmocka_unit_test(test_closing_lets_all_go),
		cmocka_unit_test(test_ahead),
		cmocka_unit_test(test_written_all_the_while),
		cmocka_unit_test(test_again),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
