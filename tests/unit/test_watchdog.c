/* SPDX-License-Identifier: Apache-2.0 */
/* device/watchdog.c: periods, feeding, pausing, and when it bites. */
#include "cmocka_all.h"

#include <string.h>

#include "base/evloop.h"
#include "bus/iobus.h"
#include "device/watchdog.h"
#include "x86/layout.h"

#define RUN    (PORT_WATCHDOG + 0)
#define PERIOD (PORT_WATCHDOG + 4)
#define COUNT  (PORT_WATCHDOG + 8)

#define UNIT (WATCHDOG_UNIT_MS * 1000000ull)

struct fixture {
	struct iobus *pio;
	struct watchdog *w;
	struct evloop *loop;
	uint64_t now_ns;
	unsigned int bites;
};

static uint64_t fake_now(void *ctx)
{
	return ((struct fixture *)ctx)->now_ns;
}

static void on_event(void *ctx, enum machine_event event, unsigned int code)
{
	struct fixture *f = ctx;

	assert_int_equal(event, MACHINE_WATCHDOG);
	f->bites++;
	if (f->loop)
		evloop_stop(f->loop, 0);
}

static int setup(void **state)
{
	static struct fixture f;
	struct watchdog_config cfg = {
		.hooks = { .event = on_event, .ctx = &f },
		.clock = { .now_ns = fake_now, .ctx = &f },
	};

	f = (struct fixture){ .now_ns = 1000 * UNIT };
	assert_int_equal(iobus_new(&f.pio), 0);
	cfg.pio = f.pio;
	assert_int_equal(watchdog_new(&f.w, &cfg), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	watchdog_free(f->w);
	iobus_free(f->pio);
	return 0;
}

static uint32_t in(struct fixture *f, uint64_t port)
{
	uint32_t v;

	assert_true(iobus_read(f->pio, port, &v, 4));
	return v;
}

static void out(struct fixture *f, uint64_t port, uint32_t v)
{
	assert_true(iobus_write(f->pio, port, &v, 4));
}

static void pass(struct fixture *f, uint64_t ns)
{
	f->now_ns += ns;
	watchdog_poll(f->w);
}

static void test_bites_once(void **state)
{
	struct fixture *f = *state;

	pass(f, 1000000 * UNIT); /* not started: never */
	assert_int_equal(f->bites, 0);
	out(f, PERIOD, 10);
	out(f, RUN, 1);
	assert_int_equal(in(f, RUN), 1);
	assert_int_equal(in(f, COUNT), 10);
	pass(f, 10 * UNIT - 1);
	assert_int_equal(f->bites, 0);
	assert_int_equal(in(f, COUNT), 1);
	pass(f, 1);
	assert_int_equal(f->bites, 1);
	assert_int_equal(in(f, RUN), 0);
	pass(f, 100 * UNIT);
	assert_int_equal(f->bites, 1);
	/* feeding a stopped one does not start it */
	out(f, COUNT, 1);
	pass(f, 100 * UNIT);
	assert_int_equal(f->bites, 1);
}

static void test_fed_and_stopped(void **state)
{
	struct fixture *f = *state;

	out(f, PERIOD, 10);
	out(f, RUN, 1);
	for (int i = 0; i < 50; i++) {
		pass(f, 9 * UNIT);
		out(f, COUNT, 1);
	}
	/* a new period counts from the next feeding */
	out(f, PERIOD, 20);
	assert_int_equal(in(f, COUNT), 10);
	out(f, COUNT, 0);
	assert_int_equal(in(f, COUNT), 20);
	out(f, RUN, 0);
	assert_int_equal(in(f, COUNT), 0);
	pass(f, 1000 * UNIT);
	assert_int_equal(f->bites, 0);
}

static void test_paused(void **state)
{
	struct fixture *f = *state;

	out(f, PERIOD, 10);
	out(f, RUN, 1);
	pass(f, 4 * UNIT);
	watchdog_pause(f->w);
	pass(f, 1000 * UNIT);
	assert_int_equal(f->bites, 0);
	watchdog_resume(f->w);
	assert_int_equal(in(f, COUNT), 6);
	pass(f, 6 * UNIT - 1);
	assert_int_equal(f->bites, 0);
	pass(f, 1);
	assert_int_equal(f->bites, 1);
}

static void test_values_of_a_hostile_guest(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[8];

	out(f, PERIOD, 0);
	assert_int_equal(in(f, PERIOD), 1);
	out(f, PERIOD, UINT32_MAX);
	assert_int_equal(in(f, PERIOD), WATCHDOG_MAX_UNITS);
	out(f, RUN, 0xfffffffe);
	assert_int_equal(in(f, RUN), 0);
	memset(bytes, 0xff, sizeof(bytes));
	for (uint64_t port = RUN; port < RUN + WATCHDOG_PORTS; port++) {
		iobus_write(f->pio, port, bytes, 1);
		iobus_write(f->pio, port, bytes, 2);
		iobus_write(f->pio, port, bytes, 8);
		if (port % 4)
			iobus_write(f->pio, port, bytes, 4);
	}
	assert_int_equal(in(f, RUN), 0);
	iobus_read(f->pio, PERIOD, bytes, 2);
	assert_int_equal(bytes[0] | bytes[1], 0);
}

static void test_the_loop_wakes_it(void **state)
{
	struct fixture f = { .now_ns = 0 };
	struct watchdog_config cfg = {
		.hooks = { .event = on_event, .ctx = &f },
	};

	assert_int_equal(iobus_new(&f.pio), 0);
	assert_int_equal(evloop_new(&f.loop), 0);
	cfg.pio = f.pio;
	cfg.loop = f.loop;
	assert_int_equal(watchdog_new(&f.w, &cfg), 0);
	out(&f, PERIOD, 1);
	out(&f, RUN, 1);
	assert_int_equal(evloop_run(f.loop), 0);
	assert_int_equal(f.bites, 1);
	watchdog_free(f.w);
	evloop_free(f.loop);
	iobus_free(f.pio);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_bites_once),
		T(test_fed_and_stopped),
		T(test_paused),
		T(test_values_of_a_hostile_guest),
		cmocka_unit_test(test_the_loop_wakes_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
