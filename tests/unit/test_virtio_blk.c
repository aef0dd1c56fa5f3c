/* SPDX-License-Identifier: Apache-2.0 */
#include "cmocka_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "no_uring.h"
#include "virtio/blk/blk.h"
#include "virtio/blk/blk_spec.h"
#include "virtio_fake.h"

#define RAM_BYTES   (32 * MIB)
#define IMAGE_BYTES (16 * MIB)
#define RING_BASE   0x10000
#define RING_SIZE   64
#define WAIT_MS	    20000
#define NO_STATUS   0xaa
#define ALL	    (~0ull)

struct fixture {
	struct ram ram;
	char path[PATH_MAX];
	int image; /* the file, beside the device */
	struct virtio_dev *dev;
	struct fake_transport transport;
	struct vring ring;
};

static void image_pattern(unsigned char *p, size_t len, uint64_t offset)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)((offset + i) * 7 + (offset + i) / 509);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const char *dir = getenv("TMPDIR");
	unsigned char *data = malloc(IMAGE_BYTES);

	if (!f || !data || fake_ram_init(&f->ram, RAM_BYTES))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/quire-test-blk-XXXXXX",
		 dir ? dir : "/tmp");
	f->image = mkostemp(f->path, O_CLOEXEC);
	image_pattern(data, IMAGE_BYTES, 0);
	if (f->image < 0 || io_pwrite_full(f->image, data, IMAGE_BYTES, 0))
		return -1;
	free(data);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	ram_fini(&f->ram);
	close(f->image);
	unlink(f->path);
	free(f);
	return 0;
}

static void create(struct fixture *f, const char *more, unsigned int num_cpus)
{
	char options[PATH_MAX + 128];
	struct err err = ERR_INIT;

	snprintf(options, sizeof(options), "path=%s%s", f->path, more);
	if (fake_create(&f->dev, &virtio_blk_class, options, &f->ram, num_cpus,
			&err))
		fail_msg("%s", err.text);
}

static void start(struct fixture *f, const char *more, uint64_t features)
{
	create(f, more, 1);
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	assert_int_equal(
		fake_activate(f->dev, &f->transport, &f->ring, features), 0);
}

static void stop(struct fixture *f)
{
	fake_deactivate(f->dev);
	f->dev->cls->destroy(f->dev);
	f->dev = NULL;
}

static void kick(struct fixture *f)
{
	io_eventfd_signal(f->dev->queues[0].kick_fd);
}

/* ---- requests, as a driver lays them out ---- */

struct request {
	uint64_t header, data, status;
	uint16_t head;
};

static void *guest(struct fixture *f, uint64_t gpa)
{
	return vring_ptr(&f->ring, gpa);
}

static struct request prepare(struct fixture *f, uint32_t type, uint64_t sector,
			      uint32_t data_bytes)
{
	struct request rq = {
		.header = vring_alloc(&f->ring, 16, 16),
		.data = vring_alloc(&f->ring, data_bytes, 512),
		.status = vring_alloc(&f->ring, 1, 1),
	};
	char *header = guest(f, rq.header);

	le32_store(header, type);
	le32_store(header + 4, 0);
	le64_store(header + 8, sector);
	*(uint8_t *)guest(f, rq.status) = NO_STATUS;
	return rq;
}

/* The usual three descriptors; two without data. */
static void add(struct fixture *f, struct request *rq, uint32_t data_bytes,
		bool data_in)
{
	struct vring_buf bufs[3] = { { rq->header, 16, false } };
	unsigned int num = 1;

	if (data_bytes)
		bufs[num++] = (struct vring_buf){ rq->data, data_bytes,
						  data_in };
	bufs[num++] = (struct vring_buf){ rq->status, 1, true };
	rq->head = vring_add(&f->ring, bufs, num);
}

static uint32_t expect_used(struct fixture *f, uint16_t head)
{
	struct vring_used_elem used = { 0 };

	assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
	assert_int_equal(used.id, head);
	return used.len;
}

static uint8_t status_of(struct fixture *f, const struct request *rq)
{
	return *(uint8_t *)guest(f, rq->status);
}

/* Add, kick, wait; returns the status. */
static uint8_t finish(struct fixture *f, struct request *rq,
		      uint32_t data_bytes, bool data_in)
{
	add(f, rq, data_bytes, data_in);
	kick(f);
	expect_used(f, rq->head);
	return status_of(f, rq);
}

static uint8_t simple(struct fixture *f, uint32_t type, uint64_t sector,
		      uint32_t data_bytes, bool data_in)
{
	struct request rq = prepare(f, type, sector, data_bytes);

	return finish(f, &rq, data_bytes, data_in);
}

struct segment {
	uint64_t sector;
	uint32_t num, flags;
};

static uint8_t ranges(struct fixture *f, uint32_t type,
		      const struct segment *segs, unsigned int num)
{
	struct request rq = prepare(f, type, 0, 16 * num);
	char *p = guest(f, rq.data);

	for (unsigned int i = 0; i < num; i++, p += 16) {
		le64_store(p, segs[i].sector);
		le32_store(p + 8, segs[i].num);
		le32_store(p + 12, segs[i].flags);
	}
	return finish(f, &rq, 16 * num, false);
}

static void expect_image(struct fixture *f, const void *data, uint64_t offset,
			 size_t len)
{
	unsigned char *want = malloc(len);

	assert_non_null(want);
	image_pattern(want, len, offset);
	assert_memory_equal(data, want, len);
	free(want);
}

static void file_bytes(struct fixture *f, void *buf, uint64_t offset,
		       size_t len)
{
	assert_int_equal(io_pread_full(f->image, buf, len, offset), 0);
}

/* ---- configuration ---- */

static void refuse_option(struct fixture *f, const char *options,
			  const char *text)
{
	struct virtio_dev *dev = NULL;
	struct err err = ERR_INIT;

	assert_true(fake_create(&dev, &virtio_blk_class, options, &f->ram, 1,
				&err) < 0);
	assert_null(dev);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

static void test_options(void **state)
{
	struct fixture *f = *state;
	char options[PATH_MAX + 64];

	refuse_option(f, "readonly=on", "path=FILE is missing");
	refuse_option(f, "path=/nonexistent.img", "/nonexistent.img");
	refuse_option(f, "path=a,queue_size=100", "not a power of two");
	refuse_option(f, "path=a,queue_size=2", "not a number from 16");
	refuse_option(f, "path=a,num_queues=0", "not a number from 1");
	refuse_option(f, "path=a,serial=123456789012345678901",
		      "longer than 20");
	refuse_option(f, "path=a,readonly=maybe", "neither on nor off");
	refuse_option(f, "path=a,colour=red", "unknown key");
	snprintf(options, sizeof(options), "%s,num_queues=3", f->path);
	assert_int_equal(fake_create(&f->dev, &virtio_blk_class, options,
				     &f->ram, 1, NULL),
			 0);
	assert_int_equal(f->dev->num_queues, 3);
	f->dev->cls->destroy(f->dev);
}

static uint64_t config_get(struct fixture *f, uint32_t offset, uint32_t len)
{
	uint64_t v = 0;

	assert_true(offset + len <= f->dev->cls->config_space_bytes);
	f->dev->cls->config_read(f->dev, offset, &v, len);
	return le64toh(v);
}

static void test_config_space(void **state)
{
	struct fixture *f = *state;

	create(f, "", 2);
	assert_int_equal(f->dev->num_queues, 2);
	assert_int_equal(f->dev->queues[0].vq.max_size, 256);
	assert_int_equal(config_get(f, 0, 8), IMAGE_BYTES / 512);
	assert_int_equal(config_get(f, 12, 4), 252);
	assert_int_equal(config_get(f, 20, 4), 512);
	assert_int_equal(config_get(f, 34, 2), 2);
	assert_true(config_get(f, 36, 4) > 0);
	assert_int_equal(config_get(f, 56, 1), 1);
	assert_true(f->dev->offered & BLK_F_MQ);
	assert_true(f->dev->offered & BLK_F_FLUSH);
	assert_true(f->dev->offered & BLK_F_WRITE_ZEROES);
	assert_false(f->dev->offered & BLK_F_RO);
	f->dev->cls->destroy(f->dev);

	create(f, ",readonly=on,queue_size=16", 1);
	assert_int_equal(config_get(f, 12, 4), 14);
	assert_true(f->dev->offered & BLK_F_RO);
	assert_false(f->dev->offered & BLK_F_MQ);
	assert_false(f->dev->offered & BLK_F_DISCARD);
	assert_false(f->dev->offered & BLK_F_WRITE_ZEROES);
	f->dev->cls->destroy(f->dev);
}

/* ---- good requests ---- */

static void test_read_write(void **state)
{
	struct fixture *f = *state;
	unsigned char buf[8192];
	struct request rq;

	start(f, "", ALL);
	rq = prepare(f, BLK_T_IN, 24, 8192);
	assert_int_equal(finish(f, &rq, 8192, true), BLK_S_OK);
	expect_image(f, guest(f, rq.data), 24 * 512, 8192);

	rq = prepare(f, BLK_T_OUT, 1000, 8192);
	memset(guest(f, rq.data), 0x5c, 8192);
	assert_int_equal(finish(f, &rq, 8192, false), BLK_S_OK);
	assert_int_equal(simple(f, BLK_T_FLUSH, 0, 0, false), BLK_S_OK);
	memset(buf, 0, sizeof(buf));
	file_bytes(f, buf, 1000 * 512, 8192);
	assert_memory_equal(buf, guest(f, rq.data), 8192);

	/* The last sector, and the used length of reads and writes. */
	rq = prepare(f, BLK_T_IN, IMAGE_BYTES / 512 - 1, 512);
	add(f, &rq, 512, true);
	kick(f);
	assert_int_equal(expect_used(f, rq.head), 513);
	assert_int_equal(status_of(f, &rq), BLK_S_OK);
	rq = prepare(f, BLK_T_OUT, IMAGE_BYTES / 512 - 1, 512);
	add(f, &rq, 512, false);
	kick(f);
	assert_int_equal(expect_used(f, rq.head), 1);
	assert_int_equal(f->dev->errors, 0);
	assert_true(f->transport.queue_interrupts > 0);
	stop(f);
}

static void test_get_id(void **state)
{
	struct fixture *f = *state;
	struct request rq;
	char want[20] = "disk-4711";

	start(f, ",serial=disk-4711", ALL);
	rq = prepare(f, BLK_T_GET_ID, 0, 20);
	assert_int_equal(finish(f, &rq, 20, true), BLK_S_OK);
	assert_memory_equal(guest(f, rq.data), want, 20);
	/* A short buffer is filled as far as it goes, not further. */
	rq = prepare(f, BLK_T_GET_ID, 0, 20);
	*(char *)guest(f, rq.data + 4) = 'x';
	assert_int_equal(finish(f, &rq, 4, true), BLK_S_OK);
	assert_memory_equal(guest(f, rq.data), "diskx", 5);
	stop(f);
}

/* Header and data in one descriptor, header in pieces, status at a tail. */
static void test_framing(void **state)
{
	struct fixture *f = *state;
	struct request rq;
	unsigned char buf[1024];
	uint16_t head;

	start(f, "", ALL);
	rq = prepare(f, BLK_T_OUT, 8, 2048);
	memmove(guest(f, rq.data + 7), guest(f, rq.header), 16);
	memset(guest(f, rq.data + 23), 0x77, 1024);
	struct vring_buf out[] = {
		{ rq.data + 7, 3, false },    { rq.data + 10, 12, false },
		{ rq.data + 22, 101, false }, { rq.data + 123, 923, false },
		{ rq.data + 1046, 1, false }, { rq.status, 1, true },
	};
	head = vring_add(&f->ring, out, ARRAY_SIZE(out));
	kick(f);
	expect_used(f, head);
	assert_int_equal(status_of(f, &rq), BLK_S_OK);
	file_bytes(f, buf, 8 * 512, 1024);
	assert_memory_equal(buf, guest(f, rq.data + 23), 1024);

	/* Data in odd pieces, the status behind the last one. */
	rq = prepare(f, BLK_T_IN, 100, 2048);
	struct vring_buf in[] = {
		{ rq.header, 16, false },
		{ rq.data, 1, true },
		{ rq.data + 1, 700, true },
		{ rq.data + 701, 1024 - 701 + 1, true },
	};
	head = vring_add(&f->ring, in, ARRAY_SIZE(in));
	kick(f);
	assert_int_equal(expect_used(f, head), 1025);
	expect_image(f, guest(f, rq.data), 100 * 512, 1024);
	assert_int_equal(*(uint8_t *)guest(f, rq.data + 1024), BLK_S_OK);
	stop(f);
}

/* As many segments as are allowed, through an indirect table. */
static void test_many_segments(void **state)
{
	enum { SEGS = 200 };
	struct fixture *f = *state;
	struct vring_buf bufs[SEGS + 2];
	struct request rq;
	uint64_t table;
	uint16_t head;

	start(f, "", ALL);
	for (unsigned int round = 0; round < 3; round++) {
		rq = prepare(f, BLK_T_IN, 64, SEGS * 512);
		table = vring_alloc(&f->ring, (SEGS + 2) * 16, 16);
		bufs[0] = (struct vring_buf){ rq.header, 16, false };
		for (unsigned int i = 0; i < SEGS; i++)
			bufs[i + 1] = (struct vring_buf){ rq.data + i * 512ull,
							  512, true };
		bufs[SEGS + 1] = (struct vring_buf){ rq.status, 1, true };
		head = vring_add_indirect(&f->ring, table, bufs, SEGS + 2);
		kick(f);
		assert_int_equal(expect_used(f, head), SEGS * 512 + 1);
		assert_int_equal(status_of(f, &rq), BLK_S_OK);
		expect_image(f, guest(f, rq.data), 64 * 512, SEGS * 512);
	}
	stop(f);
}

/* A full ring in one go, completed in any order. */
static void test_batch(void **state)
{
	enum { NUM = RING_SIZE / 4 };
	struct fixture *f = *state;
	struct request rq[NUM];
	struct vring_used_elem used = { 0 };

	start(f, "", ALL & ~VIRTIO_F_EVENT_IDX);
	for (unsigned int round = 0; round < 20; round++) {
		f->ring.data = RING_BASE + MIB;
		for (unsigned int i = 0; i < NUM; i++) {
			rq[i] = prepare(f, BLK_T_IN, i * 16 + round, 4096);
			memset(guest(f, rq[i].data), 0, 4096);
			add(f, &rq[i], 4096, true);
		}
		kick(f);
		for (unsigned int i = 0; i < NUM; i++)
			assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
		for (unsigned int i = 0; i < NUM; i++) {
			assert_int_equal(status_of(f, &rq[i]), BLK_S_OK);
			expect_image(f, guest(f, rq[i].data),
				     (i * 16 + round) * 512ull, 4096);
		}
	}
	assert_int_equal(fake_requests(f->dev, 0, 20 * NUM), 20 * NUM);
	stop(f);
}

static void expect_zero_file(struct fixture *f, uint64_t offset, size_t len)
{
	unsigned char *buf = malloc(len);

	assert_non_null(buf);
	file_bytes(f, buf, offset, len);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(buf[i], 0);
	free(buf);
}

static void expect_kept_file(struct fixture *f, uint64_t offset, size_t len)
{
	unsigned char *buf = malloc(len);

	assert_non_null(buf);
	file_bytes(f, buf, offset, len);
	expect_image(f, buf, offset, len);
	free(buf);
}

static void test_discard_write_zeroes(void **state)
{
	const struct segment segs[] = { { 8, 8, 0 }, { 64, 16, 0 } };
	const struct segment keep[] = { { 1024, 8, 0 } };
	const struct segment unmap[] = { { 2048, 9, 1 }, { 4096, 1, 0 } };
	struct fixture *f = *state;
	struct stat before, after;

	start(f, "", ALL);
	if (f->dev->offered & BLK_F_DISCARD) {
		assert_int_equal(fstat(f->image, &before), 0);
		assert_int_equal(ranges(f, BLK_T_DISCARD, segs, 2), BLK_S_OK);
		assert_int_equal(fstat(f->image, &after), 0);
		assert_true(after.st_blocks < before.st_blocks);
		expect_kept_file(f, 0, 8 * 512);
		expect_zero_file(f, 8 * 512, 8 * 512);
		expect_kept_file(f, 16 * 512, 48 * 512);
		expect_zero_file(f, 64 * 512, 16 * 512);
	}
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, keep, 1), BLK_S_OK);
	expect_kept_file(f, 1023 * 512, 512);
	expect_zero_file(f, 1024 * 512, 8 * 512);
	expect_kept_file(f, 1032 * 512, 512);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, unmap, 2), BLK_S_OK);
	expect_kept_file(f, 2047 * 512, 512);
	expect_zero_file(f, 2048 * 512, 9 * 512);
	expect_kept_file(f, 2057 * 512, 512);
	expect_zero_file(f, 4096 * 512, 512);
	expect_kept_file(f, 4097 * 512, 512);
	stop(f);
}

/* ---- bad requests ---- */

static void test_out_of_range(void **state)
{
	const uint64_t end = IMAGE_BYTES / 512;
	const struct segment beyond[] = { { end - 1, 2, 0 } };
	const struct segment wraps[] = { { UINT64_MAX, 1, 0 } };
	const struct segment second[] = { { 0, 8, 0 }, { end, 1, 0 } };
	struct fixture *f = *state;

	start(f, "", ALL);
	assert_int_equal(simple(f, BLK_T_IN, end, 512, true), BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_IN, end - 1, 1024, true), BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_OUT, end, 512, false), BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_IN, UINT64_MAX, 512, true),
			 BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_OUT, 1ull << 55, 512, false),
			 BLK_S_IOERR);
	/* Not whole sectors. */
	assert_int_equal(simple(f, BLK_T_IN, 0, 511, true), BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_OUT, 0, 513, false), BLK_S_IOERR);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, beyond, 1), BLK_S_IOERR);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, wraps, 1), BLK_S_IOERR);
	/* One bad segment, and none is carried out. */
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, second, 2), BLK_S_IOERR);
	expect_kept_file(f, 0, IMAGE_BYTES);
	assert_int_equal(f->dev->errors, 10);
	assert_int_equal(f->transport.needs_reset, 0);
	stop(f);
}

static void test_bad_segments(void **state)
{
	const struct segment unknown[] = { { 0, 8, 2 } };
	const struct segment unmap[] = { { 0, 8, 1 } };
	const struct segment huge[] = { { 0, UINT32_MAX, 0 } };
	const struct segment good[] = { { 0, 8, 0 } };
	struct segment many[17] = { { 0, 1, 0 } };
	struct fixture *f = *state;
	bool discard;

	start(f, "", ALL);
	discard = f->dev->offered & BLK_F_DISCARD;
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, unknown, 1),
			 BLK_S_UNSUPP);
	assert_int_equal(ranges(f, BLK_T_DISCARD, unknown, 1), BLK_S_UNSUPP);
	assert_int_equal(ranges(f, BLK_T_DISCARD, unmap, 1), BLK_S_UNSUPP);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, huge, 1), BLK_S_IOERR);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, many, 17), BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_WRITE_ZEROES, 0, 15, false),
			 BLK_S_IOERR);
	assert_int_equal(simple(f, BLK_T_DISCARD, 0, 0, false),
			 discard ? BLK_S_IOERR : BLK_S_UNSUPP);
	expect_kept_file(f, 0, IMAGE_BYTES);
	stop(f);

	/* Not negotiated, not served. */
	start(f, "", ALL & ~(BLK_F_DISCARD | BLK_F_WRITE_ZEROES));
	assert_int_equal(ranges(f, BLK_T_DISCARD, good, 1), BLK_S_UNSUPP);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, good, 1), BLK_S_UNSUPP);
	expect_kept_file(f, 0, IMAGE_BYTES);
	stop(f);
}

static void test_readonly(void **state)
{
	const struct segment seg[] = { { 0, 8, 0 } };
	struct fixture *f = *state;

	start(f, ",readonly=on", ALL);
	assert_int_equal(simple(f, BLK_T_OUT, 0, 512, false), BLK_S_IOERR);
	assert_int_equal(ranges(f, BLK_T_DISCARD, seg, 1), BLK_S_UNSUPP);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, seg, 1), BLK_S_UNSUPP);
	assert_int_equal(simple(f, BLK_T_IN, 0, 512, true), BLK_S_OK);
	assert_int_equal(simple(f, BLK_T_FLUSH, 0, 0, false), BLK_S_OK);
	expect_kept_file(f, 0, IMAGE_BYTES);
	stop(f);
}

static void test_unknown_type(void **state)
{
	struct fixture *f = *state;

	start(f, "", ALL);
	assert_int_equal(simple(f, 2, 0, 512, true), BLK_S_UNSUPP);
	assert_int_equal(simple(f, 10, 0, 512, true), BLK_S_UNSUPP);
	assert_int_equal(simple(f, UINT32_MAX, 0, 512, false), BLK_S_UNSUPP);
	stop(f);
}

static void test_short_header(void **state)
{
	struct fixture *f = *state;
	struct request rq;
	uint16_t head;

	start(f, "", ALL);
	rq = prepare(f, BLK_T_IN, 0, 512);
	struct vring_buf bufs[] = { { rq.header, 15, false },
				    { rq.data, 512, true },
				    { rq.status, 1, true } };
	head = vring_add(&f->ring, bufs, 3);
	kick(f);
	expect_used(f, head);
	assert_int_equal(status_of(f, &rq), BLK_S_IOERR);
	/* No readable part at all. */
	rq = prepare(f, BLK_T_IN, 0, 512);
	bufs[1] = (struct vring_buf){ rq.data, 512, true };
	bufs[2] = (struct vring_buf){ rq.status, 1, true };
	head = vring_add(&f->ring, bufs + 1, 2);
	kick(f);
	expect_used(f, head);
	assert_int_equal(status_of(f, &rq), BLK_S_IOERR);
	assert_int_equal(f->transport.needs_reset, 0);
	stop(f);
}

/* After a chain that cannot be answered, silence until a reset. */
static void expect_broken(struct fixture *f)
{
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	struct vring_used_elem used = { 0 };
	struct request rq;

	while (!f->transport.needs_reset && clock_now_ns() < end)
		usleep(100);
	assert_int_equal(f->transport.needs_reset, 1);
	while (vring_take_used(&f->ring, &used))
		continue;
	rq = prepare(f, BLK_T_IN, 0, 512);
	add(f, &rq, 512, true);
	kick(f);
	assert_false(vring_wait_used(&f->ring, 50, &used));
	fake_deactivate(f->dev);
	/* The driver resets it and all is well. */
	f->transport.needs_reset = 0;
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring, ALL),
			 0);
	assert_int_equal(simple(f, BLK_T_IN, 0, 512, true), BLK_S_OK);
	stop(f);
}

static void test_no_status(void **state)
{
	struct fixture *f = *state;
	struct request rq;
	uint16_t head;

	start(f, "", ALL);
	rq = prepare(f, BLK_T_OUT, 0, 512);
	struct vring_buf bufs[] = { { rq.header, 16, false },
				    { rq.data, 512, false } };
	head = vring_add(&f->ring, bufs, 2);
	kick(f);
	assert_int_equal(expect_used(f, head), 0);
	expect_broken(f);
	expect_kept_file(f, 0, 512);
}

static void test_bad_chain(void **state)
{
	struct fixture *f = *state;

	start(f, "", ALL);
	vring_set_desc(&f->ring, f->ring.desc, 0, RAM_BYTES - 8, 16, 0, 0);
	vring_publish(&f->ring, 0);
	kick(f);
	expect_broken(f);
}

/* One chain made available again and again while it may be in flight. */
static void test_double_use(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used = { 0 };
	struct request rq;

	start(f, "", ALL);
	rq = prepare(f, BLK_T_IN, 16, 4096);
	add(f, &rq, 4096, true);
	for (unsigned int i = 1; i < RING_SIZE; i++)
		vring_publish(&f->ring, rq.head);
	kick(f);
	for (unsigned int i = 0; i < RING_SIZE; i++) {
		assert_true(vring_wait_used(&f->ring, WAIT_MS, &used));
		assert_int_equal(used.id, rq.head);
	}
	assert_int_equal(status_of(f, &rq), BLK_S_OK);
	expect_image(f, guest(f, rq.data), 16 * 512, 4096);
	stop(f);
}

/* ---- life ---- */

/* Deactivation in the middle of I/O completes what was popped. */
static void test_deactivate_drains(void **state)
{
	struct fixture *f = *state;
	struct vring_used_elem used = { 0 };
	struct request rq[8];

	for (unsigned int round = 0; round < 30; round++) {
		unsigned int popped = 0, taken = 0;

		start(f, "", ALL);
		for (unsigned int i = 0; i < 8; i++) {
			rq[i] = prepare(f, BLK_T_IN, i * 128, 64 * 1024);
			add(f, &rq[i], 64 * 1024, true);
		}
		kick(f);
		f->dev->cls->deactivate(f->dev);
		popped = f->dev->queues[0].vq.last_avail;
		vq_stop(&f->dev->queues[0].vq);
		while (vring_take_used(&f->ring, &used))
			taken++;
		assert_int_equal(taken, popped);
		for (unsigned int i = 0; i < popped; i++) {
			uint8_t status = status_of(f, &rq[i]);

			assert_true(status == BLK_S_OK ||
				    status == BLK_S_IOERR);
			if (status == BLK_S_OK)
				expect_image(f, guest(f, rq[i].data),
					     i * 65536ull, 64 * 1024);
		}
		f->dev->cls->destroy(f->dev);
	}
}

#define HUGE_BYTES   GIB
#define HUGE_CHAINS  16
#define HUGE_SECTORS (1u << 21)

/* A disk of 1 GiB on tmpfs, where zeroes have to be written. */
static void use_huge_image(struct fixture *f)
{
	close(f->image);
	unlink(f->path);
	snprintf(f->path, sizeof(f->path), "/dev/shm/quire-test-blk-XXXXXX");
	f->image = mkostemp(f->path, O_CLOEXEC);
	if (f->image < 0) {
		print_message("no /dev/shm: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(ftruncate(f->image, (off_t)HUGE_BYTES), 0);
}

/* Everything a driver can ask for in one request: 16 GiB of zeroes. */
static void add_huge_zeroes(struct fixture *f, struct request *rq)
{
	char *p;

	*rq = prepare(f, BLK_T_WRITE_ZEROES, 0, 16 * 16);
	p = guest(f, rq->data);
	for (unsigned int i = 0; i < 16; i++, p += 16) {
		le64_store(p, 0);
		le32_store(p + 8, HUGE_SECTORS);
		le32_store(p + 12, 0);
	}
	add(f, rq, 16 * 16, false);
}

/* 160 MiB, into the same 16 MiB again and again. */
static void add_huge_read(struct fixture *f, struct request *rq)
{
	struct vring_buf bufs[12];

	*rq = prepare(f, BLK_T_IN, 0, 1);
	bufs[0] = (struct vring_buf){ rq->header, 16, false };
	for (unsigned int i = 1; i < 11; i++)
		bufs[i] = (struct vring_buf){ 8 * MIB, 16 * MIB, true };
	bufs[11] = (struct vring_buf){ rq->status, 1, true };
	rq->head = vring_add_indirect(
		&f->ring, vring_alloc(&f->ring, 12 * 16, 16), bufs, 12);
}

static _Atomic int stop_fd = -1;

/* Fill the ring before the device starts: then it needs no kick. */
static void start_huge(struct fixture *f, struct request *rq, bool read)
{
	use_huge_image(f);
	create(f, "", 1);
	stop_fd = f->dev->queues[0].kick_fd;
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	for (unsigned int i = 0; i < HUGE_CHAINS; i++) {
		if (read)
			add_huge_read(f, &rq[i]);
		else
			add_huge_zeroes(f, &rq[i]);
	}
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring, ALL),
			 0);
}

/*
 * What was popped was completed, once, as failed; that is no error. Returns how
 * many that were.
 */
static unsigned int stop_huge(struct fixture *f, const struct request *rq)
{
	struct vring_used_elem used = { 0 };
	unsigned int popped, taken = 0;

	f->dev->cls->deactivate(f->dev);
	popped = f->dev->queues[0].vq.last_avail;
	vq_stop(&f->dev->queues[0].vq);
	while (vring_take_used(&f->ring, &used))
		taken++;
	assert_int_equal(taken, popped);
	for (unsigned int i = 0; i < HUGE_CHAINS; i++)
		assert_int_equal(status_of(f, &rq[i]),
				 i < popped ? BLK_S_IOERR : NO_STATUS);
	assert_int_equal(f->dev->errors, 0);
	stop_fd = -1;
	f->dev->cls->destroy(f->dev);
	return popped;
}

/* 256 GiB of zeroes are on their way, and the driver resets the device. */
static void test_stop_is_bounded(void **state)
{
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	struct request rq[HUGE_CHAINS];
	struct fixture *f = *state;

	if (syscall(SYS_io_uring_setup, 0, NULL) < 0 &&
	    (errno == ENOSYS || errno == EPERM)) {
		print_message("no io_uring here: %s\n", strerror(errno));
		skip();
	}
	start_huge(f, rq, false);
	while (!f->dev->queues[0].requests && clock_now_ns() < end)
		usleep(100);
	assert_int_equal(f->dev->queues[0].requests, HUGE_CHAINS);
	assert_int_equal(stop_huge(f, rq), HUGE_CHAINS);
}

/*
 * Without io_uring the device's calls are ours. The third one returns when the
 * stop was asked for, which the kick eventfd tells: nobody else kicks.
 */
static _Atomic unsigned int num_calls;

static void count_call(void)
{
	struct pollfd pfd = { .fd = stop_fd, .events = POLLIN };

	if (pfd.fd >= 0 && atomic_fetch_add(&num_calls, 1) == 2)
		(void)poll(&pfd, 1, WAIT_MS);
}

ssize_t pwritev(int fd, const struct iovec *iov, int num, off_t offset)
{
	count_call();
	return syscall(SYS_pwritev, fd, iov, num, offset, 0);
}

ssize_t preadv(int fd, const struct iovec *iov, int num, off_t offset)
{
	count_call();
	return syscall(SYS_preadv, fd, iov, num, offset, 0);
}

static void check_stop_counts(struct fixture *f, bool read)
{
	uint64_t end = clock_now_ns() + WAIT_MS * 1000000ull;
	struct request rq[HUGE_CHAINS];

	num_calls = 0;
	start_huge(f, rq, read);
	while (num_calls < 3 && clock_now_ns() < end)
		usleep(100);
	assert_int_equal(stop_huge(f, rq), 1);
	assert_int_equal(num_calls, 3);
}

static void check_stop_zeroes(void **state)
{
	check_stop_counts(*state, false);
}

static void check_stop_reads(void **state)
{
	check_stop_counts(*state, true);
}

/* Which is which, in messages and in a list of threads. */
static bool has_thread(const char *name)
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *e;
	bool found = false;

	assert_non_null(dir);
	while (!found && (e = readdir(dir))) {
		char path[300], text[32];

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm",
			 e->d_name);
		found = io_read_text(path, text, sizeof(text)) > 0 &&
			strcmp(text, name) == 0;
	}
	closedir(dir);
	return found;
}

static void test_names(void **state)
{
	struct fixture *f = *state;
	char options[PATH_MAX + 16], want[64];

	snprintf(options, sizeof(options), "path=%s", f->path);
	snprintf(want, sizeof(want), "disk7 (%s)", strrchr(f->path, '/') + 1);
	assert_int_equal(fake_create_nth(&f->dev, &virtio_blk_class, options,
					 &f->ram, 1, 7, NULL),
			 0);
	assert_string_equal(f->dev->id, want);
	vring_init(&f->ring, &f->ram, RING_SIZE, RING_BASE);
	assert_int_equal(fake_activate(f->dev, &f->transport, &f->ring, ALL),
			 0);
	assert_true(has_thread("disk7-q0"));
	stop(f);
}

/* Reads dirty what they filled and the status, and nothing else. */
static void test_dirty_marking(void **state)
{
	struct fixture *f = *state;
	_Atomic uint64_t *bits = calloc(RAM_BYTES / PAGE_4K / 64, 8);
	struct request rq;

	assert_non_null(bits);
	start(f, "", ALL);
	rq = prepare(f, BLK_T_IN, 0, 512);
	rq.data = vring_alloc(&f->ring, 2 * PAGE_4K, PAGE_4K);
	rq.status = vring_alloc(&f->ring, PAGE_4K, PAGE_4K);
	f->ram.regions[0].dirty = bits;
	assert_int_equal(finish(f, &rq, 2 * PAGE_4K, true), BLK_S_OK);
	stop(f);
	f->ram.regions[0].dirty = NULL;
	for (uint64_t page = 0; page < RAM_BYTES / PAGE_4K; page++) {
		bool dirty = bits[page / 64] >> (page % 64) & 1;
		uint64_t gpa = page * PAGE_4K;
		bool want = gpa == rq.data || gpa == rq.data + PAGE_4K ||
			    gpa == rq.status ||
			    gpa == align_down(f->ring.used, PAGE_4K);

		if (dirty != want)
			fail_msg("page %#llx: dirty %d, expected %d",
				 (unsigned long long)gpa, dirty, want);
	}
	free((void *)bits);
}

/*
 * When data has to be on the disk. Without io_uring the device calls
 * fdatasync(), which is ours here.
 */
static _Atomic unsigned int num_syncs;

int fdatasync(int fd)
{
	/* Late enough for a completion that does not wait to be seen. */
	usleep(20000);
	atomic_fetch_add(&num_syncs, 1);
	return (int)syscall(SYS_fdatasync, fd);
}

static void check_flush(void **state)
{
	struct fixture *f = *state;

	start(f, "", ALL);
	num_syncs = 0;
	assert_int_equal(simple(f, BLK_T_OUT, 8, 4096, false), BLK_S_OK);
	assert_int_equal(num_syncs, 0);
	assert_int_equal(simple(f, BLK_T_FLUSH, 0, 0, false), BLK_S_OK);
	assert_int_equal(num_syncs, 1);
	stop(f);
}

/* A driver that does not know flush counts on every write. */
static void check_writethrough(void **state)
{
	const struct segment seg[] = { { 0, 8, 0 } };
	struct fixture *f = *state;

	start(f, "", ALL & ~BLK_F_FLUSH);
	num_syncs = 0;
	assert_int_equal(simple(f, BLK_T_OUT, 8, 4096, false), BLK_S_OK);
	assert_int_equal(num_syncs, 1);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, seg, 1), BLK_S_OK);
	assert_int_equal(num_syncs, 2);
	assert_int_equal(simple(f, BLK_T_IN, 8, 4096, true), BLK_S_OK);
	assert_int_equal(num_syncs, 2);
	expect_zero_file(f, 0, 4096);
	stop(f);
}

#define BLK_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

static void test_without_io_uring(void **state)
{
	const struct CMUnitTest tests[] = {
		BLK_TEST(check_flush),
		BLK_TEST(check_writethrough),
		BLK_TEST(test_read_write),
		BLK_TEST(test_batch),
		BLK_TEST(test_discard_write_zeroes),
		BLK_TEST(test_deactivate_drains),
		BLK_TEST(check_stop_zeroes),
		BLK_TEST(check_stop_reads),
	};

	run_without_io_uring("without io_uring", tests);
}

/* With io_uring, only the outcome can be seen. */
static void test_writethrough(void **state)
{
	const struct segment seg[] = { { 0, 8, 0 } };
	struct fixture *f = *state;

	start(f, "", ALL & ~BLK_F_FLUSH);
	assert_int_equal(simple(f, BLK_T_OUT, 8, 4096, false), BLK_S_OK);
	assert_int_equal(ranges(f, BLK_T_WRITE_ZEROES, seg, 1), BLK_S_OK);
	assert_int_equal(simple(f, BLK_T_OUT, IMAGE_BYTES / 512, 512, false),
			 BLK_S_IOERR);
	expect_zero_file(f, 0, 4096);
	stop(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BLK_TEST(test_options),
		BLK_TEST(test_config_space),
		BLK_TEST(test_read_write),
		BLK_TEST(test_get_id),
		BLK_TEST(test_framing),
		BLK_TEST(test_many_segments),
		BLK_TEST(test_batch),
		BLK_TEST(test_discard_write_zeroes),
		BLK_TEST(test_out_of_range),
		BLK_TEST(test_bad_segments),
		BLK_TEST(test_readonly),
		BLK_TEST(test_unknown_type),
		BLK_TEST(test_short_header),
		BLK_TEST(test_no_status),
		BLK_TEST(test_bad_chain),
		BLK_TEST(test_double_use),
		BLK_TEST(test_deactivate_drains),
		BLK_TEST(test_stop_is_bounded),
		BLK_TEST(test_names),
		BLK_TEST(test_dirty_marking),
		BLK_TEST(test_writethrough),
		cmocka_unit_test(test_without_io_uring),
	};

	/* Provoked on purpose, many times. */
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
