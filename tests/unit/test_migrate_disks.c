/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images from one place to another through sockets, beside memory
 * (migrate/send_pages.c, land.c, disk_unit.c), while they are written through
 * their queues.
 */
#include "fake_kvm_log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "migrate/land.h"
#include "migrate/piece_ring.h"
#include "migrate/send_pages.h"

#define MAX_STREAMS 4
#define MEMORY	    (3 * WIRE_UNIT_BYTES)
#define PATIENCE    (20 * NSEC_PER_SEC)
#define CLUSTER	    WIRE_CLUSTER_BYTES
/* Not whole units, nor clusters; and not one cluster. */
#define BIG_BYTES   (5 * WIRE_UNIT_BYTES + 7 * CLUSTER + 1536)
#define SMALL_BYTES 1024u

struct image {
	char path[PATH_MAX];
	struct blockdev *dev;
};

struct pair {
	struct image from[2], to[2];
	struct migrate_disks disks;
	struct fake_kvm *memory;
	struct ram landed_in;
	unsigned int num;
	int out[MAX_STREAMS], in[MAX_STREAMS];
	unsigned int ticks;
	struct send_pages *send;
	struct land *land;
};

static int tick(void *ctx, struct err *err)
{
	((struct pair *)ctx)->ticks++;
	return 0;
}

static void image_make(struct image *img, uint64_t bytes)
{
	const char *dir = getenv("TMPDIR");
	struct blockdev_config cfg = { .path = img->path };
	struct err err = ERR_INIT;
	int fd;

	snprintf(img->path, sizeof(img->path), "%s/quire-test-disks-XXXXXX",
		 dir ? dir : "/tmp");
	fd = mkstemp(img->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
	assert_int_equal(blockdev_open(&img->dev, &cfg, &err), 0);
}

static void image_end(struct image *img)
{
	blockdev_close(img->dev);
	unlink(img->path);
}

/* Words that say where they are and which time it is. */
static void fill(const struct image *img, uint64_t offset, uint64_t len,
		 uint64_t salt)
{
	uint64_t *words = malloc(len);

	assert_non_null(words);
	for (uint64_t i = 0; i < len / 8; i++)
		words[i] = (offset + i * 8) * 0x9e3779b97f4a7c15ull + salt;
	assert_int_equal(pwrite(blockdev_fd(img->dev), words, len,
				(off_t)offset),
			 (ssize_t)len);
	free(words);
}

static char *content(const struct image *img)
{
	uint64_t bytes = blockdev_size(img->dev);
	char *p = malloc(bytes);

	assert_non_null(p);
	assert_int_equal(pread(blockdev_fd(img->dev), p, bytes, 0),
			 (ssize_t)bytes);
	return p;
}

static void check_same(const struct image *a, const struct image *b)
{
	char *x = content(a), *y = content(b);

	assert_memory_equal(x, y, blockdev_size(a->dev));
	free(x);
	free(y);
}

static void start(struct pair *p, uint64_t rate)
{
	struct send_pages_config sc = {
		.ram = &p->memory->ram,
		.dirty = p->memory->tracker,
		.disks = p->disks,
		.fds = p->out,
		.num = p->num,
		.patience_ns = PATIENCE,
		.rate_bytes_per_s = rate,
		.tick = tick,
		.ctx = p,
	};
	struct land_config lc = {
		.landing.ram = &p->landed_in,
		.disks = { { p->to[0].dev, p->to[1].dev }, 2 },
		.fds = p->in,
		.num = p->num,
		.features = WIRE_FEATURE_DISKS,
		.patience_ns = PATIENCE,
	};
	struct err err = ERR_INIT;

	assert_int_equal(dirty_start(p->memory->tracker, &p->memory->ram, &err),
			 0);
	assert_int_equal(land_start(&p->land, &lc, &err), 0);
	assert_int_equal(send_pages_start(&p->send, &sc, &err), 0);
}

static struct pair *pair_new(unsigned int num, uint64_t rate,
			     uint64_t big_bytes)
{
	struct pair *p = calloc(1, sizeof(*p));
	const struct ram_config rc = {
		.size_bytes = MEMORY,
		.hole_start = GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct err err = ERR_INIT;

	p->num = num;
	p->memory = fake_new(MEMORY, 0);
	assert_int_equal(ram_init(&p->landed_in, &rc, &err), 0);
	for (unsigned int i = 0; i < num; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
		p->out[i] = fds[0];
		p->in[i] = fds[1];
	}
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t bytes = i ? SMALL_BYTES : big_bytes;

		image_make(&p->from[i], bytes);
		image_make(&p->to[i], bytes);
		/* What is there before is of no use to anybody. */
		fill(&p->to[i], 0, MIN(bytes, BIG_BYTES), 999);
		p->disks.list[i] = p->from[i].dev;
		assert_int_equal(block_track_start(
					 blockdev_track(p->from[i].dev), bytes),
				 0);
	}
	p->disks.num = 2;
	/* A hole in the middle, and behind. */
	fill(&p->from[0], 0, WIRE_UNIT_BYTES + CLUSTER, 1);
	fill(&p->from[0], 3 * WIRE_UNIT_BYTES + 512, WIRE_UNIT_BYTES, 1);
	fill(&p->from[1], 0, SMALL_BYTES, 1);
	start(p, rate);
	return p;
}

static void pair_free(struct pair *p)
{
	send_pages_free(p->send);
	land_free(p->land);
	for (unsigned int i = 0; i < p->num; i++) {
		close(p->out[i]);
		close(p->in[i]);
	}
	for (unsigned int i = 0; i < 2; i++) {
		image_end(&p->from[i]);
		image_end(&p->to[i]);
	}
	dirty_stop(p->memory->tracker);
	fake_free(p->memory);
	ram_fini(&p->landed_in);
	free(p);
}

static void round_ok(struct pair *p, bool last)
{
	struct err err = ERR_INIT;

	assert_int_equal(send_pages_round(p->send, last, &err), 0);
}

static void finish(struct pair *p, struct vm_landed *ret)
{
	struct err err = ERR_INIT;

	assert_int_equal(send_pages_end(p->send, &err), 0);
	assert_int_equal(land_finish(p->land, ret, &err), 0);
}

/* As a guest's disk writes it. */
static void write_through(struct image *img, uint64_t offset, uint64_t len,
			  uint64_t salt)
{
	fill(img, offset, len, salt);
	block_track_note(blockdev_track(img->dev), offset, len);
}

static void test_rounds(void **state)
{
	struct send_pages_count count;
	struct vm_landed landed;

	for (unsigned int num = 1; num <= MAX_STREAMS; num++) {
		struct pair *p = pair_new(num, 0, BIG_BYTES);
		uint64_t first;

		fake_store(p->memory, 0, 0, 77, 5);
		round_ok(p, false);
		send_pages_read(p->send, &count);
		/* Holes were not read, and where it is dense all was sent. */
		first = 2 * WIRE_UNIT_BYTES + 2 * CLUSTER + SMALL_BYTES;
		assert_int_equal(count.disk_bytes, first);
		assert_int_equal(count.disk_bytes + count.disk_zero_bytes,
				 BIG_BYTES + SMALL_BYTES);
		assert_int_equal(count.in_hand_bytes, 0);
		/* Nothing was written: nothing is sent. */
		round_ok(p, false);
		send_pages_read(p->send, &count);
		assert_int_equal(count.disk_bytes, first);
		write_through(&p->from[0], 2 * WIRE_UNIT_BYTES, 512, 2);
		write_through(&p->from[0], BIG_BYTES - 512, 512, 2);
		write_through(&p->from[1], 512, 512, 2);
		round_ok(p, true);
		finish(p, &landed);
		assert_int_equal(landed.disk_bytes, first + 2 * CLUSTER -
							    (CLUSTER - 1536) +
							    SMALL_BYTES);
		assert_int_equal(landed.page_bytes, PAGE_4K);
		check_same(&p->from[0], &p->to[0]);
		check_same(&p->from[1], &p->to[1]);
		pair_free(p);
	}
}

/* What is clean of a large image costs no question whether to give up. */
static void test_clean(void **state)
{
	struct pair *p = pair_new(1, 0, TIB);
	struct block_track *track = blockdev_track(p->from[0].dev);
	uint64_t *bits = calloc(track->clusters / 64, sizeof(*bits));
	struct vm_landed landed;
	uint64_t from_ns, ns;

	assert_non_null(bits);
	assert_int_equal(block_track_take(track, 0, track->clusters, bits),
			 TIB / CLUSTER);
	write_through(&p->from[0], TIB / 2, 512, 2);
	write_through(&p->from[0], TIB - 512, 512, 2);
	from_ns = clock_now_ns();
	round_ok(p, true);
	ns = clock_now_ns() - from_ns;
	/*
	 * Memory, the small image and its end, the large one's two, and end;
	 * and what it had to wait for its streams, on a machine that is busy.
	 */
	assert_in_range(p->ticks, 1 + 2 + 3,
			1 + 2 + 3 + ns / PIECE_RING_TICK_NS);
	finish(p, &landed);
	assert_int_equal(landed.disk_bytes, 2 * CLUSTER + SMALL_BYTES);
	free(bits);
	pair_free(p);
}

static bool has_holes(const struct image *img)
{
	struct stat st;

	assert_int_equal(fstat(blockdev_fd(img->dev), &st), 0);
	return (uint64_t)st.st_blocks * 512 < blockdev_size(img->dev);
}

/* What is zero is a hole there, too, where there can be some. */
static void test_holes(void **state)
{
	struct pair *p = pair_new(2, 0, BIG_BYTES);
	struct vm_landed landed;

	assert_false(has_holes(&p->to[0]));
	round_ok(p, true);
	finish(p, &landed);
	check_same(&p->from[0], &p->to[0]);
	assert_int_equal(has_holes(&p->to[0]), has_holes(&p->from[0]));
	pair_free(p);
}

/* ---- while it is written ---- */

struct writer {
	struct pair *p;
	_Atomic bool stop;
	_Atomic unsigned int writes;
};

static void written(struct block_req *req, int result)
{
	assert_int_equal(result, 0);
}

static void write_one(struct writer *w, struct blockq *q, uint64_t n)
{
	static uint64_t words[2 * CLUSTER / 8] __attribute__((aligned(4096)));
	struct iovec iov = { words, 512 * (1 + n % 200) };
	struct block_req req = {
		.op = n % 7 ? BLOCK_WRITE : BLOCK_WRITE_ZEROES,
		.offset = n / 7 % (BIG_BYTES / 512 - 200) * 512,
		.len = iov.iov_len,
		.iov = &iov,
		.num_iov = 1,
		.done = written,
	};

	for (size_t i = 0; i < iov.iov_len / 8; i++)
		words[i] = n + i;
	blockq_submit(q, &req);
	while (blockq_inflight(q))
		assert_int_equal(blockq_poll(q), 0);
	atomic_fetch_add(&w->writes, 1);
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	struct blockq *q = NULL;
	struct err err = ERR_INIT;
	uint64_t rng = 1;

	assert_int_equal(blockq_new(&q, w->p->from[0].dev, 8, &err), 0);
	while (!atomic_load(&w->stop)) {
		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		write_one(w, q, rng >> 20);
	}
	blockq_free(q);
	return NULL;
}

static void test_under_writes(void **state)
{
	struct pair *p = pair_new(3, 0, BIG_BYTES);
	struct writer w = { .p = p };
	struct vm_landed landed;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, writer_main, &w), 0);
	for (unsigned int i = 0; i < 6; i++) {
		unsigned int seen = atomic_load(&w.writes);

		while (atomic_load(&w.writes) < seen + 20)
			usleep(1000);
		round_ok(p, false);
	}
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	round_ok(p, true);
	finish(p, &landed);
	assert_int_equal(landed.rounds, 7);
	check_same(&p->from[0], &p->to[0]);
	check_same(&p->from[1], &p->to[1]);
	pair_free(p);
}

/* ---- failures ---- */

static void test_cannot_be_read(void **state)
{
	struct pair *p = pair_new(1, 0, BIG_BYTES);
	struct err err = ERR_INIT;

	/* It becomes shorter behind our back. */
	assert_int_equal(ftruncate(blockdev_fd(p->from[0].dev), 512), 0);
	assert_true(send_pages_round(p->send, false, &err) < 0);
	assert_non_null(strstr(err.text, "reading disk"));
	assert_non_null(strstr(err.text, p->from[0].path));
	pair_free(p);
}

static void test_hostile(void **state)
{
	static const struct wire_data_header bad[] = {
		{ .type = WIRE_DISK, .gpa = 0, .len = CLUSTER, .disk = 2 },
		{ .type = WIRE_DISK, .gpa = 0, .len = CLUSTER, .disk = 1 },
		{ .type = WIRE_DISK_ZERO, .gpa = 512, .len = CLUSTER },
		{ .type = WIRE_DISK_ZERO,
		  .gpa = 6 * WIRE_UNIT_BYTES,
		  .len = 512 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct pair *p = pair_new(1, 0, BIG_BYTES);
		uint8_t bytes[WIRE_DATA_BYTES];
		char *before = content(&p->to[0]), *after;
		struct vm_landed landed;
		struct err err = ERR_INIT;

		wire_put_data(bytes, &bad[i]);
		assert_int_equal(write(p->out[0], bytes, sizeof(bytes)),
				 sizeof(bytes));
		assert_int_equal(land_finish(p->land, &landed, &err), -EBADMSG);
		after = content(&p->to[0]);
		assert_memory_equal(before, after, BIG_BYTES);
		free(before);
		free(after);
		pair_free(p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rounds),
		cmocka_unit_test(test_clean),
		cmocka_unit_test(test_holes),
		cmocka_unit_test(test_under_writes),
		cmocka_unit_test(test_cannot_be_read),
		cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
