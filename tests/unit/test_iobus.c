/* SPDX-License-Identifier: Apache-2.0 */
/* bus/iobus.c: claims, borders of ranges, and moves under running readers. */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bus/iobus.h"

struct rec {
	uint64_t offset;
	uint32_t len;
	uint64_t value;
	unsigned int reads, writes;
};

static void rec_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct rec *rec = dev;

	rec->offset = offset;
	rec->len = len;
	rec->reads++;
	memcpy(data, &rec->value, len);
}

static void rec_write(void *dev, uint64_t offset, const void *data,
		      uint32_t len)
{
	struct rec *rec = dev;

	rec->offset = offset;
	rec->len = len;
	rec->writes++;
	memcpy(&rec->value, data, len);
}

static const struct iobus_ops rec_ops = {
	.name = "rec",
	.read = rec_read,
	.write = rec_write,
};

static struct iobus *make(void)
{
	struct iobus *bus;

	assert_int_equal(iobus_new(&bus), 0);
	return bus;
}

static int add(struct iobus *bus, uint64_t base, uint64_t size, struct rec *rec)
{
	return iobus_add(bus, base, size, &rec_ops, rec);
}

static void test_routes_by_address(void **state)
{
	struct iobus *bus = make();
	struct rec recs[3] = { { .value = 0x11 },
			       { .value = 0x22 },
			       { .value = 0x33 } };
	uint32_t got;

	/* out of order on purpose, two of them adjacent */
	assert_int_equal(add(bus, 0x2000, 0x100, &recs[1]), 0);
	assert_int_equal(add(bus, 0x1000, 0x1000, &recs[0]), 0);
	assert_int_equal(add(bus, 0xfffffffffffff000, 0x1000, &recs[2]), 0);
	assert_true(iobus_read(bus, 0x1ffc, &got, 4));
	assert_int_equal(got, 0x11);
	assert_int_equal(recs[0].offset, 0xffc);
	assert_true(iobus_read(bus, 0x2000, &got, 4));
	assert_int_equal(got, 0x22);
	assert_int_equal(recs[1].offset, 0);
	assert_true(iobus_read(bus, 0xfffffffffffffffc, &got, 4));
	assert_int_equal(got, 0x33);
	got = 0xabcd;
	assert_true(iobus_write(bus, 0x20fe, &got, 2));
	assert_int_equal(recs[1].value, 0xabcd);
	assert_int_equal(recs[1].offset, 0xfe);
	assert_int_equal(recs[1].len, 2);
	iobus_free(bus);
}

static void test_unclaimed_is_all_ones(void **state)
{
	struct iobus *bus = make();
	struct rec rec = { 0 };
	uint64_t got = 0;

	assert_false(iobus_read(bus, 0, &got, 8));
	assert_int_equal(got, UINT64_MAX);
	assert_int_equal(add(bus, 0x1000, 0x10, &rec), 0);
	got = 0;
	assert_false(iobus_read(bus, 0xfff, &got, 1));
	assert_int_equal(got, 0xff);
	assert_false(iobus_read(bus, 0x1010, &got, 1));
	/* begins inside, ends outside; begins before */
	assert_false(iobus_read(bus, 0x100d, &got, 4));
	assert_false(iobus_write(bus, 0x100d, &got, 4));
	assert_false(iobus_write(bus, 0xffe, &got, 4));
	/* a length no register has */
	assert_false(iobus_read(bus, 0x1000, &got, 3));
	assert_false(iobus_write(bus, 0x1000, &got, 0));
	assert_int_equal(rec.reads + rec.writes, 0);
	assert_true(iobus_read(bus, 0x1008, &got, 8));
	assert_int_equal(rec.reads, 1);
	iobus_free(bus);
}

static void test_refuses_overlap(void **state)
{
	struct iobus *bus = make();
	struct rec a, b;

	assert_int_equal(add(bus, 0x1000, 0x1000, &a), 0);
	assert_int_equal(add(bus, 0x1000, 1, &b), -EEXIST);
	assert_int_equal(add(bus, 0x1fff, 1, &b), -EEXIST);
	assert_int_equal(add(bus, 0x0, 0x1001, &b), -EEXIST);
	assert_int_equal(add(bus, 0x0, 0x10000, &b), -EEXIST);
	assert_int_equal(add(bus, 0x0, 0x1000, &b), 0);
	assert_int_equal(add(bus, 0x2000, 0x10, &b), 0);
	assert_int_equal(add(bus, 0x5000, 0, &b), -EINVAL);
	assert_int_equal(add(bus, UINT64_MAX, 2, &b), -EINVAL);
	assert_int_equal(add(bus, UINT64_MAX, 1, &b), 0);
	iobus_free(bus);
}

static void test_remove(void **state)
{
	struct iobus *bus = make();
	struct rec a = { .value = 1 }, b = { .value = 2 };
	uint8_t got;

	assert_int_equal(add(bus, 0x1000, 0x10, &a), 0);
	assert_int_equal(add(bus, 0x2000, 0x10, &b), 0);
	iobus_remove(bus, 0x1000, &b); /* not its owner */
	iobus_remove(bus, 0x1001, &a); /* not its base */
	assert_true(iobus_read(bus, 0x1000, &got, 1));
	iobus_remove(bus, 0x1000, &a);
	assert_false(iobus_read(bus, 0x1000, &got, 1));
	assert_true(iobus_read(bus, 0x2000, &got, 1));
	assert_int_equal(got, 2);
	assert_int_equal(add(bus, 0x1000, 0x10, &b), 0);
	assert_true(iobus_read(bus, 0x1000, &got, 1));
	assert_int_equal(got, 2);
	iobus_free(bus);
}

static void test_full(void **state)
{
	struct iobus *bus = make();
	struct rec rec = { 0 };
	uint64_t i = 0;
	int r = 0;

	while (!r && i < 100000) {
		r = add(bus, i * 16, 8, &rec);
		i += !r;
	}
	assert_int_equal(r, -ENOSPC);
	assert_true(i >= 200);
	/* still all there */
	for (uint64_t k = 0; k < i; k++) {
		assert_true(iobus_read(bus, k * 16 + 7, &r, 1));
		assert_int_equal(rec.offset, 7);
	}
	iobus_free(bus);
}

/*
 * Readers of a fixed range amid many, while another one comes and goes in front
 * of all, so that each change shifts every entry under the readers.
 */
#define FILLERS	    200
#define FILLER_BASE 0x1c00
#define MIN_READS   300000

struct mover {
	struct iobus *bus;
	_Atomic bool stop;
	_Atomic unsigned int wrong;
	_Atomic unsigned long reads;
};

static void fixed_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	uint32_t value = (uint32_t)((uintptr_t)dev + offset);

	memcpy(data, &value, len);
}

static const struct iobus_ops fixed_ops = {
	.name = "fixed",
	.read = fixed_read,
};

static void *reader(void *arg)
{
	struct mover *m = arg;

	while (!atomic_load(&m->stop)) {
		uint32_t got;

		/* always claimed, by the same device */
		if (!iobus_read(m->bus, 0x8004, &got, 4) || got != 0x1004)
			atomic_fetch_add(&m->wrong, 1);
		/* the mover: either nobody or itself with the right offset */
		if (iobus_read(m->bus, 0x408, &got, 4) && got != 0x2008)
			atomic_fetch_add(&m->wrong, 1);
		atomic_fetch_add(&m->reads, 1);
	}
	return NULL;
}

static void test_moves_under_readers(void **state)
{
	struct mover m = { .bus = make() };
	void *moving = (void *)0x2000;
	pthread_t threads[2];
	uint32_t got;

	/* filler 100 is the one at 0x8000 */
	for (uintptr_t i = 0; i < FILLERS; i++)
		assert_int_equal(iobus_add(m.bus, FILLER_BASE + i * 0x100,
					   0x100, &fixed_ops,
					   (void *)(0x1000 + i - 100)),
				 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, reader, &m),
				 0);
	for (int i = 0; i < 1000 || atomic_load(&m.reads) < MIN_READS; i++) {
		uint64_t base = i % 2 ? 0x400 : 0x800;

		assert_int_equal(
			iobus_add(m.bus, base, 0x100, &fixed_ops, moving), 0);
		iobus_remove(m.bus, base, moving);
	}
	atomic_store(&m.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&m.wrong), 0);
	for (uint32_t i = 0; i < FILLERS; i++) {
		assert_true(
			iobus_read(m.bus, FILLER_BASE + i * 0x100ull, &got, 4));
		assert_int_equal(got, 0x1000 + i - 100);
	}
	iobus_free(m.bus);
}

/* ---- devices that are freed under running readers ---- */

#define LIVE 0x11feu

struct mortal {
	_Atomic uint32_t alive;
	uint32_t plain; /* what a sanitizer looks at */
};

static void mortal_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct mortal *mortal = dev;
	uint32_t value = atomic_load(&mortal->alive) + mortal->plain;

	memcpy(data, &value, len);
}

static void mortal_write(void *dev, uint64_t offset, const void *data,
			 uint32_t len)
{
}

static const struct iobus_ops mortal_ops = {
	.name = "mortal",
	.read = mortal_read,
	.write = mortal_write,
};

static void *mortal_reader(void *arg)
{
	struct mover *m = arg;
	uint32_t got;

	while (!atomic_load(&m->stop)) {
		if (iobus_read(m->bus, 0x404, &got, 4) && got != LIVE)
			atomic_fetch_add(&m->wrong, 1);
		atomic_fetch_add(&m->reads, 1);
	}
	return NULL;
}

/* The whole of what unplugging does: remove, quiesce, free. */
static void test_frees_under_readers(void **state)
{
	struct mover m = { .bus = make() };
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL,
						mortal_reader, &m),
				 0);
	for (int i = 0; i < 40 || atomic_load(&m.reads) < 10000; i++) {
		struct mortal *mortal = calloc(1, sizeof(*mortal));

		assert_non_null(mortal);
		mortal->plain = LIVE;
		assert_int_equal(
			iobus_add(m.bus, 0x400, 0x100, &mortal_ops, mortal), 0);
		sched_yield();
		iobus_remove(m.bus, 0x400, mortal);
		iobus_quiesce(m.bus);
		/* a reader that is still in it sees this, and TSan the race */
		mortal->plain = 0xdead;
		free(mortal);
	}
	atomic_store(&m.stop, true);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&m.wrong), 0);
	iobus_free(m.bus);
}

struct gate {
	struct iobus *bus;
	_Atomic bool inside, open, quiesced;
};

static void gate_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct gate *gate = dev;

	atomic_store(&gate->inside, true);
	while (!atomic_load(&gate->open))
		sched_yield();
	memset(data, 0, len);
}

static const struct iobus_ops gate_ops = {
	.name = "gate",
	.read = gate_read,
	.write = mortal_write,
};

static void *gate_reader(void *arg)
{
	struct gate *gate = arg;
	uint32_t got;

	iobus_read(gate->bus, 0x400, &got, 4);
	return NULL;
}

static void *gate_waiter(void *arg)
{
	struct gate *gate = arg;

	iobus_quiesce(gate->bus);
	atomic_store(&gate->quiesced, true);
	return NULL;
}

/* It waits for who is inside, and not for who comes later. */
static void test_quiesce_waits_for_the_old_only(void **state)
{
	struct gate gate = { .bus = make() };
	struct rec other = { .value = 1 };
	pthread_t reader, waiter;
	uint32_t got;

	iobus_quiesce(gate.bus); /* nobody there */
	assert_int_equal(iobus_add(gate.bus, 0x400, 0x100, &gate_ops, &gate),
			 0);
	assert_int_equal(add(gate.bus, 0x800, 0x100, &other), 0);
	assert_int_equal(pthread_create(&reader, NULL, gate_reader, &gate), 0);
	while (!atomic_load(&gate.inside))
		sched_yield();
	iobus_remove(gate.bus, 0x400, &gate);
	assert_int_equal(pthread_create(&waiter, NULL, gate_waiter, &gate), 0);
	/* others come and go; it stays, since the first is still inside */
	for (int i = 0; i < 1000; i++) {
		assert_true(iobus_read(gate.bus, 0x800, &got, 4));
		assert_false(iobus_read(gate.bus, 0x400, &got, 4));
		sched_yield();
		assert_false(atomic_load(&gate.quiesced));
	}
	atomic_store(&gate.open, true);
	pthread_join(waiter, NULL);
	pthread_join(reader, NULL);
	assert_true(atomic_load(&gate.quiesced));
	iobus_free(gate.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_routes_by_address),
		cmocka_unit_test(test_unclaimed_is_all_ones),
		cmocka_unit_test(test_refuses_overlap),
		cmocka_unit_test(test_remove),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_moves_under_readers),
		cmocka_unit_test(test_frees_under_readers),
		cmocka_unit_test(test_quiesce_waits_for_the_old_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
