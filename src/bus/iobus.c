/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The ranges are a sorted array that never moves, looked
 * up by binary search: every exit comes through here, while ranges change only
 * when a guest programs a BAR. So the array is under a sequence counter: odd
 * while a writer (one at a time, by the mutex) shifts entries. A reader copies
 * the entry it found and starts over if the counter moved meanwhile; it takes
 * no lock and writes nothing that other vCPUs share.
 *
 * Ordering without fences: the writer stores each field with release after it
 * made the counter odd, and the reader loads each with acquire before it looks
 * at the counter again. A reader that saw any new field therefore sees the
 * counter odd or newer, and retries.
 *
 * A reader may be about to call a device whose range was just moved: that is
 * the guest's race, and the device still exists. Before a device is freed,
 * iobus_quiesce() waits for such readers, as sleepable RCU does. Each access
 * counts itself in and out, in one of two columns (the current phase) of a row
 * that few other threads share.
 *
 * Proof: a reader counts itself in (acquire) before it looks the range up. The
 * waiter, after the removal, looks at each count with a read-modify-write that
 * adds nothing (acquire and release). Both are in that count's one order of
 * changes. If the reader's came first, the waiter sees it and waits for the
 * count to fall to zero, which a reader's leaving (release) brings about. If
 * the waiter's came first, the reader synchronises with it and finds the range
 * gone. The phase serves only that an unbroken stream of new readers cannot
 * hold up the waiter: while it waits for one column, new ones count in the
 * other.
 */
#include "bus/iobus.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"

/* Every BAR of every slot, and the fixed devices of a PC. */
#define IOBUS_MAX_RANGES 256

struct iobus_range {
	_Atomic uint64_t base;
	_Atomic uint64_t size;
	const struct iobus_ops *_Atomic ops;
	void *_Atomic dev;
};

/* Rows of reader counts; a power of two. A thread takes that of its CPU. */
#define IOBUS_READER_ROWS 32
#define QUIESCE_POLL_NS	  50000

struct iobus_readers {
	alignas(64) _Atomic uint32_t in[2]; /* by phase */
};

struct iobus {
	pthread_mutex_t lock; /* writers */
	_Atomic uint32_t seq;
	_Atomic uint32_t num;
	struct iobus_range ranges[IOBUS_MAX_RANGES];
	pthread_mutex_t quiesce_lock; /* phase */
	_Atomic uint32_t phase;
	struct iobus_readers readers[IOBUS_READER_ROWS];
};

/* What a reader takes away from the array. */
struct iobus_hit {
	const struct iobus_ops *ops;
	void *dev;
	uint64_t offset;
	uint64_t size;
};

#define GET(field) atomic_load_explicit(&(field), memory_order_acquire)
#define PUT(field, value) \
	atomic_store_explicit(&(field), value, memory_order_release)

int iobus_new(struct iobus **ret_bus)
{
	struct iobus *bus = aligned_alloc(alignof(struct iobus), sizeof(*bus));

	if (!bus)
		return -ENOMEM;
	memset(bus, 0, sizeof(*bus));
	pthread_mutex_init(&bus->lock, NULL);
	pthread_mutex_init(&bus->quiesce_lock, NULL);
	*ret_bus = bus;
	return 0;
}

void iobus_free(struct iobus *bus)
{
	if (!bus)
		return;
	pthread_mutex_destroy(&bus->quiesce_lock);
	pthread_mutex_destroy(&bus->lock);
	free(bus);
}

/* How many ranges start at or below addr. */
static uint32_t upper_bound(const struct iobus *bus, uint64_t addr)
{
	/* A torn count is harmless: it is within the array, and is retried. */
	uint32_t lo = 0, hi = GET(bus->num);

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (GET(bus->ranges[mid].base) <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void copy_range(struct iobus_range *to, struct iobus_range *from)
{
	PUT(to->base, GET(from->base));
	PUT(to->size, GET(from->size));
	PUT(to->ops, GET(from->ops));
	PUT(to->dev, GET(from->dev));
}

static void write_begin(struct iobus *bus)
{
	atomic_fetch_add_explicit(&bus->seq, 1, memory_order_relaxed);
}

static void write_end(struct iobus *bus)
{
	atomic_fetch_add_explicit(&bus->seq, 1, memory_order_release);
}

static void insert_at(struct iobus *bus, uint32_t at, uint64_t base,
		      uint64_t size, const struct iobus_ops *ops, void *dev)
{
	uint32_t num = GET(bus->num);
	struct iobus_range *range = &bus->ranges[at];

	write_begin(bus);
	for (uint32_t i = num; i > at; i--)
		copy_range(&bus->ranges[i], &bus->ranges[i - 1]);
	PUT(range->base, base);
	PUT(range->size, size);
	PUT(range->ops, ops);
	PUT(range->dev, dev);
	PUT(bus->num, num + 1);
	write_end(bus);
}

int iobus_add(struct iobus *bus, uint64_t base, uint64_t size,
	      const struct iobus_ops *ops, void *dev)
{
	uint64_t last;
	uint32_t at;
	int r = 0;

	if (!size || !add_u64(base, size - 1, &last))
		return -EINVAL;
	pthread_mutex_lock(&bus->lock);
	at = upper_bound(bus, last);
	/* The only candidate for overlap: the last one that starts by then. */
	if (at && GET(bus->ranges[at - 1].base) +
				  (GET(bus->ranges[at - 1].size) - 1) >=
			  base)
		r = -EEXIST;
	else if (GET(bus->num) == IOBUS_MAX_RANGES)
		r = -ENOSPC;
	else
		insert_at(bus, at, base, size, ops, dev);
	pthread_mutex_unlock(&bus->lock);
	return r;
}

void iobus_remove(struct iobus *bus, uint64_t base, void *dev)
{
	uint32_t num, at;

	pthread_mutex_lock(&bus->lock);
	num = GET(bus->num);
	at = upper_bound(bus, base);
	if (at && GET(bus->ranges[at - 1].base) == base &&
	    GET(bus->ranges[at - 1].dev) == dev) {
		write_begin(bus);
		for (uint32_t i = at; i < num; i++)
			copy_range(&bus->ranges[i - 1], &bus->ranges[i]);
		PUT(bus->num, num - 1);
		write_end(bus);
	}
	pthread_mutex_unlock(&bus->lock);
}

static bool lookup_once(const struct iobus *bus, uint64_t addr,
			struct iobus_hit *hit)
{
	uint32_t at = upper_bound(bus, addr);
	const struct iobus_range *range;

	if (!at)
		return false;
	range = &bus->ranges[at - 1];
	hit->offset = addr - GET(range->base);
	hit->size = GET(range->size);
	hit->ops = GET(range->ops);
	hit->dev = GET(range->dev);
	return true;
}

static bool lookup(const struct iobus *bus, uint64_t addr, uint32_t len,
		   struct iobus_hit *hit)
{
	uint32_t seq;
	bool found;

	/* Faults of KVM's emulator at page borders come in other lengths. */
	if (len > 8 || !is_pow2(len))
		return false;
	for (;;) {
		seq = GET(bus->seq);
		if (seq & 1) {
			sched_yield(); /* the writer may be off its CPU */
			continue;
		}
		found = lookup_once(bus, addr, hit);
		if (atomic_load_explicit(&bus->seq, memory_order_relaxed) ==
		    seq)
			break;
	}
	return found && range_ok(hit->offset, len, hit->size);
}

/* ---- readers under way ---- */

static _Atomic uint32_t *reader_enter(struct iobus *bus)
{
	unsigned int row = (unsigned int)sched_getcpu() % IOBUS_READER_ROWS;
	uint32_t phase = GET(bus->phase) & 1;
	_Atomic uint32_t *in = &bus->readers[row].in[phase];

	atomic_fetch_add_explicit(in, 1, memory_order_acquire);
	return in;
}

/* Release: what the reader did to a device is over when the count is seen. */
static void reader_leave(_Atomic uint32_t *in)
{
	atomic_fetch_sub_explicit(in, 1, memory_order_release);
}

static void wait_for_column(struct iobus *bus, uint32_t phase)
{
	const struct timespec pause = { .tv_nsec = QUIESCE_POLL_NS };

	for (unsigned int row = 0; row < IOBUS_READER_ROWS; row++)
		while (atomic_fetch_add_explicit(&bus->readers[row].in[phase],
						 0, memory_order_acq_rel))
			nanosleep(&pause, NULL);
}

void iobus_quiesce(struct iobus *bus)
{
	pthread_mutex_lock(&bus->quiesce_lock);
	for (int column = 0; column < 2; column++) {
		uint32_t old = GET(bus->phase);

		PUT(bus->phase, old + 1);
		wait_for_column(bus, old & 1);
	}
	pthread_mutex_unlock(&bus->quiesce_lock);
}

bool iobus_read(struct iobus *bus, uint64_t addr, void *data, uint32_t len)
{
	_Atomic uint32_t *in = reader_enter(bus);
	struct iobus_hit hit;
	bool found = lookup(bus, addr, len, &hit);

	if (found)
		hit.ops->read(hit.dev, hit.offset, data, len);
	else
		memset(data, 0xff, len);
	reader_leave(in);
	return found;
}

bool iobus_write(struct iobus *bus, uint64_t addr, const void *data,
		 uint32_t len)
{
	_Atomic uint32_t *in = reader_enter(bus);
	struct iobus_hit hit;
	bool found = lookup(bus, addr, len, &hit);

	if (found)
		hit.ops->write(hit.dev, hit.offset, data, len);
	reader_leave(in);
	return found;
}
