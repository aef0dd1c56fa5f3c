/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue of block requests over one io_uring.
 *
 * The ring does the whole job of the thread that owns the queue: it carries the
 * requests, and a multishot poll on the wake eventfd waits in it for the
 * guest's kicks. So one io_uring_enter() submits a batch, sleeps, and returns
 * for completions and kicks alike. The poll is edge triggered: the eventfd is
 * never read, which saves a system call for each kick. Kernels without
 * multishot poll (before 5.13) get a one-shot poll, and then it is read.
 *
 * A request has at most one entry in the ring (step.c). What the kernel has at
 * one time is bounded, so that it comes to an end soon when the queue is
 * cancelled, and by two lanes, so that freeing or zeroing large ranges does not
 * hold up data: one for reads, writes and flushes, with a limit on bytes, one
 * for ranges, with a limit on steps. A request that finds its lane at the limit
 * or the submission queue full waits in the lane's backlog; one that needs the
 * bounce buffer while another has it waits in bounce_wait.
 *
 * Cancelling sets a flag and no more. The queue's thread looks at it before
 * each step, and when it polls or waits: it ends what waits and asks the
 * kernel, with one IORING_OP_ASYNC_CANCEL, to drop what it has not started
 * (before Linux 5.19 it refuses; then all that it has is waited for). A flush
 * that runs is waited for too: how long depends on what the host has to write.
 *
 * The exception to the lanes: BLKDISCARD, the last resort on block devices that
 * cannot punch holes, runs on the queue's thread and holds up the rest.
 *
 * The ring is made disabled, for the control thread may make it while it has
 * to belong to the queue's thread (IORING_SETUP_SINGLE_ISSUER); the first use
 * enables it. Without io_uring every request runs synchronously at submission
 * and waiting is a poll(2).
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/log.h"
#include "block/blockdev_priv.h"

/* Deeper queues submit in several rounds; each entry costs 64 bytes. */
#define MAX_SQ_ENTRIES 128u
/* user_data of the wake poll and of cancelling; requests have their address. */
#define WAKE_TAG   1ull
#define CANCEL_TAG 2ull

/*
 * What the kernel may have at one time before another step is started: some
 * depth for large requests, and a fraction of a second for most disks.
 */
#define BLOCK_DATA_LIMIT  (16 * MIB)
#define BLOCK_RANGE_LIMIT 4

struct req_list {
	struct block_req *head, *tail;
};

enum {
	LANE_DATA,
	LANE_RANGE,
	NUM_LANES,
};

struct lane {
	struct req_list backlog;
	uint64_t used, limit; /* in the kernel: bytes, or steps */
	uint64_t peak;
};

struct blockq {
	struct blockdev *dev;
	struct block_caps caps;
	_Atomic bool cancelled;
	bool cancel_sent;
	unsigned int inflight;
	bool sync; /* no io_uring */
	bool enabled;
	bool oneshot_poll;
	bool wake_armed;
	int wake_fd;
	bool woken;
	void *bounce; /* made when first needed */
	struct block_req *bounce_owner;
	struct req_list bounce_wait;
	bool ring_full; /* since the backlogs were last run */
	struct lane lanes[NUM_LANES];
	uint64_t issued_steps, issued_bytes;
	struct io_uring ring;
};

static void list_push(struct req_list *list, struct block_req *req)
{
	req->next = NULL;
	if (list->head)
		list->tail->next = req;
	else
		list->head = req;
	list->tail = req;
}

static struct block_req *list_pop(struct req_list *list)
{
	struct block_req *req = list->head;

	if (req)
		list->head = req->next;
	return req;
}

static unsigned int pow2_at_least(unsigned int n)
{
	unsigned int p = 1;

	while (p < n)
		p *= 2;
	return p;
}

/* Best set of flags first: older kernels refuse the ones they do not know. */
static int ring_init(struct io_uring *ring, unsigned int depth)
{
	static const unsigned int flag_sets[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	unsigned int entries = MIN(pow2_at_least(depth + 1), MAX_SQ_ENTRIES);
	int r = -EINVAL;

	for (size_t i = 0; i < ARRAY_SIZE(flag_sets) && r == -EINVAL; i++) {
		struct io_uring_params p = {
			.flags = flag_sets[i] | IORING_SETUP_CQSIZE |
				 IORING_SETUP_R_DISABLED,
			.cq_entries = pow2_at_least(depth + 2),
		};

		r = io_uring_queue_init_params(entries, ring, &p);
	}
	return r;
}

/*
 * A ring is a way around seccomp: its operations are no system calls. So it
 * takes only those that are used here, whoever writes to it. (Kernels before
 * 5.10 cannot do that; nor can they do without.)
 */
static int restrict_ring(struct io_uring *ring)
{
	static const uint8_t operations[] = {
		IORING_OP_READV,    IORING_OP_WRITEV,	    IORING_OP_READ,
		IORING_OP_WRITE,    IORING_OP_FSYNC,	    IORING_OP_FALLOCATE,
		IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
	};
	static const uint8_t registrations[] = {
		IORING_REGISTER_RING_FDS,
		IORING_UNREGISTER_RING_FDS,
	};
	struct io_uring_restriction
		list[ARRAY_SIZE(operations) + ARRAY_SIZE(registrations) + 1];
	unsigned int n = 0;

	memset(list, 0, sizeof(list));
	for (size_t i = 0; i < ARRAY_SIZE(operations); i++, n++) {
		list[n].opcode = IORING_RESTRICTION_SQE_OP;
		list[n].sqe_op = operations[i];
	}
	for (size_t i = 0; i < ARRAY_SIZE(registrations); i++, n++) {
		list[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		list[n].register_op = registrations[i];
	}
	list[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	list[n++].sqe_flags = IOSQE_FIXED_FILE | IOSQE_ASYNC;
	/* liburing 2.3 declares the function for it but does not export it. */
	return syscall(SYS_io_uring_register, ring->ring_fd,
		       IORING_REGISTER_RESTRICTIONS, list, n) < 0
		       ? -errno
		       : 0;
}

static void warn_no_uring(int error)
{
	static atomic_flag warned = ATOMIC_FLAG_INIT;

	if (atomic_flag_test_and_set(&warned))
		return;
	log_warn("io_uring is not available (%s%s): disks run synchronously "
		 "and slower",
		 strerror(-error),
		 error == -EPERM ? "; see sysctl kernel.io_uring_disabled"
				 : "");
}

int blockq_new(struct blockq **ret, struct blockdev *dev, unsigned int depth,
	       struct err *err)
{
	struct blockq *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return err_set(err, ENOMEM, "disk %s: out of memory",
			       dev->path);
	q->dev = dev;
	q->wake_fd = -1;
	q->lanes[LANE_DATA].limit = BLOCK_DATA_LIMIT;
	q->lanes[LANE_RANGE].limit = BLOCK_RANGE_LIMIT;
	r = ring_init(&q->ring, MAX(depth, 1u));
	if (!r) {
		r = io_uring_register_files(&q->ring, &dev->fd, 1);
		if (!r)
			r = restrict_ring(&q->ring);
		if (r)
			io_uring_queue_exit(&q->ring);
	}
	if (r) {
		warn_no_uring(r);
		q->sync = true;
	}
	*ret = q;
	return 0;
}

void blockq_free(struct blockq *q)
{
	if (!q)
		return;
	BUG_ON(q->inflight);
	if (!q->sync)
		io_uring_queue_exit(&q->ring);
	free(q->bounce);
	free(q);
}

unsigned int blockq_inflight(const struct blockq *q)
{
	return q->inflight;
}

void blockq_counts(const struct blockq *q, struct blockq_counts *ret)
{
	*ret = (struct blockq_counts){
		.steps = q->issued_steps,
		.bytes = q->issued_bytes,
		.peak_bytes = q->lanes[LANE_DATA].peak,
		.peak_range_steps = q->lanes[LANE_RANGE].peak,
	};
}

void blockq_cancel(struct blockq *q)
{
	/* Pairs with blockq_cancelled() on the queue's thread. */
	atomic_store_explicit(&q->cancelled, true, memory_order_release);
}

bool blockq_cancelled(const struct blockq *q)
{
	return atomic_load_explicit(&q->cancelled, memory_order_acquire);
}

static int enable(struct blockq *q)
{
	if (q->enabled)
		return 0;
	/* liburing 2.3 declares io_uring_enable_rings() but does not export it.
	 */
	if (syscall(SYS_io_uring_register, q->ring.ring_fd,
		    IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return -errno;
	q->enabled = true;
	/* Spares a file lookup in each call; fine without. */
	(void)io_uring_register_ring_fd(&q->ring);
	return 0;
}

static struct io_uring_sqe *get_sqe(struct blockq *q)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);

	if (!sqe && !enable(q) && io_uring_submit(&q->ring) > 0)
		sqe = io_uring_get_sqe(&q->ring);
	return sqe;
}

static void prep_step(struct io_uring_sqe *sqe, const struct block_step *s)
{
	switch (s->method) {
	case METHOD_RW:
	case METHOD_ZERO_WRITE:
		if (s->iov && s->write)
			io_uring_prep_writev(sqe, 0, s->iov, s->num_iov,
					     s->offset);
		else if (s->iov)
			io_uring_prep_readv(sqe, 0, s->iov, s->num_iov,
					    s->offset);
		else if (s->write)
			io_uring_prep_write(sqe, 0, s->buf, (unsigned)s->len,
					    s->offset);
		else
			io_uring_prep_read(sqe, 0, s->buf, (unsigned)s->len,
					   s->offset);
		break;
	case METHOD_SYNC:
		io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
		break;
	case METHOD_PUNCH:
	case METHOD_ZERO_RANGE:
		io_uring_prep_fallocate(sqe, 0, s->fallocate_mode,
					(off_t)s->offset, (off_t)s->len);
		break;
	case METHOD_DISCARD: /* never through the ring */
		break;
	}
	sqe->flags |= IOSQE_FIXED_FILE;
	if (s->force_async)
		sqe->flags |= IOSQE_ASYNC;
}

static struct lane *lane_of(struct blockq *q, const struct block_req *req)
{
	return &q->lanes[req->method == METHOD_RW || req->method == METHOD_SYNC
				 ? LANE_DATA
				 : LANE_RANGE];
}

/* What the current step uses up of its lane. */
static uint64_t charge_of(struct blockq *q, const struct block_req *req)
{
	return lane_of(q, req) == &q->lanes[LANE_DATA] ? req->step : 1;
}

/* However it ended: some of it may have been done. */
static void note_written(struct blockq *q, const struct block_req *req)
{
	if (req->op == BLOCK_READ || req->op == BLOCK_FLUSH)
		return;
	/* Not of one that was refused for being outside. */
	if (range_ok(req->offset, req->len, q->dev->size))
		block_track_note(&q->dev->track, req->offset, req->len);
}

static void finish(struct blockq *q, struct block_req *req, int result)
{
	if (q->bounce_owner == req) {
		struct block_req *next = list_pop(&q->bounce_wait);

		q->bounce_owner = next;
		if (next)
			list_push(&lane_of(q, next)->backlog, next);
	}
	q->inflight--;
	note_written(q, req);
	req->done(req, result);
}

static void prepare_step(struct blockq *q, struct block_req *req,
			 struct block_step *ret)
{
	block_step_prepare(q->dev, req, q->bounce, ret);
	q->issued_steps++;
	if (req->method == METHOD_RW || req->method == METHOD_ZERO_WRITE)
		q->issued_bytes += ret->len;
}

/* Give the next step to the ring; -EBUSY when that has to wait. */
static int issue_step(struct blockq *q, struct block_req *req)
{
	struct lane *lane = lane_of(q, req);
	struct io_uring_sqe *sqe;
	struct block_step step;

	if (lane->used >= lane->limit)
		return -EBUSY;
	sqe = get_sqe(q);
	if (!sqe) {
		q->ring_full = true;
		return -EBUSY;
	}
	prepare_step(q, req, &step);
	prep_step(sqe, &step);
	io_uring_sqe_set_data(sqe, req);
	lane->used += charge_of(q, req);
	lane->peak = MAX(lane->peak, lane->used);
	return 0;
}

/*
 * Make the request's next step happen, or all that are left where they block.
 * Returns 0 when the ring has it or it is finished; -EBUSY when it has to wait
 * in its lane.
 */
static int start_step(struct blockq *q, struct block_req *req)
{
	struct block_step step;
	int r;

	do {
		if (blockq_cancelled(q)) {
			r = -ECANCELED;
			break;
		}
		if (!q->sync && req->method != METHOD_DISCARD)
			return issue_step(q, req);
		prepare_step(q, req, &step);
		r = block_step_result(q->dev, &q->caps, req, q->bounce,
				      block_step_run(q->dev, &step));
	} while (r == 1);
	finish(q, req, r);
	return 0;
}

/* As start_step(), with the backlog for what does not fit now. */
static void start_or_queue(struct blockq *q, struct block_req *req)
{
	struct lane *lane = lane_of(q, req);

	if (lane->backlog.head || start_step(q, req))
		list_push(&lane->backlog, req);
}

static void run_lane(struct blockq *q, struct lane *lane)
{
	struct req_list list = lane->backlog;
	struct block_req *req;

	/* done() may submit: those requests go to the new, empty backlog. */
	lane->backlog = (struct req_list){ 0 };
	while ((req = list.head)) {
		struct block_req *next = req->next;

		if (start_step(q, req)) {
			/* Still full: what is left keeps its place in front. */
			if (lane->backlog.head) {
				list.tail->next = lane->backlog.head;
				list.tail = lane->backlog.tail;
			}
			lane->backlog = list;
			return;
		}
		list.head = next;
	}
}

/* What the kernel has not begun need not begin. */
static void cancel_issued(struct blockq *q)
{
	struct io_uring_sqe *sqe;

	if (q->sync || q->cancel_sent || !q->inflight)
		return;
	sqe = get_sqe(q);
	if (!sqe) {
		q->ring_full = true;
		return;
	}
	io_uring_prep_cancel64(
		sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
	sqe->user_data = CANCEL_TAG;
	q->cancel_sent = true;
}

/* Start what waits, as far as it fits, or end it. */
static void run_waiting(struct blockq *q)
{
	struct block_req *req;

	q->ring_full = false;
	if (blockq_cancelled(q))
		while ((req = list_pop(&q->bounce_wait)))
			finish(q, req, -ECANCELED);
	for (unsigned int i = 0; i < NUM_LANES; i++)
		run_lane(q, &q->lanes[i]);
	if (blockq_cancelled(q))
		cancel_issued(q);
}

/* 0 = go on, 1 = it waits for the buffer, -ENOMEM. */
static int claim_bounce(struct blockq *q, struct block_req *req)
{
	if (!q->bounce)
		q->bounce = aligned_alloc(PAGE_4K, BLOCK_BOUNCE_BYTES);
	if (!q->bounce)
		return -ENOMEM;
	if (q->bounce_owner) {
		list_push(&q->bounce_wait, req);
		return 1;
	}
	q->bounce_owner = req;
	return 0;
}

void blockq_submit(struct blockq *q, struct block_req *req)
{
	int r = block_step_init(q->dev, &q->caps, req);

	if (blockq_cancelled(q))
		r = -ECANCELED;
	q->inflight++;
	if (r || (req->len == 0 && req->op != BLOCK_FLUSH)) {
		finish(q, req, r);
		return;
	}
	if (req->bounced) {
		r = claim_bounce(q, req);
		if (r < 0)
			finish(q, req, r);
		if (r)
			return;
	}
	start_or_queue(q, req);
}

static void handle_completion(struct blockq *q, struct block_req *req, int res)
{
	int r;

	lane_of(q, req)->used -= charge_of(q, req);
	r = block_step_result(q->dev, &q->caps, req, q->bounce, res);
	if (r == 1)
		start_or_queue(q, req);
	else
		finish(q, req, r);
}

static void handle_wake(struct blockq *q, int res, unsigned int flags)
{
	q->wake_armed = flags & IORING_CQE_F_MORE;
	if (res == -ECANCELED) /* by cancel_issued() */
		return;
	if (res == -EINVAL && !q->oneshot_poll) {
		q->oneshot_poll = true;
		return;
	}
	q->woken = true;
	if (q->oneshot_poll)
		io_eventfd_drain(q->wake_fd);
}

static void reap(struct blockq *q)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&q->ring, &cqe)) {
		uint64_t data = cqe->user_data;
		unsigned int flags = cqe->flags;
		int res = cqe->res;

		io_uring_cqe_seen(&q->ring, cqe);
		if (data == WAKE_TAG)
			handle_wake(q, res, flags);
		else if (data != CANCEL_TAG)
			handle_completion(
				q, (struct block_req *)(uintptr_t)data, res);
	}
}

static void arm_wake(struct blockq *q, int wake_fd)
{
	struct io_uring_sqe *sqe;

	BUG_ON(q->wake_fd >= 0 && q->wake_fd != wake_fd);
	q->wake_fd = wake_fd;
	if (q->wake_armed || blockq_cancelled(q))
		return;
	sqe = get_sqe(q);
	if (!sqe)
		return;
	if (q->oneshot_poll)
		io_uring_prep_poll_add(sqe, wake_fd, POLLIN);
	else
		io_uring_prep_poll_multishot(sqe, wake_fd, POLLIN);
	sqe->user_data = WAKE_TAG;
	q->wake_armed = true;
}

/* Temporary refusals: the caller comes back after reaping. */
static int enter_error(int r)
{
	return r == -EINTR || r == -EAGAIN || r == -EBUSY ? 0 : r;
}

bool blockq_ready(const struct blockq *q)
{
	return !q->sync &&
	       (io_uring_cq_ready(&q->ring) ||
		(IO_URING_READ_ONCE(*q->ring.sq.kflags) & IORING_SQ_TASKRUN));
}

int blockq_poll(struct blockq *q)
{
	int r;

	if (q->sync) {
		run_waiting(q);
		return 0;
	}
	r = enable(q);
	if (r)
		return r;
	run_waiting(q);
	r = io_uring_submit_and_get_events(&q->ring);
	if (r < 0 && enter_error(r))
		return r;
	reap(q);
	return 0;
}

static int wait_sync(struct blockq *q, int wake_fd)
{
	struct pollfd pfd = { .fd = wake_fd, .events = POLLIN };
	int r;

	run_waiting(q);
	r = poll(&pfd, 1, q->inflight || blockq_cancelled(q) ? 0 : -1);
	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	return r > 0 && io_eventfd_drain(wake_fd) > 0;
}

/* Will the ring have an event for each reason to go on? */
static bool may_sleep(const struct blockq *q)
{
	if (io_uring_cq_ready(&q->ring) || q->ring_full)
		return false;
	for (unsigned int i = 0; i < NUM_LANES; i++)
		if (q->lanes[i].backlog.head && !q->lanes[i].used)
			return false;
	return blockq_cancelled(q) ? q->inflight : q->wake_armed;
}

int blockq_wait(struct blockq *q, int wake_fd)
{
	int r;

	if (q->sync)
		return wait_sync(q, wake_fd);
	r = enable(q);
	if (r)
		return r;
	arm_wake(q, wake_fd);
	run_waiting(q);
	r = may_sleep(q) ? io_uring_submit_and_wait(&q->ring, 1)
			 : io_uring_submit_and_get_events(&q->ring);
	if (r < 0 && enter_error(r))
		return r;
	reap(q);
	r = q->woken;
	q->woken = false;
	return r;
}
