/* SPDX-License-Identifier: Apache-2.0 */
#include "cmocka_all.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "virtio/rng/rng.h"
#include "virtio_fake.h"

#define RAM_BYTES (8 * MIB)
#define RING_BASE 0x10000
#define RING_SIZE 16
#define WAIT_MS	  20000

struct fixture {
	struct ram ram;
	struct virtio_dev *dev;
	struct fake_transport transport;
	struct vring ring;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f || fake_ram_init(&f->ram, RAM_BYTES))
		return -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	ram_fini(&f->ram);
	free(f);
	return 0;
}

static void start(struct fixture *f, const char *options)
{
	struct err err = ERR_INIT;

	if (fake_create(&f->dev, &virtio_rng_class, options, &f->ram, 1, &err))
		fail_msg("%s", err.text);
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring, ~0ull),
			 0);
}

static void stop(struct fixture *f)
{
	fake_deactivate(f->dev);
	f->dev->cls->destroy(f->dev);
}

/* Ask for len bytes; returns how many came. */
static uint32_t ask(struct fixture *f, uint64_t gpa, uint32_t len)
{
	struct vring_buf buf = { gpa, len, true };
	struct vring_used_elem used = { 0 };
	uint16_t head = vring_add(&f->ring, &buf, 1);

	io_eventfd_signal(f->dev->queues[0].kick_fd);
	assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
	assert_int_equal(used.id, head);
	return used.len;
}

/* 256 bytes with fewer than 64 different values are not random. */
static void expect_random(const unsigned char *p)
{
	bool seen[256] = { false };
	unsigned int different = 0;

	for (unsigned int i = 0; i < 256; i++) {
		if (!seen[p[i]])
			different++;
		seen[p[i]] = true;
	}
	assert_true(different >= 64);
}

static void check_source(struct fixture *f, const char *options)
{
	uint64_t a, b;

	start(f, options);
	a = vring_alloc(&f->ring, 512, 16);
	b = vring_alloc(&f->ring, 256, 16);
	memset(vring_ptr(&f->ring, a), 0, 512);
	assert_int_equal(ask(f, a, 256), 256);
	assert_int_equal(ask(f, b, 256), 256);
	expect_random(vring_ptr(&f->ring, a));
	expect_random(vring_ptr(&f->ring, b));
	assert_memory_not_equal(vring_ptr(&f->ring, a), vring_ptr(&f->ring, b),
				256);
	/* Not a byte more than was asked for. */
	for (unsigned int i = 256; i < 512; i++)
		assert_int_equal(*(char *)vring_ptr(&f->ring, a + i), 0);
	assert_int_equal(fake_requests(f->dev, 0, 2), 2);
	stop(f);
}

static void test_kernel_source(void **state)
{
	check_source(*state, "src=kernel");
	check_source(*state, NULL);
}

static void test_device_source(void **state)
{
	check_source(*state, "src=/dev/urandom");
	check_source(*state, "/dev/urandom");
}

static void refuse(struct fixture *f, const char *options, const char *text)
{
	struct virtio_dev *dev = NULL;
	struct err err = ERR_INIT;

	assert_true(fake_create(&dev, &virtio_rng_class, options, &f->ram, 1,
				&err) < 0);
	assert_null(dev);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

static void test_bad_sources(void **state)
{
	refuse(*state, "src=/nonexistent", "No such file");
	refuse(*state, "src=/tmp", "not a character device");
	refuse(*state, "src=/proc/version", "not a character device");
	refuse(*state, "src=/proc/version", "src=kernel");
	refuse(*state, "source=/dev/urandom", "unknown key");
}

/* /dev/null is at its end at once: the kernel's generator takes over. */
static void test_failing_source(void **state)
{
	check_source(*state, "src=/dev/null");
}

static void test_large_request_is_cut(void **state)
{
	struct fixture *f = *state;
	unsigned char *p;
	uint64_t gpa;
	uint32_t n;

	start(f, NULL);
	gpa = vring_alloc(&f->ring, 2 * MIB, 4096);
	p = vring_ptr(&f->ring, gpa);
	n = ask(f, gpa, 2 * MIB);
	assert_true(n >= 1 && n <= 64 * KIB);
	expect_random(p);
	for (uint64_t i = 64 * KIB; i < 2 * MIB; i++)
		assert_int_equal(p[i], 0);
	stop(f);
}

/* Several buffers in one chain, readable ones before them. */
static void test_chain(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used = { 0 };
	uint64_t a;

	start(f, NULL);
	a = vring_alloc(&f->ring, 4096, 16);
	struct vring_buf bufs[] = { { a, 100, false },
				    { a + 100, 50, true },
				    { a + 150, 206, true } };
	vring_add(&f->ring, bufs, 3);
	/* Nothing to fill: completed with nothing. */
	vring_add(&f->ring, bufs, 1);
	io_eventfd_signal(f->dev->queues[0].kick_fd);
	assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
	assert_int_equal(used.len, 256);
	expect_random(vring_ptr(&f->ring, a + 100));
	for (unsigned int i = 0; i < 100; i++)
		assert_int_equal(*(char *)vring_ptr(&f->ring, a + i), 0);
	assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
	assert_int_equal(used.len, 0);
	stop(f);
}

static void test_bad_chain(void **state)
{
	struct fixture *f = *state;
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	const struct timespec pause = { .tv_nsec = 100000 };

	start(f, NULL);
	vring_set_desc(&f->ring, f->ring.desc, 0, RAM_BYTES - 1, 2, VRING_WRITE,
		       0);
	vring_publish(&f->ring, 0);
	io_eventfd_signal(f->dev->queues[0].kick_fd);
	while (!f->transport.needs_reset && clock_now_ns() < end)
		nanosleep(&pause, NULL);
	assert_int_equal(f->transport.needs_reset, 1);
	fake_deactivate(f->dev);
	/* Reset: works again. */
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring, ~0ull),
			 0);
	assert_int_equal(ask(f, vring_alloc(&f->ring, 16, 16), 16), 16);
	stop(f);
}

/* The interrupt for what was completed before the bad one comes all the same.
 */
static void test_bad_chain_after_good(void **state)
{
	const struct timespec pause = { .tv_nsec = 100000 };
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	struct vring_used_elem used = { 0 };
	struct fixture *f = *state;
	struct vring_buf buf;
	uint16_t head;

	if (fake_create(&f->dev, &virtio_rng_class, NULL, &f->ram, 1, NULL))
		fail();
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	/* Both in the ring when the device starts. */
	buf = (struct vring_buf){ vring_alloc(&f->ring, 16, 16), 16, true };
	head = vring_add(&f->ring, &buf, 1);
	buf = (struct vring_buf){ RAM_BYTES - 1, 2, true };
	vring_add(&f->ring, &buf, 1);
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring,
				       ~VIRTIO_F_EVENT_IDX),
			 0);
	while (!f->transport.needs_reset && clock_now_ns() < end)
		nanosleep(&pause, NULL);
	assert_int_equal(f->transport.needs_reset, 1);
	assert_true(vring_take_used(&f->ring, &used));
	assert_int_equal(used.id, head);
	assert_int_equal(used.len, 16);
	while (!f->transport.queue_interrupts && clock_now_ns() < end)
		nanosleep(&pause, NULL);
	assert_int_equal(f->transport.queue_interrupts, 1);
	stop(f);
}

#define RNG_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		RNG_TEST(test_kernel_source),
		RNG_TEST(test_device_source),
		RNG_TEST(test_bad_sources),
		RNG_TEST(test_failing_source),
		RNG_TEST(test_large_request_is_cut),
		RNG_TEST(test_chain),
		RNG_TEST(test_bad_chain),
		RNG_TEST(test_bad_chain_after_good),
	};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
