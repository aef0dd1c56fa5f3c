/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/ratelimit.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"

/* Debts beyond this are forgiven: nothing may stop for longer. */
#define MAX_DEBT_NS ((int64_t)(RATELIMIT_MAX_REFILL_MS * NSEC_PER_MSEC))

int ratelimit_check_bucket(const struct ratelimit_bucket_config *cfg,
			   const char *name, struct err *err)
{
	if (cfg->size && !cfg->refill_ms)
		return err_set(err, EINVAL,
			       "%s_size= wants %s_refill_time= (milliseconds)",
			       name, name);
	if (!cfg->size && (cfg->refill_ms || cfg->one_time_burst))
		return err_set(err, EINVAL, "%s_size= is missing", name);
	if (cfg->refill_ms > RATELIMIT_MAX_REFILL_MS)
		return err_set(err, EINVAL, "%s_refill_time= is above a day",
			       name);
	return 0;
}

static void bucket_init(struct ratelimit_bucket *b,
			const struct ratelimit_bucket_config *cfg)
{
	*b = (struct ratelimit_bucket){
		.size = cfg->size,
		.burst = cfg->one_time_burst,
		.refill_ns = cfg->refill_ms * NSEC_PER_MSEC,
		.level_ns = (int64_t)(cfg->refill_ms * NSEC_PER_MSEC),
	};
}

static void bucket_fill(struct ratelimit_bucket *b, uint64_t passed_ns)
{
	uint64_t room = (uint64_t)((int64_t)b->refill_ns - b->level_ns);

	b->level_ns += (int64_t)MIN(room, passed_ns);
}

/* The time that the last token of a bucket takes to come. */
static int64_t token_ns(const struct ratelimit_bucket *b)
{
	return (int64_t)MAX(div_round_up(b->refill_ns, b->size), (uint64_t)1);
}

static uint64_t bucket_wait(const struct ratelimit_bucket *b)
{
	if (!b->size || b->burst || b->level_ns >= token_ns(b))
		return 0;
	return (uint64_t)(token_ns(b) - b->level_ns);
}

static void bucket_take(struct ratelimit_bucket *b, uint64_t tokens)
{
	uint64_t from_burst = MIN(tokens, b->burst);
	unsigned __int128 cost;
	uint64_t ns;

	if (!b->size)
		return;
	b->burst -= from_burst;
	cost = (unsigned __int128)(tokens - from_burst) * b->refill_ns +
	       b->rest;
	b->rest = (uint64_t)(cost % b->size);
	cost /= b->size;
	ns = cost > (uint64_t)MAX_DEBT_NS ? (uint64_t)MAX_DEBT_NS
					  : (uint64_t)cost;
	b->level_ns = MAX(b->level_ns - (int64_t)ns, -MAX_DEBT_NS);
}

static void fill_locked(struct ratelimit *r, uint64_t now_ns)
{
	/* Threads may come with times taken in another order. */
	if (now_ns <= r->last_ns)
		return;
	bucket_fill(&r->bw, now_ns - r->last_ns);
	bucket_fill(&r->ops, now_ns - r->last_ns);
	r->last_ns = now_ns;
}

void ratelimit_init(struct ratelimit *r, const struct ratelimit_config *cfg,
		    uint64_t now_ns)
{
	memset(r, 0, sizeof(*r));
	r->on = cfg->bw.size || cfg->ops.size;
	r->last_ns = now_ns;
	pthread_mutex_init(&r->lock, NULL);
	bucket_init(&r->bw, &cfg->bw);
	bucket_init(&r->ops, &cfg->ops);
}

void ratelimit_fini(struct ratelimit *r)
{
	pthread_mutex_destroy(&r->lock);
}

uint64_t ratelimit_wait(struct ratelimit *r, uint64_t now_ns)
{
	uint64_t bw, ops;

	if (!r->on)
		return 0;
	pthread_mutex_lock(&r->lock);
	fill_locked(r, now_ns);
	bw = bucket_wait(&r->bw);
	ops = bucket_wait(&r->ops);
	pthread_mutex_unlock(&r->lock);
	return MAX(bw, ops);
}

void ratelimit_take(struct ratelimit *r, uint64_t bytes, uint64_t now_ns)
{
	if (!r->on)
		return;
	pthread_mutex_lock(&r->lock);
	fill_locked(r, now_ns);
	bucket_take(&r->bw, bytes);
	bucket_take(&r->ops, 1);
	pthread_mutex_unlock(&r->lock);
}
