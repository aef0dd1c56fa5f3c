/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio/queue.c: chains in and out, every rule a driver can break, the event
 * index to the letter, and the marks that a snapshot relies on.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/queue.h"
#include "vring.h"

#define SIZE	 16
#define RING	 0x10000
#define RAM_SIZE (16 * MIB)

static struct ram ram;
static struct virtqueue vq;
static struct vring ring;
static struct vq_chain chain;

static int make_ram(void **state)
{
	struct ram_config cfg = {
		.size_bytes = RAM_SIZE,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
	};

	return ram_init(&ram, &cfg, NULL);
}

static int drop_ram(void **state)
{
	ram_fini(&ram);
	return 0;
}

static void start_sized(uint16_t size, bool event_idx, bool indirect)
{
	struct vq_config cfg;

	vring_init(&ring, &ram, size, RING);
	vring_config(&ring, &cfg);
	cfg.event_idx = event_idx;
	cfg.indirect = indirect;
	vq_init(&vq, 0, VQ_MAX_SIZE, &ram);
	assert_int_equal(vq_start(&vq, &cfg), 0);
}

static void start(bool event_idx, bool indirect)
{
	start_sized(SIZE, event_idx, indirect);
}

static uint64_t data(uint64_t len)
{
	return vring_alloc(&ring, len, 16);
}

static void expect_used(uint32_t id, uint32_t len)
{
	struct vring_used_elem elem;

	assert_true(vring_take_used(&ring, &elem));
	assert_int_equal(elem.id, id);
	assert_int_equal(elem.len, len);
}

static void test_start_checks(void **state)
{
	struct vq_config good, cfg;

	vring_init(&ring, &ram, SIZE, RING);
	vring_config(&ring, &good);
	vq_init(&vq, 3, 64, &ram);
#define REFUSED(change, error)                                \
	do {                                                  \
		cfg = good;                                   \
		cfg.change;                                   \
		assert_int_equal(vq_start(&vq, &cfg), error); \
		assert_false(vq.started);                     \
	} while (0)
	REFUSED(size = 0, -EINVAL);
	REFUSED(size = 15, -EINVAL);
	REFUSED(size = 128, -EINVAL);
	REFUSED(size = 0x8000, -EINVAL);
	REFUSED(desc += 8, -EINVAL);
	REFUSED(avail += 1, -EINVAL);
	REFUSED(used += 2, -EINVAL);
	REFUSED(desc = RAM_SIZE - 16 * SIZE + 16, -EFAULT);
	REFUSED(desc = UINT64_MAX - 15, -EFAULT);
	/* the last byte counted: the event field behind the ring */
	REFUSED(avail = RAM_SIZE - (4 + 2 * SIZE), -EFAULT);
	REFUSED(used = RAM_SIZE - (4 + 8 * SIZE), -EFAULT);
#undef REFUSED
	good.avail = RAM_SIZE - (6 + 2 * SIZE);
	assert_int_equal(vq_start(&vq, &good), 0);
	assert_int_equal(vq.index, 3);
	vq_stop(&vq);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	assert_false(vq_should_notify(&vq));
	assert_false(vq_enable_kick(&vq));
	vq_disable_kick(&vq);
	vq_push_head(&vq, 0, 0);
}

static void test_pop_and_push(void **state)
{
	struct vring_buf bufs[4];
	uint16_t head;
	char buf[64];

	start(false, false);
	for (int i = 0; i < 4; i++)
		bufs[i] = (struct vring_buf){ data(16), 8, i >= 2 };
	memcpy(vring_ptr(&ring, bufs[0].gpa), "01234567", 8);
	memcpy(vring_ptr(&ring, bufs[1].gpa), "89abcdef", 8);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	ring.next_desc = SIZE - 2; /* over the end of the table */
	head = vring_add(&ring, bufs, 4);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_int_equal(chain.head, head);
	assert_int_equal(chain.num_out, 2);
	assert_int_equal(chain.num_in, 2);
	assert_int_equal(chain.out_bytes, 16);
	assert_int_equal(chain.in_bytes, 16);
	assert_ptr_equal(chain.iov[1].iov_base, vring_ptr(&ring, bufs[1].gpa));
	assert_int_equal(chain.in_gpa[1].v, bufs[3].gpa);

	/* flat copies, across and past the borders */
	memset(buf, 0, sizeof(buf));
	assert_int_equal(vq_chain_read(&chain, 0, buf, 64), 16);
	assert_string_equal(buf, "0123456789abcdef");
	assert_int_equal(vq_chain_read(&chain, 6, buf, 4), 4);
	assert_memory_equal(buf, "6789", 4);
	assert_int_equal(vq_chain_read(&chain, 15, buf, 4), 1);
	assert_int_equal(vq_chain_read(&chain, 16, buf, 4), 0);
	assert_int_equal(vq_chain_read(&chain, UINT64_MAX, buf, 4), 0);
	assert_int_equal(vq_chain_write(&chain, 5, "ABCDEF", 6), 6);
	assert_memory_equal((char *)vring_ptr(&ring, bufs[2].gpa) + 5, "ABC",
			    3);
	assert_memory_equal(vring_ptr(&ring, bufs[3].gpa), "DEF", 3);
	assert_int_equal(vq_chain_write(&chain, 14, "wxyz", 4), 2);

	vq_push(&vq, &chain, 11);
	expect_used(head, 11);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	/* more than there is room for is never reported */
	bufs[0] = bufs[2];
	head = vring_add(&ring, bufs, 1);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_push(&vq, &chain, 4000);
	expect_used(head, 8);
}

/* A paused machine's ring looks empty, and is as it was afterwards. */
static void test_hold(void **state)
{
	struct vring_buf buf;
	struct vq_config cfg;
	uint16_t head;

	for (int event_idx = 0; event_idx < 2; event_idx++) {
		start(event_idx, false);
		buf = (struct vring_buf){ data(8), 8, true };
		head = vring_add(&ring, &buf, 1);
		vq_hold(&vq, true);
		assert_false(vq_has_work(&vq));
		assert_int_equal(vq_pop(&vq, &chain), 0);
		vq_disable_kick(&vq);
		/* a device may go to sleep */
		assert_false(vq_enable_kick(&vq));
		vq_hold(&vq, false);
		assert_true(vq_has_work(&vq));
		assert_true(vq_enable_kick(&vq));
		assert_int_equal(vq_pop(&vq, &chain), 1);
		/* what was popped before is pushed */
		vq_hold(&vq, true);
		vq_push(&vq, &chain, 8);
		expect_used(head, 8);
	}
	/* a queue that is set up during a pause is held as well */
	vring_init(&ring, &ram, SIZE, RING);
	vring_config(&ring, &cfg);
	assert_int_equal(vq_start(&vq, &cfg), 0);
	vring_add(&ring, &buf, 1);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	vq_hold(&vq, false);
	assert_int_equal(vq_pop(&vq, &chain), 1);
}

static void test_indirect(void **state)
{
	struct vring_buf bufs[40];
	uint64_t table, outer = 0;
	uint16_t head;

	start(false, true);
	table = data(16 * 40);
	for (int i = 0; i < 40; i++)
		bufs[i] = (struct vring_buf){ data(16), 4, i >= 30 };
	/* more entries than the queue has: the table decides */
	head = vring_add_indirect(&ring, table, bufs, 40);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_int_equal(chain.head, head);
	assert_int_equal(chain.num_out, 30);
	assert_int_equal(chain.num_in, 10);
	vq_push(&vq, &chain, 0);
	expect_used(head, 0);

	/* normal ones first, then the indirect one; its WRITE flag is ignored
	 */
	outer = data(16);
	vring_set_desc(&ring, ring.desc, 0, outer, 16, VRING_NEXT, 5);
	vring_set_desc(&ring, ring.desc, 5, table, 16 * 40,
		       VRING_INDIRECT | VRING_WRITE, 0);
	vring_publish(&ring, 0);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_int_equal(chain.num_out, 31);
	assert_int_equal(chain.num_in, 10);
	vq_push(&vq, &chain, 0);
	expect_used(0, 0);
}

/* One broken chain: the head comes back with nothing, then silence. */
static void expect_broken(uint16_t head, int error)
{
	assert_int_equal(vq_pop(&vq, &chain), error);
	expect_used(head, 0);
	assert_true(vq.broken);
	assert_int_equal(vq_pop(&vq, &chain), -EIO);
	assert_false(vq_enable_kick(&vq));
}

static void one_desc(uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	vring_set_desc(&ring, ring.desc, 0, addr, len, flags, next);
	vring_publish(&ring, 0);
}

static void test_broken_chains(void **state)
{
	/* outside of RAM, over its end, wrapping, empty */
	start(false, true);
	one_desc(RAM_SIZE, 1, 0, 0);
	expect_broken(0, -EFAULT);
	start(false, true);
	one_desc(RAM_SIZE - 1, 2, VRING_WRITE, 0);
	expect_broken(0, -EFAULT);
	start(false, true);
	one_desc(UINT64_MAX - 3, 8, 0, 0);
	expect_broken(0, -EFAULT);
	start(false, true);
	one_desc(0x1000, 0, 0, 0);
	expect_broken(0, -EINVAL);

	/* next outside of the table */
	start(false, true);
	one_desc(0x1000, 4, VRING_NEXT, SIZE);
	expect_broken(0, -EINVAL);

	/* readable after writable */
	start(false, true);
	vring_set_desc(&ring, ring.desc, 1, 0x1000, 4, 0, 0);
	one_desc(0x1000, 4, VRING_WRITE | VRING_NEXT, 1);
	expect_broken(0, -EINVAL);

	/* loops: on itself, and of the whole table */
	start(false, true);
	one_desc(0x1000, 4, VRING_NEXT, 0);
	expect_broken(0, -ELOOP);
	start(false, true);
	for (uint16_t i = 0; i < SIZE; i++)
		vring_set_desc(&ring, ring.desc, i, 0x1000, 4, VRING_NEXT,
			       (uint16_t)((i + 1) % SIZE));
	vring_publish(&ring, 7);
	expect_broken(7, -ELOOP);
}

static void test_total_length(void **state)
{
	struct ram_config cfg = {
		.size_bytes = 2 * GIB,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
	};
	struct vq_config ring_cfg;
	struct ram big;

	assert_int_equal(ram_init(&big, &cfg, NULL), 0); /* address space */
	vring_init(&ring, &big, SIZE, RING);
	vring_config(&ring, &ring_cfg);
	vq_init(&vq, 0, SIZE, &big);
	assert_int_equal(vq_start(&vq, &ring_cfg), 0);
	vring_set_desc(&ring, ring.desc, 1, 0, 0x7fffffff, VRING_WRITE, 0);
	one_desc(0, 0x80000000, VRING_NEXT, 1);
	assert_int_equal(vq_pop(&vq, &chain), 1); /* 2^32 - 1: just fits */
	vq_push(&vq, &chain, 0);
	expect_used(0, 0);
	vring_set_desc(&ring, ring.desc, 1, 0, 0x80000000, VRING_WRITE, 0);
	vring_publish(&ring, 0);
	expect_broken(0, -E2BIG);
	ram_fini(&big);
}

static void test_broken_indirect(void **state)
{
	uint64_t table;

	start(false, false); /* not negotiated */
	one_desc(0x1000, 16, VRING_INDIRECT, 0);
	expect_broken(0, -EINVAL);

	start(false, true); /* with NEXT */
	one_desc(0x1000, 16, VRING_INDIRECT | VRING_NEXT, 1);
	expect_broken(0, -EINVAL);
	start(false, true); /* empty, ragged, outside */
	one_desc(0x1000, 0, VRING_INDIRECT, 0);
	expect_broken(0, -EINVAL);
	start(false, true);
	one_desc(0x1000, 24, VRING_INDIRECT, 0);
	expect_broken(0, -EINVAL);
	start(false, true);
	one_desc(RAM_SIZE - 16, 32, VRING_INDIRECT, 0);
	expect_broken(0, -EFAULT);

	start(false, true); /* nested */
	table = data(64);
	vring_set_desc(&ring, table, 0, table, 16, VRING_INDIRECT, 0);
	one_desc(table, 16, VRING_INDIRECT, 0);
	expect_broken(0, -EINVAL);

	start(false, true); /* next past the table's own end */
	table = data(64);
	vring_set_desc(&ring, table, 0, 0x1000, 4, VRING_NEXT, 2);
	vring_set_desc(&ring, table, 2, 0x1000, 4, 0, 0);
	one_desc(table, 32, VRING_INDIRECT, 0);
	expect_broken(0, -EINVAL);

	start(false, true); /* a loop inside */
	table = data(64);
	vring_set_desc(&ring, table, 0, 0x1000, 4, VRING_NEXT, 1);
	vring_set_desc(&ring, table, 1, 0x1000, 4, VRING_NEXT, 0);
	one_desc(table, 32, VRING_INDIRECT, 0);
	expect_broken(0, -ELOOP);
}

static void test_too_many_segments(void **state)
{
	struct vring_buf bufs[VQ_MAX_IOV + 1];
	uint64_t table;

	for (unsigned int i = 0; i <= VQ_MAX_IOV; i++)
		bufs[i] = (struct vring_buf){ 0x1000 + i, 1, true };
	start(false, true);
	table = data(16 * (VQ_MAX_IOV + 1));
	vring_add_indirect(&ring, table, bufs, VQ_MAX_IOV);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_int_equal(chain.num_in, VQ_MAX_IOV);
	vq_push(&vq, &chain, VQ_MAX_IOV);
	expect_used(0, VQ_MAX_IOV);
	vring_add_indirect(&ring, table, bufs, VQ_MAX_IOV + 1);
	expect_broken(1, -E2BIG);
}

static void test_broken_ring(void **state)
{
	struct vring_used_elem elem;

	/* more entries than the ring has */
	start(false, false);
	ring.avail_idx = SIZE;
	vring_publish(&ring, 0); /* index is now SIZE + 1 */
	assert_int_equal(vq_pop(&vq, &chain), -EINVAL);
	assert_false(vring_take_used(&ring, &elem));
	assert_int_equal(vq_pop(&vq, &chain), -EIO);
	/* backwards */
	start(false, false);
	ring.avail_idx = UINT16_MAX - 1;
	vring_publish(&ring, 0);
	assert_int_equal(vq_pop(&vq, &chain), -EINVAL);
	/* a head that does not exist is not pushed */
	start(true, false);
	vring_publish(&ring, SIZE);
	assert_int_equal(vq_pop(&vq, &chain), -EINVAL);
	assert_false(vring_take_used(&ring, &elem));
	assert_true(vq.broken);
	/* nonsense seen while enabling kicks shows in the next pop */
	start(true, false);
	ring.avail_idx = 100;
	vring_publish(&ring, 0);
	assert_true(vq_enable_kick(&vq));
	assert_int_equal(vq_pop(&vq, &chain), -EINVAL);
}

/* Chains popped before the queue broke can still be returned. */
static void test_push_after_broken(void **state)
{
	struct vring_buf buf;
	static struct vq_chain first;

	start(false, false);
	buf = (struct vring_buf){ data(16), 16, true };
	vring_add(&ring, &buf, 1);
	vring_publish(&ring, SIZE + 1);
	assert_int_equal(vq_pop(&vq, &first), 1);
	assert_int_equal(vq_pop(&vq, &chain), -EINVAL);
	vq_push(&vq, &first, 16);
	expect_used(0, 16);
	assert_true(vq_should_notify(&vq));
}

/* Filled elements are not seen before they are shown, and then all at once. */
static void test_fill_and_show(void **state)
{
	struct vring_used_elem elem;
	uint16_t heads[3];

	start(true, false);
	for (unsigned int i = 0; i < 3; i++) {
		struct vring_buf buf = { data(16), 16, true };

		heads[i] = vring_add(&ring, &buf, 1);
		assert_int_equal(vq_pop(&vq, &chain), 1);
	}
	vring_set_used_event(&ring, 1);
	vq_push_fill(&vq, heads[0], 7);
	vq_push_fill(&vq, heads[1], 8);
	assert_false(vring_take_used(&ring, &elem));
	vq_push_show(&vq);
	expect_used(heads[0], 7);
	expect_used(heads[1], 8);
	assert_false(vring_take_used(&ring, &elem));
	assert_true(vq_should_notify(&vq));
	/* One pushed the usual way shows what was filled before it. */
	vq_push_fill(&vq, heads[2], 9);
	vq_push_head(&vq, heads[0], 1);
	expect_used(heads[2], 9);
	expect_used(heads[0], 1);
}

/* What was put back is popped again, in the same order, and may be others. */
static void test_unpop(void **state)
{
	struct vring_buf buf = { data(16), 16, true };
	uint16_t heads[4];

	for (unsigned int event_idx = 0; event_idx < 2; event_idx++) {
		start(event_idx, false);
		for (unsigned int i = 0; i < 4; i++)
			heads[i] = vring_add(&ring, &buf, 1);
		for (unsigned int i = 0; i < 4; i++)
			assert_int_equal(vq_pop(&vq, &chain), 1);
		assert_int_equal(vq_pop(&vq, &chain), 0);
		vq_push_head(&vq, heads[0], 1);
		vq_unpop(&vq, 3);
		assert_true(vq_has_work(&vq));
		assert_true(vq_enable_kick(&vq));
		for (unsigned int i = 1; i < 4; i++) {
			assert_int_equal(vq_pop(&vq, &chain), 1);
			assert_int_equal(chain.head, heads[i]);
		}
		assert_int_equal(vq_pop(&vq, &chain), 0);
		vq_unpop(&vq, 1);
		/* The driver broke the entry meanwhile: it is checked anew. */
		vring_set_desc(&ring, ring.desc, heads[3], RAM_SIZE, 1, 0, 0);
		assert_int_equal(vq_pop(&vq, &chain), -EFAULT);
	}
}

static void test_flags_suppression(void **state)
{
	struct vring_buf buf;

	start(false, false);
	buf = (struct vring_buf){ data(16), 16, true };
	assert_int_equal(vring_used_flags(&ring), 0);
	vq_disable_kick(&vq);
	assert_int_equal(vring_used_flags(&ring), 1);
	assert_false(vq_enable_kick(&vq));
	assert_int_equal(vring_used_flags(&ring), 0);
	vq_disable_kick(&vq);
	vring_add(&ring, &buf, 1);
	assert_true(vq_enable_kick(&vq));

	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_false(vq_should_notify(&vq)); /* nothing pushed yet */
	vq_push(&vq, &chain, 0);
	assert_true(vq_should_notify(&vq));
	assert_false(vq_should_notify(&vq)); /* said so already */
	vring_set_no_interrupt(&ring, true);
	vring_add(&ring, &buf, 1);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_push(&vq, &chain, 0);
	assert_false(vq_should_notify(&vq));
}

static void serve_one(const struct vring_buf *buf)
{
	struct vring_used_elem elem;

	vring_add(&ring, buf, 1);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_push(&vq, &chain, 0);
	assert_true(vring_take_used(&ring, &elem));
}

static void test_event_idx_interrupts(void **state)
{
	struct vring_buf buf;

	start(true, false);
	buf = (struct vring_buf){ data(16), 16, true };
	/* used_event is 0: the very first entry */
	serve_one(&buf);
	assert_true(vq_should_notify(&vq));
	/* used index 1 to 2; asked for entry 3 */
	vring_set_used_event(&ring, 3);
	serve_one(&buf);
	assert_false(vq_should_notify(&vq));
	/* 2 to 5 in one batch steps over it */
	for (int i = 0; i < 3; i++)
		serve_one(&buf);
	assert_true(vq_should_notify(&vq));
	/* asked for one that is past: silence until it comes round */
	vring_set_used_event(&ring, 4);
	serve_one(&buf);
	assert_false(vq_should_notify(&vq));
	/* exactly the entry at used_event */
	vring_set_used_event(&ring, 6);
	serve_one(&buf);
	assert_true(vq_should_notify(&vq));
}

/* All 2^16 positions, batches of several sizes: against the definition. */
static void test_event_idx_wraps(void **state)
{
	struct vring_buf buf;
	uint16_t event = 0, used = 0;

	start(true, false);
	buf = (struct vring_buf){ data(16), 16, true };
	for (uint32_t i = 0; i < 3 * 65536; i += 7) {
		bool want = false;

		event = (uint16_t)(used + i % 9);
		vring_set_used_event(&ring, event);
		for (int n = 0; n < 7; n++) {
			want |= used == event;
			serve_one(&buf);
			used++;
		}
		assert_int_equal(vq_should_notify(&vq), want);
	}
	assert_int_equal(vq.used_idx, used);
	/* a whole round without a check has to count as "yes" */
	vring_set_used_event(&ring, (uint16_t)(used - 1));
	for (uint32_t i = 0; i < 65536; i++)
		serve_one(&buf);
	assert_int_equal(vq.used_idx, used);
	assert_true(vq_should_notify(&vq));
	assert_false(vq_should_notify(&vq));
}

static void test_event_idx_kicks(void **state)
{
	struct vring_buf buf;

	start(true, false);
	buf = (struct vring_buf){ data(16), 16, true };
	/* an empty ring after entries: the next one is asked for by itself */
	serve_one(&buf);
	serve_one(&buf);
	assert_int_equal(vring_avail_event(&ring), 0);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	assert_int_equal(vring_avail_event(&ring), 2);
	/* while polling it stays where it is, so no kicks come */
	vq_disable_kick(&vq);
	serve_one(&buf);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	assert_int_equal(vring_avail_event(&ring), 2);
	assert_int_equal(vring_used_flags(&ring), 0); /* not used then */
	assert_false(vq_enable_kick(&vq));
	assert_int_equal(vring_avail_event(&ring), 3);
	/* work that slipped in is reported */
	vq_disable_kick(&vq);
	vring_add(&ring, &buf, 1);
	assert_true(vq_enable_kick(&vq));
	assert_int_equal(vring_avail_event(&ring), 3);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_push(&vq, &chain, 0);
	assert_int_equal(vq_pop(&vq, &chain), 0);
	assert_int_equal(vring_avail_event(&ring), 4);
}

static void test_full_ring(void **state)
{
	struct vring_buf buf;

	start_sized(VQ_MAX_SIZE, false, false);
	buf = (struct vring_buf){ data(16), 16, true };
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < VQ_MAX_SIZE; i++)
			vring_add(&ring, &buf, 1);
		for (int i = 0; i < VQ_MAX_SIZE; i++) {
			assert_int_equal(vq_pop(&vq, &chain), 1);
			vq_push(&vq, &chain, (uint32_t)i % 17);
			expect_used((uint32_t)i, (uint32_t)i % 17);
		}
		assert_int_equal(vq_pop(&vq, &chain), 0);
	}
	/* a queue of one */
	start_sized(1, true, false);
	buf = (struct vring_buf){ data(16), 16, true };
	serve_one(&buf);
	assert_true(vq_should_notify(&vq));
	assert_int_equal(vq_pop(&vq, &chain), 0);
}

static bool dirty(const _Atomic uint64_t *map, uint64_t gpa)
{
	return map[gpa / PAGE_4K / 64] >> (gpa / PAGE_4K % 64) & 1;
}

/* Another served the ring up to its used index, and is gone. */
static void test_adopt(void **state)
{
	struct vring_buf buf = { data(64), 64, true };
	struct virtqueue other;
	struct vq_config cfg;
	uint16_t heads[4];

	start(true, false);
	buf.gpa = data(64);
	for (unsigned int i = 0; i < 4; i++)
		heads[i] = vring_add(&ring, &buf, 1);
	vring_config(&ring, &cfg);
	vq_init(&other, 0, VQ_MAX_SIZE, &ram);
	assert_int_equal(vq_start(&other, &cfg), 0);
	for (unsigned int i = 0; i < 3; i++)
		assert_int_equal(vq_pop(&other, &chain), 1);
	vq_push_head(&other, heads[0], 1);
	expect_used(heads[0], 1);

	/* two taken and not returned, one never taken */
	vq_adopt(&vq);
	for (unsigned int i = 1; i < 4; i++) {
		assert_int_equal(vq_pop(&vq, &chain), 1);
		assert_int_equal(chain.head, heads[i]);
		if (i == 2) {
			/* a second look at the same */
			vq_unpop(&vq, 1);
			assert_int_equal(vq_pop(&vq, &chain), 1);
			assert_int_equal(chain.head, heads[i]);
		}
		vq_push(&vq, &chain, 8);
		expect_used(heads[i], 8);
	}
	assert_int_equal(vq_pop(&vq, &chain), 0);
	/* whatever was signalled before: tell the driver */
	assert_true(vq_should_notify(&vq));

	/* a used index from nowhere breaks the queue, not us */
	atomic_store(vring_u16(&ring, ring.used + 2), htole16(0x4000));
	vq_adopt(&vq);
	assert_true(vq_pop(&vq, &chain) < 0);
	assert_true(vq.broken);
}

/* A chain of any length, for a device that wants the two beginnings. */
static void test_heads_only(void **state)
{
	struct vring_buf bufs[2 * VQ_MAX_IOV];
	const unsigned int num = ARRAY_SIZE(bufs);
	uint32_t word;

	start_sized(1024, false, false);
	for (unsigned int i = 0; i < num; i++)
		bufs[i] = (struct vring_buf){ data(16), 16, i >= num / 2 };
	memcpy(vring_ptr(&ring, bufs[0].gpa), "head", 4);
	vring_add(&ring, bufs, num);
	vq.heads_only = true;
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_true(chain.num_out + chain.num_in <= VQ_MAX_IOV);
	assert_true(chain.num_out && chain.num_in);
	assert_int_equal(chain.out_bytes, 16 * num / 2);
	assert_int_equal(chain.in_bytes, 16 * num / 2);
	assert_int_equal(vq_chain_read(&chain, 0, &word, 4), 4);
	assert_memory_equal(&word, "head", 4);
	assert_int_equal(vq_chain_write(&chain, 0, "tail", 4), 4);
	assert_memory_equal(vring_ptr(&ring, bufs[num / 2].gpa), "tail", 4);
	vq_push(&vq, &chain, 4);
	expect_used(chain.head, 4);
}

static void test_dirty_marks(void **state)
{
	_Atomic uint64_t *map = calloc(RAM_SIZE / PAGE_4K / 64, 8);
	struct vring_buf bufs[3];
	struct vq_config cfg;

	/* rings and buffers on pages of their own */
	vring_init(&ring, &ram, SIZE, RING);
	ring.avail = RING + PAGE_4K;
	ring.used = RING + 2 * PAGE_4K;
	memset(vring_ptr(&ring, RING), 0, 3 * PAGE_4K);
	bufs[0] = (struct vring_buf){ 0x100000, PAGE_4K, false };
	bufs[1] = (struct vring_buf){ 0x200000, 2 * PAGE_4K, true };
	bufs[2] = (struct vring_buf){ 0x300000, 2 * PAGE_4K, true };
	vring_config(&ring, &cfg);
	cfg.event_idx = true;
	vq_init(&vq, 0, SIZE, &ram);
	assert_int_equal(vq_start(&vq, &cfg), 0);
	atomic_store(&ram.regions[0].dirty, map);

	vring_add(&ring, bufs, 3);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	for (uint64_t i = 0; i < RAM_SIZE / PAGE_4K / 64; i++)
		assert_int_equal(map[i], 0);
	/* into the second in-buffer's first page by one byte */
	vq_push(&vq, &chain, 2 * PAGE_4K + 1);
	assert_true(dirty(map, ring.used));
	assert_true(dirty(map, 0x200000));
	assert_true(dirty(map, 0x201000));
	assert_true(dirty(map, 0x300000));
	assert_false(dirty(map, 0x301000));
	assert_false(dirty(map, 0x100000));
	assert_false(dirty(map, ring.desc));
	assert_false(dirty(map, ring.avail));
	/* asking for kicks writes the used ring as well */
	memset(map, 0, RAM_SIZE / PAGE_4K / 8);
	vq_enable_kick(&vq);
	assert_true(dirty(map, ring.used));
	/* a head returned by itself marks the ring only */
	memset(map, 0, RAM_SIZE / PAGE_4K / 8);
	vring_add(&ring, bufs, 3);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_push_head(&vq, chain.head, 16);
	assert_true(dirty(map, ring.used));
	assert_false(dirty(map, 0x200000));
	atomic_store(&ram.regions[0].dirty, NULL);
	free(map);
}

/*
 * A device on its own thread that sleeps as real ones do: with event_idx, the
 * kick and the interrupt are each sent only when asked for, and the whole still
 * moves N requests without stalling. Kicks and interrupts are semaphores here.
 */
#define RACE_REQUESTS 30000

struct race {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned int kicks, irqs;
	unsigned int kicks_sent, irqs_sent;
	bool lost;
};

static void race_post(struct race *race, unsigned int *sem, unsigned int *count)
{
	pthread_mutex_lock(&race->lock);
	*sem = 1;
	(*count)++;
	pthread_cond_broadcast(&race->cond);
	pthread_mutex_unlock(&race->lock);
}

/* False: nobody signalled for a minute, so a wake-up was lost. */
static bool race_wait(struct race *race, unsigned int *sem)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60;
	pthread_mutex_lock(&race->lock);
	while (!*sem && !r)
		r = pthread_cond_timedwait(&race->cond, &race->lock, &until);
	*sem = 0;
	race->lost |= r != 0;
	r = race->lost;
	pthread_mutex_unlock(&race->lock);
	return !r;
}

static void *race_device(void *arg)
{
	static struct vq_chain popped;
	struct race *race = arg;
	unsigned int done = 0;

	while (done < RACE_REQUESTS) {
		vq_disable_kick(&vq);
		while (vq_pop(&vq, &popped) == 1) {
			vq_push(&vq, &popped, 1);
			done++;
			if (vq_should_notify(&vq))
				race_post(race, &race->irqs, &race->irqs_sent);
		}
		if (done < RACE_REQUESTS && !vq_enable_kick(&vq) &&
		    !race_wait(race, &race->kicks))
			break;
	}
	return NULL;
}

static void test_no_lost_wakeups(void **state)
{
	struct race race = {
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
	};
	struct vring_used_elem elem;
	unsigned int sent = 0, got = 0;
	struct vring_buf buf;
	pthread_t thread;

	start(true, false);
	buf = (struct vring_buf){ data(16), 16, true };
	assert_int_equal(pthread_create(&thread, NULL, race_device, &race), 0);
	while (got < RACE_REQUESTS && !race.lost) {
		uint16_t old = ring.avail_idx;

		while (sent < RACE_REQUESTS && sent - got < SIZE) {
			vring_add(&ring, &buf, 1);
			sent++;
		}
		__sync_synchronize(); /* as a driver between idx and event */
		if ((uint16_t)(ring.avail_idx - vring_avail_event(&ring) - 1) <
		    (uint16_t)(ring.avail_idx - old))
			race_post(&race, &race.kicks, &race.kicks_sent);
		while (vring_take_used(&ring, &elem))
			got++;
		vring_set_used_event(&ring, ring.used_idx);
		__sync_synchronize();
		if (got == sent)
			continue; /* nothing in flight to wait for */
		if (vring_take_used(&ring, &elem))
			got++;
		else if (!race_wait(&race, &race.irqs))
			break;
	}
	pthread_join(thread, NULL);
	assert_false(race.lost);
	assert_int_equal(got, RACE_REQUESTS);
	/* suppression did something */
	assert_true(race.irqs_sent < RACE_REQUESTS);
}

static uint16_t add_one(void)
{
	const struct vring_buf buf = { data(8), 8, true };

	return vring_add(&ring, &buf, 1);
}

/* Quiet is a queue of which nothing is outstanding, and whose device said so.
 */
static void test_quiet(void **state)
{
	start(true, false);
	vq_hold(&vq, true);
	assert_true(vq_is_quiet(&vq)); /* nobody ever popped */
	vq_hold(&vq, false);
	assert_false(vq_is_quiet(&vq));

	add_one();
	add_one();
	add_one();
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_hold(&vq, true);
	assert_false(vq_is_quiet(&vq));
	assert_int_equal(vq_pop(&vq, &chain), 0); /* held */
	assert_false(vq_is_quiet(&vq));		  /* one is outstanding */
	assert_false(vq_has_work(&vq));
	vq_push_fill(&vq, chain.head, 0);
	assert_false(vq_is_quiet(&vq)); /* and not shown */
	vq_push_show(&vq);
	assert_true(vq_is_quiet(&vq));
	/* Twice is once. */
	vq_hold(&vq, true);
	assert_true(vq_is_quiet(&vq));

	/* An answer to an earlier hold is none to the next. */
	vq_hold(&vq, false);
	vq_hold(&vq, true);
	assert_false(vq_is_quiet(&vq));
	assert_true(vq_take_hold(&vq));
	assert_true(vq_is_quiet(&vq));
	vq_hold(&vq, false);
	assert_false(vq_take_hold(&vq));

	/* What is given back is not outstanding. */
	assert_int_equal(vq_pop(&vq, &chain), 1);
	assert_int_equal(vq_pop(&vq, &chain), 1);
	vq_hold(&vq, true);
	assert_true(vq_take_hold(&vq));
	assert_false(vq_is_quiet(&vq));
	vq_unpop(&vq, 2);
	assert_true(vq_is_quiet(&vq));
	vq_hold(&vq, false);
	assert_int_equal(vq_pop(&vq, &chain), 1);
}

/* While held, kicks are neither asked for nor refused: guest memory is still.
 */
static void test_hold_writes_nothing(void **state)
{
	for (int event_idx = 0; event_idx < 2; event_idx++) {
		char before[4096];

		start(event_idx, false);
		add_one();
		assert_int_equal(vq_pop(&vq, &chain), 1);
		vq_push(&vq, &chain, 0);
		vq_hold(&vq, true);
		memcpy(before, vring_ptr(&ring, ring.used), 6 + 8 * SIZE);
		add_one();
		vq_disable_kick(&vq);
		assert_int_equal(vq_pop(&vq, &chain), 0);
		assert_false(vq_enable_kick(&vq));
		assert_memory_equal(before, vring_ptr(&ring, ring.used),
				    6 + 8 * SIZE);
		vq_hold(&vq, false);
		vq_disable_kick(&vq);
		assert_int_equal(vq_pop(&vq, &chain), 1);
		vq_push(&vq, &chain, 0);
		assert_int_equal(vq_pop(&vq, &chain), 0);
		assert_false(vq_enable_kick(&vq));
	}
}

/* A ring that was served elsewhere goes on, and the driver is told anew. */
static void test_restore(void **state)
{
	char before[4096];
	struct vq_config cfg;

	for (int event_idx = 0; event_idx < 2; event_idx++) {
		start(event_idx, false);
		for (unsigned int i = 0; i < 3; i++) {
			uint16_t head = add_one();

			assert_int_equal(vq_pop(&vq, &chain), 1);
			vq_push(&vq, &chain, 8);
			expect_used(head, 8);
		}
		vq_disable_kick(&vq); /* as it was left */
		vq_stop(&vq);
		memcpy(before, vring_ptr(&ring, ring.used), 6 + 8 * SIZE);

		vring_config(&ring, &cfg);
		cfg.event_idx = event_idx;
		vq_init(&vq, 0, VQ_MAX_SIZE, &ram);
		vq_hold(&vq, true);
		assert_int_equal(vq_restore(&vq, &cfg, 3), 0);
		assert_memory_equal(before, vring_ptr(&ring, ring.used),
				    6 + 8 * SIZE);
		assert_true(vq_is_quiet(&vq));
		assert_int_equal(vq_pop(&vq, &chain), 0);
		vq_hold(&vq, false);
		/* Nothing to do: it asks for kicks before it sleeps. */
		vq_disable_kick(&vq);
		assert_int_equal(vq_pop(&vq, &chain), 0);
		assert_false(vq_enable_kick(&vq));
		if (event_idx)
			assert_int_equal(
				*vring_u16(&ring, ring.used + 4 + 8 * SIZE), 3);
		else
			assert_int_equal(*vring_u16(&ring, ring.used), 0);
		add_one();
		assert_int_equal(vq_pop(&vq, &chain), 1);
		vq_push(&vq, &chain, 5);
		expect_used(chain.head, 5);
		/* The driver may wait for what was used before. */
		assert_true(vq_should_notify(&vq));
	}
	cfg.used = ram.span;
	assert_int_equal(vq_restore(&vq, &cfg, 0), -EFAULT);
	cfg.size = 3;
	assert_int_equal(vq_restore(&vq, &cfg, 0), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_start_checks),
		cmocka_unit_test(test_pop_and_push),
		cmocka_unit_test(test_hold),
		cmocka_unit_test(test_indirect),
		cmocka_unit_test(test_broken_chains),
		cmocka_unit_test(test_total_length),
		cmocka_unit_test(test_broken_indirect),
		cmocka_unit_test(test_too_many_segments),
		cmocka_unit_test(test_broken_ring),
		cmocka_unit_test(test_push_after_broken),
		cmocka_unit_test(test_fill_and_show),
		cmocka_unit_test(test_unpop),
		cmocka_unit_test(test_flags_suppression),
		cmocka_unit_test(test_event_idx_interrupts),
		cmocka_unit_test(test_event_idx_wraps),
		cmocka_unit_test(test_event_idx_kicks),
		cmocka_unit_test(test_full_ring),
		cmocka_unit_test(test_adopt),
		cmocka_unit_test(test_heads_only),
		cmocka_unit_test(test_dirty_marks),
		cmocka_unit_test(test_quiet),
		cmocka_unit_test(test_hold_writes_nothing),
		cmocka_unit_test(test_restore),
		cmocka_unit_test(test_no_lost_wakeups),
	};

	return cmocka_run_group_tests(tests, make_ram, drop_ram);
}
