/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A ring of OUTQ_BYTES with two counters that only grow;
 * their difference is what is queued. The thread copies a chunk out and
 * advances the tail before it calls the sink, so OUTQ_KEEP_NEW may overwrite
 * the ring while a slow sink is still busy. "busy" says that the sink has a
 * chunk, for those who wait until all is written.
 *
 * The sender wakes the thread only if it sleeps with nothing to do; while it
 * lingers or writes, putting a byte is a lock, a store and an unlock.
 */
#include "device/outq.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/thread.h"

#define OUTQ_CHUNK 4096
/* How long outq_free waits for a sink. It is a write(2) that may be stuck. */
#define OUTQ_JOIN_S 1

struct outq {
	outq_sink_fn sink;
	void *ctx;
	enum outq_full full;
	bool started; /* the control thread's */
	pthread_t thread;

	pthread_mutex_t lock; /* everything below */
	pthread_cond_t work;  /* the thread: something to write, or to stop */
	pthread_cond_t moved; /* others: the sink returned */
	uint64_t head, tail;
	uint64_t dropped;
	uint64_t written;      /* chunks: how often the sink returned */
	unsigned int flushing; /* callers of outq_flush: do not linger */
	bool idle;	       /* the thread sleeps and wants a signal */
	bool busy;	       /* the sink has a chunk */
	bool hold;
	bool stop;
	bool no_wait;
	bool stalled; /* gave up waiting; cleared by progress */
	bool broken;  /* nobody will ever read */
	uint8_t ring[OUTQ_BYTES];
};

static uint64_t queued(const struct outq *q)
{
	return q->head - q->tail;
}

static void copy_in_locked(struct outq *q, const uint8_t *data, size_t len)
{
	size_t at = q->head % OUTQ_BYTES;
	size_t first = MIN(len, OUTQ_BYTES - at);

	memcpy(q->ring + at, data, first);
	memcpy(q->ring, data + first, len - first);
	q->head += len;
	if (q->idle && !q->hold) {
		q->idle = false;
		pthread_cond_signal(&q->work);
	}
}

static size_t take_locked(struct outq *q, uint8_t *chunk)
{
	size_t len = MIN(queued(q), (uint64_t)OUTQ_CHUNK);
	size_t at = q->tail % OUTQ_BYTES;
	size_t first = MIN(len, OUTQ_BYTES - at);

	memcpy(chunk, q->ring + at, first);
	memcpy(chunk + first, q->ring, len - first);
	q->tail += len;
	return len;
}

/* Put back the last len bytes taken, save what was overwritten since. */
static void untake_locked(struct outq *q, size_t len)
{
	q->tail -= len;
	if (queued(q) > OUTQ_BYTES) {
		q->dropped += queued(q) - OUTQ_BYTES;
		q->tail = q->head - OUTQ_BYTES;
	}
}

/* -- the thread -- */

static void linger_locked(struct outq *q)
{
	struct timespec ts = { .tv_nsec = OUTQ_LINGER_NS };

	pthread_mutex_unlock(&q->lock);
	nanosleep(&ts, NULL); /* all signals are blocked: no EINTR */
	pthread_mutex_lock(&q->lock);
}

static bool has_work_locked(const struct outq *q)
{
	return !q->hold && !q->broken && queued(q);
}

static void write_chunk_locked(struct outq *q)
{
	uint8_t chunk[OUTQ_CHUNK];
	size_t len = take_locked(q, chunk);
	uint64_t dropped = 0;
	int r;

	q->busy = true;
	pthread_mutex_unlock(&q->lock);
	r = q->sink(q->ctx, chunk, len);
	pthread_mutex_lock(&q->lock);
	q->busy = false;
	if (r == -EAGAIN)
		untake_locked(q, len);
	else if (r < 0)
		q->dropped += len;
	if (r == -EPIPE) {
		q->broken = true;
		q->dropped += queued(q);
		q->tail = q->head;
	}
	q->written++;
	if (q->stalled)
		dropped = q->dropped;
	q->stalled = false;
	pthread_cond_broadcast(&q->moved);
	if (dropped) {
		/* Not earlier: stderr may have been as stuck as this. */
		pthread_mutex_unlock(&q->lock);
		log_warn("console output was not being read; %llu bytes lost",
			 (unsigned long long)dropped);
		pthread_mutex_lock(&q->lock);
	}
}

static const struct thread_call outq_calls[] = {
	CALL(clock_nanosleep), /* lingering */
	/* The sinks of the chardevs: files and terminals with write(2). */
	RARE("--serial socket=", sendto),
	RARE("output that does not block", poll),
};

const struct thread_class outq_thread_class = {
	.name = "output",
	.what = "writes a serial port's or console's output to the host",
	THREAD_CALLS(outq_calls),
};

static void *outq_thread(void *arg)
{
	struct outq *q = arg;

	pthread_mutex_lock(&q->lock);
	while (!q->stop) {
		if (!has_work_locked(q)) {
			q->idle = true;
			pthread_cond_wait(&q->work, &q->lock);
			q->idle = false;
			continue;
		}
		if (queued(q) < OUTQ_CHUNK && !q->flushing)
			linger_locked(q);
		if (!q->stop && has_work_locked(q))
			write_chunk_locked(q);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

/* -- senders -- */

/*
 * Wait for the sink to return once more. False when it did not for timeout_ns,
 * or when it is no use to wait. sender: outq_set_waiting() ends it too.
 */
static bool wait_for_progress_locked(struct outq *q, uint64_t timeout_ns,
				     bool sender)
{
	uint64_t written = q->written;
	uint64_t until = clock_now_ns() + timeout_ns;

	while (q->written == written) {
		if (!q->started || q->broken || q->hold ||
		    (sender && q->no_wait))
			return false;
		if (!cond_wait_until(&q->moved, &q->lock, until))
			return q->written != written;
	}
	return true;
}

/* Wait for some room. False: drop. */
static bool wait_for_room_locked(struct outq *q)
{
	while (queued(q) == OUTQ_BYTES) {
		if (q->no_wait || q->stalled)
			return false;
		if (!wait_for_progress_locked(q, OUTQ_STALL_NS, true)) {
			q->stalled = q->started && !q->no_wait;
			return false;
		}
	}
	return true;
}

static void put_waiting_locked(struct outq *q, const uint8_t *data, size_t len,
			       bool wait)
{
	while (len) {
		size_t n = MIN(len, (size_t)(OUTQ_BYTES - queued(q)));

		if (!n && (!wait || !wait_for_room_locked(q))) {
			q->dropped += len;
			return;
		}
		copy_in_locked(q, data, n);
		data += n;
		len -= n;
	}
}

static void put_keeping_new_locked(struct outq *q, const uint8_t *data,
				   size_t len)
{
	uint64_t over;

	if (len > OUTQ_BYTES) {
		q->dropped += len - OUTQ_BYTES;
		data += len - OUTQ_BYTES;
		len = OUTQ_BYTES;
	}
	over = queued(q) + len;
	if (over > OUTQ_BYTES) {
		q->dropped += over - OUTQ_BYTES;
		q->tail += over - OUTQ_BYTES;
	}
	copy_in_locked(q, data, len);
}

void outq_put(struct outq *q, const uint8_t *data, size_t len, bool wait)
{
	pthread_mutex_lock(&q->lock);
	if (q->broken)
		q->dropped += len;
	else if (q->full == OUTQ_KEEP_NEW)
		put_keeping_new_locked(q, data, len);
	else
		put_waiting_locked(q, data, len, wait);
	pthread_mutex_unlock(&q->lock);
}

/* -- control -- */

int outq_new(struct outq **ret, enum outq_full full, outq_sink_fn sink,
	     void *ctx)
{
	struct outq *q = malloc(sizeof(*q));

	if (!q)
		return -ENOMEM;
	/* Not the ring, most of which is never written, nor read then. */
	memset(q, 0, offsetof(struct outq, ring));
	q->full = full;
	q->sink = sink;
	q->ctx = ctx;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->work, NULL);
	pthread_cond_init(&q->moved, NULL);
	*ret = q;
	return 0;
}

int outq_start(struct outq *q)
{
	int r = thread_start(&q->thread, &outq_thread_class, "output",
			     outq_thread, q);

	if (r)
		return r;
	pthread_mutex_lock(&q->lock);
	q->started = true;
	pthread_mutex_unlock(&q->lock);
	return 0;
}

int outq_free(struct outq *q)
{
	struct timespec until;

	if (!q)
		return 0;
	if (q->started) {
		pthread_mutex_lock(&q->lock);
		q->stop = true;
		pthread_cond_signal(&q->work);
		pthread_mutex_unlock(&q->lock);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += OUTQ_JOIN_S;
		if (pthread_timedjoin_np(q->thread, NULL, &until)) {
			pthread_detach(q->thread);
			return -EBUSY;
		}
	}
	pthread_cond_destroy(&q->work);
	pthread_cond_destroy(&q->moved);
	pthread_mutex_destroy(&q->lock);
	free(q);
	return 0;
}

void outq_hold(struct outq *q, bool hold)
{
	pthread_mutex_lock(&q->lock);
	q->hold = hold;
	if (!hold)
		pthread_cond_signal(&q->work);
	pthread_mutex_unlock(&q->lock);
}

void outq_sync(struct outq *q)
{
	pthread_mutex_lock(&q->lock);
	while (q->busy)
		pthread_cond_wait(&q->moved, &q->lock);
	pthread_mutex_unlock(&q->lock);
}

int outq_flush(struct outq *q, uint64_t stall_ns)
{
	int r = 0;

	pthread_mutex_lock(&q->lock);
	q->flushing++;
	while (!r && (queued(q) || q->busy)) {
		if (!q->started || q->hold)
			r = -EIO;
		else if (!wait_for_progress_locked(q, stall_ns, false) &&
			 !q->broken)
			r = -ETIMEDOUT;
	}
	q->flushing--;
	if (!r && q->broken)
		r = -EIO;
	pthread_mutex_unlock(&q->lock);
	return r;
}

void outq_set_waiting(struct outq *q, bool waiting)
{
	pthread_mutex_lock(&q->lock);
	q->no_wait = !waiting;
	pthread_cond_broadcast(&q->moved);
	pthread_mutex_unlock(&q->lock);
}

uint64_t outq_dropped(struct outq *q)
{
	uint64_t dropped;

	pthread_mutex_lock(&q->lock);
	dropped = q->dropped;
	pthread_mutex_unlock(&q->lock);
	return dropped;
}

/* It races with the other threads by its nature: they no longer matter. */
__attribute__((no_sanitize("thread"))) void
outq_last_words(const struct outq *q, int fd)
{
	uint64_t tail = q->tail, left = q->head - tail;

	if (left > OUTQ_BYTES) /* caught in the middle of an update */
		return;
	while (left) {
		size_t at = tail % OUTQ_BYTES;
		ssize_t n = write(fd, q->ring + at, MIN(left, OUTQ_BYTES - at));

		if (n <= 0)
			return;
		tail += (uint64_t)n;
		left -= (uint64_t)n;
	}
}
