/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output of a character device on its way to the host: a bounded queue and the
 * thread that writes it out.
 *
 * A guest console emits a byte per port access. Each is only put into the
 * queue; the thread waits OUTQ_LINGER_NS after the first byte of a burst and
 * then writes all there is, so a burst costs one wake-up and one write(2), both
 * off the vCPU's path, and nothing waits longer than that.
 *
 * When the queue is full because its reader is slow:
 *	OUTQ_WAIT	the sender waits, so nothing is lost as long as the
 *			reader takes something every OUTQ_STALL_NS. If it does
 *			not, output is dropped until it reads again.
 *	OUTQ_KEEP_NEW	the oldest bytes are dropped, the sender never waits.
 *
 * Threads: any. The sink runs on the queue's thread, without a lock.
 */
#ifndef QUIRE_DEVICE_OUTQ_H
#define QUIRE_DEVICE_OUTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/thread_class.h"

#define OUTQ_BYTES     (64ul * 1024)
#define OUTQ_LINGER_NS 1000000ull
#define OUTQ_STALL_NS  5000000000ull

struct outq;

extern const struct thread_class outq_thread_class;

enum outq_full {
	OUTQ_WAIT,
	OUTQ_KEEP_NEW,
};

/*
 * Write all of data; may block. Returns 0, or a negative errno: the bytes count
 * as dropped then. But after -EPIPE nothing more is written at all, and -EAGAIN
 * keeps the bytes (the sink held the queue, and will be let go later).
 */
typedef int (*outq_sink_fn)(void *ctx, const uint8_t *data, size_t len);

/* Starts no thread yet: output is kept. */
__must_check int outq_new(struct outq **ret, enum outq_full full,
			  outq_sink_fn sink, void *ctx);
__must_check int outq_start(struct outq *q);

/*
 * Drop what is left and end the thread. NULL is fine. -EBUSY: the sink is stuck
 * in a write that nothing can end; the thread, q and the sink's ctx are then
 * left alone until the process ends.
 */
__must_check int outq_free(struct outq *q);

/* wait: may this call wait, if the queue is of that kind? */
void outq_put(struct outq *q, const uint8_t *data, size_t len, bool wait);

/* While held, the sink is not called. */
void outq_hold(struct outq *q, bool hold);

/* Wait until a running sink has returned. */
void outq_sync(struct outq *q);

/*
 * Wait until everything is written, as long as the reader takes something every
 * stall_ns. -ETIMEDOUT; -EIO when it never will be.
 */
int outq_flush(struct outq *q, uint64_t stall_ns);

/* With waiting off nobody waits in outq_put. Default: on. */
void outq_set_waiting(struct outq *q, bool waiting);

uint64_t outq_dropped(struct outq *q);

/*
 * Write what is queued to fd from a handler of a fatal signal: takes no lock
 * and may lose or repeat a little. Async-signal-safe.
 */
void outq_last_words(const struct outq *q, int fd);

#endif
