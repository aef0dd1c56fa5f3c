/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio-blk queue and its thread.
 *
 * The thread pops whatever the ring holds and submits it as one batch. Kicks
 * stay off meanwhile, and the ring is looked at once more afterwards: what the
 * driver adds during the submission, which is long compared with the look,
 * costs it no exit. Only when the ring is found empty are kicks asked for, and
 * the thread sleeps in blockq_wait(), for completions and kicks alike. Before
 * that it polls both for a moment, with kicks still off, where blk_poll.c has
 * found that to pay.
 *
 * Completions are pushed as they are reaped. The interrupt for them follows
 * after the next batch is submitted, so that what completed meanwhile is told
 * by the same one; with an empty ring that is at once.
 *
 * A stop cancels the block queue: what was popped and is not done yet fails,
 * for the driver is resetting the device and expects nothing of it, and the
 * power may go off as well. Only what the kernel is busy with is waited for,
 * which is little (blockq_cancel()), however much the driver has asked for.
 *
 * A struct blk_io stands for a popped chain until it is pushed. There are as
 * many as the ring has entries; a driver that makes more available while they
 * are in flight (a broken one) waits. They are handed out in an order that
 * touches few pages, and the data's iovecs are inline up to a few, on the heap
 * beyond.
 */
#include <errno.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/blk/blk_priv.h"

#define INLINE_IOV 4

struct blk_io {
	struct block_req req;
	struct blk_queue *q;
	struct blk_io *next_free;
	uint8_t *status;
	struct gpa status_gpa;
	uint32_t written; /* for the used ring */
	uint16_t head;
	bool flush_after;
	unsigned int num_ranges, next_range;
	struct blk_range *ranges; /* heap */
	struct iovec *heap_iov;
	struct iovec iov[INLINE_IOV];
};

static struct virtio_queue *virtio_queue(const struct blk_queue *q)
{
	return &q->dev->vdev.queues[q->index];
}

static bool io_available(const struct blk_queue *q)
{
	return q->free || q->num_used < q->num_ios;
}

static struct blk_io *io_get(struct blk_queue *q)
{
	struct blk_io *io = q->free;

	if (io)
		q->free = io->next_free;
	else
		io = &q->ios[q->num_used++];
	io->q = q;
	io->flush_after = false;
	io->num_ranges = 0;
	io->next_range = 0;
	return io;
}

static void io_put(struct blk_io *io)
{
	free(take_ptr(io->heap_iov));
	free(take_ptr(io->ranges));
	io->next_free = io->q->free;
	io->q->free = io;
}

/* Status byte, used ring. */
static void push(struct blk_queue *q, uint16_t head, uint8_t *status_byte,
		 struct gpa status_gpa, enum blk_status status,
		 uint32_t written)
{
	*status_byte = (uint8_t)status;
	mem_mark_dirty(q->dev->vdev.ram, status_gpa, 1);
	vq_push_head(&virtio_queue(q)->vq, head, written);
	q->pushed = true;
}

static void count_error(struct blk_queue *q)
{
	atomic_fetch_add_explicit(&q->dev->vdev.errors, 1,
				  memory_order_relaxed);
}

static enum blk_status status_of(const struct blk_io *io, int result)
{
	static const char *const names[] = {
		[BLOCK_READ] = "read",
		[BLOCK_WRITE] = "write",
		[BLOCK_FLUSH] = "flush",
		[BLOCK_DISCARD] = "discard",
		[BLOCK_WRITE_ZEROES] = "write zeroes",
		[BLOCK_WRITE_ZEROES_NOMAP] = "write zeroes",
	};

	if (!result)
		return BLK_S_OK;
	/* By the driver's own reset: neither a failure nor worth a line. */
	if (result == -ECANCELED)
		return BLK_S_IOERR;
	count_error(io->q);
	if (result == -EOPNOTSUPP)
		return BLK_S_UNSUPP;
	log_ratelimited(LOG_LEVEL_WARN,
			"%s: %s of %llu bytes at %llu failed: %s",
			io->q->dev->vdev.id, names[io->req.op],
			(unsigned long long)io->req.len,
			(unsigned long long)io->req.offset, strerror(-result));
	return BLK_S_IOERR;
}

/* The kernel wrote into guest memory by itself: tell the dirty log. */
static void mark_data_dirty(const struct blk_io *io)
{
	const struct ram *ram = io->q->dev->vdev.ram;

	for (unsigned int i = 0; i < io->req.num_iov; i++) {
		const struct iovec *iov = &io->req.iov[i];
		uint64_t gpa = (uint64_t)((char *)iov->iov_base - ram->base);

		mem_mark_dirty(ram, GPA(gpa), iov->iov_len);
	}
}

static void submit_range(struct blk_io *io)
{
	const struct blk_range *range = &io->ranges[io->next_range++];

	io->req.op = range->op;
	io->req.offset = range->offset;
	io->req.len = range->len;
	blockq_submit(io->q->bq, &io->req);
}

static void io_done(struct block_req *req, int result)
{
	struct blk_io *io = container_of(req, struct blk_io, req);

	if (!result && io->next_range < io->num_ranges) {
		submit_range(io);
		return;
	}
	if (!result && io->flush_after) {
		io->flush_after = false;
		req->op = BLOCK_FLUSH;
		blockq_submit(io->q->bq, req);
		return;
	}
	if (req->op == BLOCK_READ)
		mark_data_dirty(io);
	push(io->q, io->head, io->status, io->status_gpa, status_of(io, result),
	     io->written);
	io_put(io);
}

static int prepare_rw(struct blk_queue *q, struct blk_io *io)
{
	struct block_req *req = &io->req;

	req->op = q->req.kind == BLK_READ ? BLOCK_READ : BLOCK_WRITE;
	req->offset = q->req.offset;
	req->len = q->req.len;
	req->num_iov = blk_req_count_iov(&q->chain, &q->req);
	req->iov = io->iov;
	if (req->num_iov > INLINE_IOV) {
		io->heap_iov = malloc(req->num_iov * sizeof(struct iovec));
		if (!io->heap_iov)
			return -ENOMEM;
		req->iov = io->heap_iov;
	}
	blk_req_fill_iov(&q->chain, &q->req, req->iov);
	if (q->req.kind == BLK_READ) {
		io->written = (uint32_t)MIN(q->chain.in_bytes, UINT32_MAX);
		return 0;
	}
	io->flush_after = q->writethrough;
	/* Zeroes in the place of data that never came are not for the disk. */
	for (unsigned int i = 0; i < req->num_iov; i++) {
		if (!mem_await(q->dev->vdev.ram, req->iov[i].iov_base,
			       req->iov[i].iov_len))
			return -EIO;
	}
	return 0;
}

static int prepare_ranges(struct blk_queue *q, struct blk_io *io)
{
	size_t bytes = q->req.num_ranges * sizeof(struct blk_range);

	io->ranges = malloc(bytes);
	if (!io->ranges)
		return -ENOMEM;
	memcpy(io->ranges, q->req.ranges, bytes);
	io->num_ranges = q->req.num_ranges;
	io->flush_after = q->writethrough;
	return 0;
}

static void start_io(struct blk_queue *q)
{
	struct blk_io *io = io_get(q);
	int r = 0;

	io->head = q->chain.head;
	io->status = q->req.status;
	io->status_gpa = q->req.status_gpa;
	io->written = 1;
	io->req.done = io_done;
	io->req.op = BLOCK_FLUSH;
	io->req.offset = 0;
	io->req.len = 0;
	io->req.num_iov = 0;
	if (q->req.kind == BLK_RANGES)
		r = prepare_ranges(q, io);
	else if (q->req.kind != BLK_FLUSH)
		r = prepare_rw(q, io);
	if (r) {
		count_error(q);
		push(q, io->head, io->status, io->status_gpa, BLK_S_IOERR, 1);
		io_put(io);
	} else if (io->num_ranges) {
		submit_range(io);
	} else {
		blockq_submit(q->bq, &io->req);
	}
}

static void answer_id(struct blk_queue *q)
{
	size_t n = (size_t)q->req.data_bytes;

	n = vq_chain_write(&q->chain, q->req.data_skip, q->dev->serial, n);
	for (unsigned int i = 0, left = (unsigned int)n; left; i++) {
		size_t len = q->chain.iov[q->chain.num_out + i].iov_len;
		unsigned int part = (unsigned int)MIN(len, left);

		if (part)
			mem_mark_dirty(q->dev->vdev.ram, q->chain.in_gpa[i],
				       part);
		left -= part;
	}
	push(q, q->chain.head, q->req.status, q->req.status_gpa, BLK_S_OK,
	     (uint32_t)n + 1);
}

/* Carry out the popped chain. */
static void handle_chain(struct blk_queue *q)
{
	int r = blk_req_parse(&q->chain, &q->limits, &q->req);

	if (r < 0) {
		vq_push(&virtio_queue(q)->vq, &q->chain, 0);
		q->pushed = true;
		q->broken = true;
		virtio_dev_broken(&q->dev->vdev,
				  "block request without a status byte");
	} else if (r > 0) {
		count_error(q);
		push(q, q->chain.head, q->req.status, q->req.status_gpa,
		     (enum blk_status)r, 1);
	} else if (q->req.kind == BLK_GET_ID) {
		answer_id(q);
	} else {
		start_io(q);
	}
}

static bool stopping(const struct blk_queue *q)
{
	return blockq_cancelled(q->bq);
}

/* Pop all there is, as far as there is room. Returns the number of chains. */
static unsigned int serve(struct blk_queue *q)
{
	struct virtio_queue *vqueue = virtio_queue(q);
	unsigned int popped = 0;

	if (q->broken)
		(void)vq_take_hold(&vqueue->vq);
	while (!q->broken && !stopping(q) && io_available(q)) {
		int r = vq_pop(&vqueue->vq, &q->chain);

		if (r == 0)
			break;
		if (r < 0) {
			q->broken = true;
			virtio_dev_broken(&q->dev->vdev,
					  "bad descriptor chain");
			break;
		}
		handle_chain(q);
		popped++;
	}
	q->popped += popped;
	if (popped)
		atomic_fetch_add_explicit(&vqueue->requests, popped,
					  memory_order_relaxed);
	return popped;
}

static void interrupt(struct blk_queue *q)
{
	if (q->pushed) {
		q->pushed = false;
		virtio_queue_interrupt(&q->dev->vdev, q->index);
	}
}

/* Only a defect makes the ring fail; what is in flight must be kept. */
static void check_ring(struct blk_queue *q, int r)
{
	if (r >= 0)
		return;
	log_ratelimited(LOG_LEVEL_ERROR, "%s: waiting for I/O: %s",
			q->dev->vdev.id, strerror(-r));
	usleep(10000);
}

static void wait_for_work(struct blk_queue *q)
{
	struct virtio_queue *vqueue = virtio_queue(q);
	int r = blockq_wait(q->bq, vqueue->kick_fd);

	if (r == 1)
		atomic_fetch_add_explicit(&vqueue->kicks, 1,
					  memory_order_relaxed);
	check_ring(q, r);
}

/* May the thread sleep? Not if a request came in since the last look. */
static bool may_sleep(struct blk_queue *q)
{
	/* Without room or hope a kick would be of no use. */
	if (q->broken || !io_available(q))
		return true;
	return !vq_enable_kick(&virtio_queue(q)->vq);
}

/* Some turns between two looks at the clock, which cost more than one. */
#define POLL_TURNS 16

/* Look out for work for that long; false: there was none. */
static bool poll_for_work(struct blk_queue *q, uint64_t start_ns,
			  uint64_t poll_ns)
{
	do {
		for (unsigned int i = 0; i < POLL_TURNS; i++) {
			if (vq_has_work(&virtio_queue(q)->vq))
				return true;
			if (blockq_ready(q->bq)) {
				check_ring(q, blockq_poll(q->bq));
				return true;
			}
			__builtin_ia32_pause();
		}
		if (stopping(q))
			return true;
	} while (clock_now_ns() - start_ns < poll_ns);
	return false;
}

/* Nothing to pop: wait for requests and completions. */
static void idle(struct blk_queue *q)
{
	uint64_t start = clock_now_ns();
	uint64_t poll_ns = blk_poll_idle(&q->poll, start, q->popped);

	/* Without room or hope, requests would be of no use. */
	if (q->broken || !io_available(q))
		poll_ns = 0;
	if (!poll_ns || !poll_for_work(q, start, poll_ns)) {
		if (may_sleep(q))
			wait_for_work(q);
	}
	blk_poll_work(&q->poll, clock_now_ns() - start);
}

static const struct thread_call queue_calls[] = {
	/* Requests, completions and kicks, all in one. */
	CALL(io_uring_enter),
	CALL_ARG(io_uring_register, 1, IORING_REGISTER_ENABLE_RINGS),
	CALL_ARG(io_uring_register, 1, IORING_REGISTER_RING_FDS),
	CALL_ARG(io_uring_register, 1, IORING_UNREGISTER_RING_FDS),
	/* The end of the ring. */
	CALL(close),
	/* What the ring is not used for, or cannot be. */
	RARE_IOCTL("a device that cannot punch holes", BLKDISCARD),
	RARE("a host without io_uring", poll),
	RARE("a host without io_uring", preadv),
	RARE("a host without io_uring", pwritev),
	RARE("a host without io_uring", pread64),
	RARE("a host without io_uring", pwrite64),
	RARE("a host without io_uring", fdatasync),
	RARE("a host without io_uring", fallocate),
	RARE("the ring fails", clock_nanosleep),
};

/* The ring is made by the thread that it is of; others cannot make one. */
static const struct thread_call queue_prepare_calls[] = {
	CALL(io_uring_setup),
	CALL(io_uring_register),
};

static const struct thread_class queue_thread_class = {
	.name = "disk",
	.what = "carries out the requests of one queue of a disk",
	THREAD_CALLS(queue_calls),
	.prepare_calls = queue_prepare_calls,
	.num_prepare_calls = ARRAY_SIZE(queue_prepare_calls),
};

const struct thread_class *const blk_thread_classes[] = {
	&queue_thread_class,
	NULL,
};

static void *queue_main(void *arg)
{
	struct blk_queue *q = arg;

	while (!stopping(q)) {
		vq_disable_kick(&virtio_queue(q)->vq);
		if (serve(q)) {
			check_ring(q, blockq_poll(q->bq));
			interrupt(q);
		} else {
			interrupt(q);
			idle(q);
		}
	}
	while (blockq_inflight(q->bq))
		wait_for_work(q);
	interrupt(q);
	/* The ring belongs to this thread. */
	blockq_free(take_ptr(q->bq));
	return NULL;
}

static int queue_prepare(void *arg)
{
	struct blk_queue *q = arg;
	struct err err = ERR_INIT;
	int r = blockq_new(&q->bq, q->dev->bdev, q->num_ios, &err);

	if (r)
		log_error("%s", err.text);
	return r;
}

int blk_queue_start(struct blk_queue *q, struct blk_dev *dev,
		    unsigned int index)
{
	uint64_t features = dev->vdev.features;
	struct thread_spec spec = {
		.cls = &queue_thread_class,
		.prepare = queue_prepare,
		.run = queue_main,
		.arg = q,
	};
	char name[THREAD_NAME_MAX];
	int r;

	q->dev = dev;
	q->index = index;
	q->limits = (struct blk_limits){
		.size = blockdev_size(dev->bdev),
		.block_bytes = blockdev_block_bytes(dev->bdev),
		.readonly = blockdev_readonly(dev->bdev),
		.discard = features & BLK_F_DISCARD,
		.write_zeroes = features & BLK_F_WRITE_ZEROES,
	};
	q->writethrough = !(features & BLK_F_FLUSH);
	q->num_ios = virtio_queue(q)->vq.size;
	blk_poll_init(&q->poll, dev->may_poll);
	q->ios = calloc(q->num_ios, sizeof(*q->ios));
	if (!q->ios)
		return -ENOMEM;
	/* "disk0 (a.img)" gives "disk0-q1". */
	snprintf(name, sizeof(name), "%.*s-q%u",
		 (int)MIN(strcspn(dev->vdev.id, " "), 11u), dev->vdev.id,
		 index);
	spec.name = name;
	r = thread_create(&q->thread, &spec);
	if (!r)
		q->running = true;
	return r;
}

void blk_queue_cancel(struct blk_queue *q)
{
	if (!q->running || q->cancelled)
		return;
	/* From here on the thread may end, and takes q->bq with it. */
	q->cancelled = true;
	blockq_cancel(q->bq);
	io_eventfd_signal(virtio_queue(q)->kick_fd);
}

void blk_queue_stop(struct blk_queue *q)
{
	if (q->running) {
		blk_queue_cancel(q);
		pthread_join(q->thread, NULL);
		q->running = false;
	}
	blockq_free(take_ptr(q->bq));
	free(take_ptr(q->ios));
}
