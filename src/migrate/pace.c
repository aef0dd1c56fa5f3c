/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/pace.h"

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"

void pace_init(struct pace *p, uint64_t bytes_per_s)
{
	p->bytes_per_s = bytes_per_s;
	p->free_at_ns = 0;
	atomic_init(&p->released, false);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->changed, NULL);
}

void pace_fini(struct pace *p)
{
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
}

void pace_release(struct pace *p)
{
	pthread_mutex_lock(&p->lock);
	atomic_store(&p->released, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

uint64_t pace_use(struct pace *p, uint64_t bytes)
{
	uint64_t now, until;

	if (!p->bytes_per_s || atomic_load(&p->released))
		return 0;
	now = clock_now_ns();
	pthread_mutex_lock(&p->lock);
	until = MAX(p->free_at_ns, now) +
		(uint64_t)((double)bytes * 1e9 / (double)p->bytes_per_s);
	p->free_at_ns = until;
	pthread_mutex_unlock(&p->lock);
	return until;
}

bool pace_wait_until(struct pace *p, uint64_t ns)
{
	bool more = true;

	pthread_mutex_lock(&p->lock);
	while (more && !atomic_load(&p->released))
		more = cond_wait_until(&p->changed, &p->lock, ns);
	pthread_mutex_unlock(&p->lock);
	return !more;
}
