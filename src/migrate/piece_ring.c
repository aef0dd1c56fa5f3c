/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/piece_ring.h"

#include <string.h>

#include "base/cond.h"

void piece_ring_init(struct piece_ring *r, unsigned int num_readers)
{
	memset(r, 0, sizeof(*r));
	r->num_readers = num_readers;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->changed, NULL);
}

void piece_ring_fini(struct piece_ring *r)
{
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
}

static void stop_locked(struct piece_ring *r)
{
	atomic_store(&r->stop, true);
	pthread_cond_broadcast(&r->changed);
}

void piece_ring_stop(struct piece_ring *r)
{
	pthread_mutex_lock(&r->lock);
	stop_locked(r);
	pthread_mutex_unlock(&r->lock);
}

void piece_ring_fail(struct piece_ring *r, int error, const struct err *err)
{
	pthread_mutex_lock(&r->lock);
	if (!r->error) {
		r->error = error;
		r->err = *err;
	}
	stop_locked(r);
	pthread_mutex_unlock(&r->lock);
}

static int error_locked(const struct piece_ring *r, struct err *err)
{
	if (r->error && err)
		*err = r->err;
	return r->error;
}

int piece_ring_error(struct piece_ring *r, struct err *err)
{
	int error;

	pthread_mutex_lock(&r->lock);
	error = error_locked(r, err);
	pthread_mutex_unlock(&r->lock);
	return error;
}

/* ---- who takes ---- */

/* For all to have done so many pieces, and rounds. */
static bool all_have(const struct piece_ring *r, uint64_t pieces,
		     uint64_t rounds)
{
	for (unsigned int i = 0; i < r->num_readers; i++) {
		if (r->readers[i].done < pieces ||
		    r->readers[i].rounds < rounds)
			return false;
	}
	return true;
}

static bool wait_tick(struct piece_ring *r)
{
	return !cond_wait_until(&r->changed, &r->lock,
				clock_now_ns() + PIECE_RING_TICK_NS);
}

static int wait_for(struct piece_ring *r, uint64_t pieces, uint64_t rounds,
		    const struct piece_ring_tick *tick, struct err *err)
{
	int n = 0;

	pthread_mutex_lock(&r->lock);
	while (!n && !r->error && !all_have(r, pieces, rounds)) {
		if (!wait_tick(r))
			continue;
		pthread_mutex_unlock(&r->lock);
		n = tick->fn(tick->ctx, err);
		pthread_mutex_lock(&r->lock);
	}
	if (!n)
		n = error_locked(r, err);
	pthread_mutex_unlock(&r->lock);
	return n;
}

int piece_ring_room(struct piece_ring *r, struct piece **ret,
		    const struct piece_ring_tick *tick, struct err *err)
{
	*ret = &r->pieces[r->taken % PIECE_RING_NUM];
	return r->taken < PIECE_RING_NUM
		       ? 0
		       : wait_for(r, r->taken - PIECE_RING_NUM + 1, 0, tick,
				  err);
}

void piece_ring_publish(struct piece_ring *r)
{
	pthread_mutex_lock(&r->lock);
	r->taken++;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

int piece_ring_end_round(struct piece_ring *r,
			 const struct piece_ring_tick *tick, struct err *err)
{
	pthread_mutex_lock(&r->lock);
	r->rounds++;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return wait_for(r, 0, r->rounds, tick, err);
}

void piece_ring_end(struct piece_ring *r)
{
	pthread_mutex_lock(&r->lock);
	r->ended = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* ---- who sends ---- */

static bool find_work_locked(const struct piece_ring *r, unsigned int i,
			     enum piece_work *ret)
{
	const struct piece_reader *reader = &r->readers[i];

	if (atomic_load(&r->stop))
		*ret = PIECE_STOP;
	else if (reader->done < r->taken)
		*ret = PIECE_SEND;
	else if (reader->rounds < r->rounds)
		*ret = PIECE_END_ROUND;
	else if (r->ended)
		*ret = PIECE_END;
	else
		return false;
	return true;
}

enum piece_work piece_ring_next(struct piece_ring *r, unsigned int i,
				const struct piece **ret)
{
	enum piece_work work;

	pthread_mutex_lock(&r->lock);
	while (!find_work_locked(r, i, &work))
		pthread_cond_wait(&r->changed, &r->lock);
	*ret = &r->pieces[r->readers[i].done % PIECE_RING_NUM];
	pthread_mutex_unlock(&r->lock);
	return work;
}

void piece_ring_done(struct piece_ring *r, unsigned int i, enum piece_work what)
{
	struct piece_reader *reader = &r->readers[i];

	pthread_mutex_lock(&r->lock);
	if (what == PIECE_SEND)
		reader->done++;
	else if (what == PIECE_END_ROUND)
		reader->rounds++;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}
