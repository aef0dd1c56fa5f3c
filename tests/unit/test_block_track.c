/* SPDX-License-Identifier: Apache-2.0 */
/* block/track.c, alone, beside writing threads, and behind a queue. */
#include "cmocka_all.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "block/blockdev_priv.h"
#include "no_uring.h"

#define CLUSTER	 BLOCK_CLUSTER_BYTES
#define CLUSTERS 150u /* not whole words */
#define BYTES	 (CLUSTERS * CLUSTER - 512)
#define WORDS	 3u

static void test_bits(void **state)
{
	struct block_track t = { 0 };
	uint64_t bits[WORDS];

	/* Off: nothing is noted, and nothing is there to note it in. */
	block_track_note(&t, 0, CLUSTER);
	assert_int_equal(block_track_count(&t), 0);
	assert_int_equal(block_track_start(&t, BYTES), 0);
	assert_int_equal(block_track_count(&t), CLUSTERS);
	assert_int_equal(block_track_take(&t, 0, CLUSTERS, bits), CLUSTERS);
	assert_int_equal(bits[0], ~0ull);
	assert_int_equal(bits[2], (1ull << (CLUSTERS - 128)) - 1);
	assert_int_equal(block_track_count(&t), 0);
	/* One byte, over a border, over words, to the end. */
	block_track_note(&t, 5 * CLUSTER + 512, 512);
	block_track_note(&t, 8 * CLUSTER - 512, 1024);
	block_track_note(&t, 60 * CLUSTER, 10 * CLUSTER);
	block_track_note(&t, BYTES - 512, 512);
	assert_int_equal(block_track_count(&t), 1 + 2 + 10 + 1);
	/* Some at a time: the others stay. */
	assert_int_equal(block_track_take(&t, 0, 64, bits), 3 + 4);
	assert_int_equal(bits[0], 1ull << 5 | 3ull << 7 | 0xfull << 60);
	assert_int_equal(block_track_take(&t, 64, 2, bits), 2);
	assert_int_equal(block_track_take(&t, 64, 86, bits), 4 + 1);
	assert_int_equal(bits[0], 0xfull << 2);
	assert_int_equal(bits[1], 1ull << (CLUSTERS - 1 - 128));
	block_track_stop(&t);
	block_track_note(&t, 0, CLUSTER);
	assert_int_equal(block_track_count(&t), 0);
	/* Again it begins with everything. */
	assert_int_equal(block_track_start(&t, BYTES), 0);
	assert_int_equal(block_track_count(&t), CLUSTERS);
	block_track_fini(&t);
}

/* ---- writers, and one who takes ---- */

#define WRITERS 3
#define WRITES	20000u

struct cell {
	_Atomic uint64_t value; /* of a cluster */
};

static struct block_track shared;
static struct cell cells[CLUSTERS];

static void *writer_main(void *arg)
{
	uint64_t rng = (uint64_t)(uintptr_t)arg;

	for (unsigned int i = 0; i < WRITES; i++) {
		uint64_t at;

		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		at = (rng >> 33) % CLUSTERS;
		atomic_fetch_add_explicit(&cells[at].value, 1,
					  memory_order_relaxed);
		block_track_note(&shared, at * CLUSTER, 512);
	}
	return NULL;
}

/* What is taken is copied; in the end nothing is missing. */
static void take_all(uint64_t *copy)
{
	uint64_t bits[WORDS];

	(void)block_track_take(&shared, 0, CLUSTERS, bits);
	for (unsigned int i = 0; i < CLUSTERS; i++) {
		if (bits[i / 64] >> (i % 64) & 1)
			copy[i] = atomic_load_explicit(&cells[i].value,
						       memory_order_relaxed);
	}
}

static void test_beside_writers(void **state)
{
	static uint64_t copy[CLUSTERS];
	pthread_t threads[WRITERS];

	assert_int_equal(block_track_start(&shared, BYTES), 0);
	for (uintptr_t i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, writer_main,
						(void *)(i + 1)),
				 0);
	for (unsigned int i = 0; i < 500; i++)
		take_all(copy);
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	take_all(copy);
	for (unsigned int i = 0; i < CLUSTERS; i++)
		assert_int_equal(copy[i], atomic_load(&cells[i].value));
	block_track_fini(&shared);
}

/* ---- behind a queue ---- */

struct asked {
	struct block_req req;
	struct block_track *track;
	unsigned int done;
	int result;
	uint64_t dirty; /* when it was done */
};

static void done(struct block_req *req, int result)
{
	struct asked *a = container_of(req, struct asked, req);

	a->done++;
	a->result = result;
	a->dirty = block_track_count(a->track);
}

/* How many clusters are dirty when its guest would hear of it; then none. */
static uint64_t ask(struct blockdev *dev, struct blockq *q, enum block_op op,
		    uint64_t offset, uint64_t len, int result)
{
	static char buf[4 * CLUSTER] __attribute__((aligned(4096)));
	uint64_t bits[WORDS];
	struct iovec iov = { buf, len };
	struct asked a = {
		.req = { .op = op,
			 .offset = offset,
			 .len = len,
			 .iov = &iov,
			 .num_iov = 1,
			 .done = done },
		.track = blockdev_track(dev),
	};

	blockq_submit(q, &a.req);
	while (!a.done)
		assert_int_equal(blockq_poll(q), 0);
	assert_int_equal(a.result, result);
	if (a.track->clusters) /* it was started once */
		(void)block_track_take(a.track, 0, CLUSTERS, bits);
	return a.dirty;
}

static void check_queue(void)
{
	char path[PATH_MAX];
	const char *dir = getenv("TMPDIR");
	struct blockdev_config cfg = { .path = path };
	struct blockdev *dev = NULL;
	struct blockq *q = NULL;
	struct err err = ERR_INIT;
	uint64_t bits[WORDS];
	int fd;

	snprintf(path, sizeof(path), "%s/quire-test-track-XXXXXX",
		 dir ? dir : "/tmp");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
	assert_int_equal(blockdev_open(&dev, &cfg, &err), 0);
	assert_int_equal(blockq_new(&q, dev, 8, &err), 0);
	assert_int_equal(ask(dev, q, BLOCK_WRITE, 0, 512, 0), 0);
	assert_int_equal(block_track_start(blockdev_track(dev), BYTES), 0);
	(void)block_track_take(blockdev_track(dev), 0, CLUSTERS, bits);
	assert_int_equal(ask(dev, q, BLOCK_WRITE, CLUSTER - 512, 1024, 0), 2);
	assert_int_equal(ask(dev, q, BLOCK_READ, 0, CLUSTER, 0), 0);
	assert_int_equal(ask(dev, q, BLOCK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(ask(dev, q, BLOCK_WRITE_ZEROES, 0, 3 * CLUSTER, 0), 3);
	assert_int_equal(ask(dev, q, BLOCK_WRITE_ZEROES_NOMAP, 512, 512, 0), 1);
	assert_true(ask(dev, q, BLOCK_DISCARD, CLUSTER, CLUSTER, 0) == 1);
	/* Outside, and not whole sectors: nothing is done, and the first is
	 * not noted either. */
	assert_int_equal(ask(dev, q, BLOCK_WRITE, BYTES, 512, -EINVAL), 0);
	assert_int_equal(ask(dev, q, BLOCK_WRITE, 0, 100, -EINVAL), 1);
	blockq_free(q);
	blockdev_close(dev);
	close(fd);
	unlink(path);
}

static void check_sync_queue(void **state)
{
	check_queue();
}

static void test_queue(void **state)
{
	const struct CMUnitTest sync[] = { cmocka_unit_test(check_sync_queue) };

	check_queue();
	run_without_io_uring("block_track_sync", sync);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bits),
		cmocka_unit_test(test_beside_writers),
		cmocka_unit_test(test_queue),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
