/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/paging.h"

#include <errno.h>

#include "base/clock.h"
#include "mem/keeper.h"
#include "vm/memory.h"

void vm_paging_init(struct vm_paging *p)
{
	*p = (struct vm_paging){ .began_ns = clock_now_ns() };
	pthread_mutex_init(&p->lock, NULL);
}

void vm_paging_fini(struct vm_paging *p)
{
	vm_paging_stop(p);
	pthread_mutex_destroy(&p->lock);
}

/* ---- on the pager's threads ---- */

static uint64_t since_began(const struct vm_paging *p)
{
	return clock_now_ns() - p->began_ns;
}

static void tell(const struct vm_paging *p)
{
	if (p->event)
		p->event(p->event_ctx);
}

static void filled(void *ctx, struct gpa gpa, uint64_t len)
{
	struct vm_paging *p = ctx;
	struct keeper *keeper = atomic_load(&p->keeper);

	/* The keeper shall be done with the set soon: see map_ahead(). */
	if (atomic_load(&p->has_come) && atomic_load(&p->is_awaited))
		return;
	/* What the host has, and no more: it waits for nobody. */
	if (keeper)
		keeper_request(keeper, KEEPER_REPAIR, gpa, len);
}

static void source_failed(void *ctx, const struct err *err)
{
	struct vm_paging *p = ctx;

	pthread_mutex_lock(&p->lock);
	p->failed = true;
	p->error = *err;
	pthread_mutex_unlock(&p->lock);
	tell(p);
}

static void ahead_done(void *ctx)
{
	struct vm_paging *p = ctx;

	atomic_store(&p->has_come, true);
	pthread_mutex_lock(&p->lock);
	p->times.ahead = since_began(p);
	pthread_mutex_unlock(&p->lock);
}

static void all_done(void *ctx)
{
	struct vm_paging *p = ctx;

	pthread_mutex_lock(&p->lock);
	p->times.complete = since_began(p);
	pthread_mutex_unlock(&p->lock);
	tell(p);
}

/* ---- on the control thread ---- */

int vm_paging_start(struct vm_paging *p, struct ram *ram,
		    const struct vm_memory_origin *origin,
		    unsigned int num_vcpus, struct err *err)
{
	const struct pager_config cfg = {
		.ram = ram,
		.source = origin->source,
		.opener = origin->opener,
		.impatient = true,
		.sweep = !origin->fed,
		.num_vcpus = num_vcpus,
		.ahead = origin->ahead,
		.store = origin->store,
		.record = origin->record,
		.filled = filled,
		.failed = source_failed,
		.ahead_done = ahead_done,
		.all_done = all_done,
		.ctx = p,
	};
	int r;

	p->mode = origin->mode;
	p->began_ns = origin->began_ns;
	if (!origin->source)
		return 0;
	p->source = origin->source;
	atomic_store(&p->is_awaited, origin->ahead && origin->ahead->num);
	r = pager_new(&p->pager, &cfg, err);
	p->was_paged = !r;
	p->fed = origin->fed;
	p->recorded = !r && origin->record;
	return r;
}

/* The guest would fault for each page of it, with the same CPU. */
static void map_ahead(struct vm_paging *p, uint64_t until_ns)
{
	struct keeper *keeper = atomic_load(&p->keeper);
	uint64_t now = clock_now_ns();

	if (keeper && now < until_ns)
		(void)!keeper_wait_repaired(keeper, until_ns - now);
}

/*
 * Whether it comes in time does not matter. Afterwards the keeper looks at all
 * of memory: what came behind the set was not told, and is there.
 */
static void wait_ahead(struct vm_paging *p)
{
	uint64_t until = clock_now_ns() + VM_PAGING_AHEAD_NS;
	bool awaited = atomic_load(&p->is_awaited);
	struct keeper *keeper;
	/* It may all have come by now, and the pager be gone. */
	int r = p->pager ? pager_wait_ahead(p->pager, VM_PAGING_AHEAD_NS) : 0;

	if (!r && awaited)
		map_ahead(p, until);
	atomic_store(&p->is_awaited, false);
	keeper = atomic_load(&p->keeper);
	if (awaited && keeper)
		keeper_request(keeper, KEEPER_REPAIR, GPA(0), UINT64_MAX);
}

int vm_paging_let_go_on(struct vm_paging *p, struct err *err)
{
	bool failed, again;

	/* A failure is seen below. */
	if (p->was_paged && !p->times.go_on)
		wait_ahead(p);
	/* Before the look: what fails from here on lets the guest wait. */
	if (p->pager)
		pager_be_patient(p->pager);
	pthread_mutex_lock(&p->lock);
	again = p->times.go_on != 0;
	failed = p->failed;
	if (failed && !again && err)
		*err = p->error;
	if (again)
		p->failed = false;
	else if (!failed)
		p->times.go_on = since_began(p);
	pthread_mutex_unlock(&p->lock);
	if (failed && !again)
		return -EIO;
	if (failed && p->pager)
		pager_retry(p->pager);
	return 0;
}

bool vm_paging_failed(struct vm_paging *p, struct err *ret)
{
	bool failed;

	pthread_mutex_lock(&p->lock);
	failed = p->failed;
	if (failed && ret)
		*ret = p->error;
	pthread_mutex_unlock(&p->lock);
	return failed;
}

bool vm_paging_is_stuck(struct vm_paging *p)
{
	return vm_paging_failed(p, NULL) ||
	       (p->pager && p->source->ops->is_away &&
		p->source->ops->is_away(p->source->ctx));
}

bool vm_paging_is_active(struct vm_paging *p)
{
	return p->pager && !pager_is_complete(p->pager);
}

bool vm_paging_finish(struct vm_paging *p)
{
	if (!p->pager || p->recorded || !pager_is_complete(p->pager))
		return false;
	vm_paging_stop(p);
	return true;
}

int vm_paging_end_recording(struct vm_paging *p, struct working_set *ret)
{
	int r;

	if (!p->pager || !p->recorded)
		return -ENOENT;
	r = pager_end_recording(p->pager, ret);
	p->recorded = r < 0;
	return r;
}

bool vm_paging_is_recording(const struct vm_paging *p)
{
	return p->pager && p->recorded;
}

void vm_paging_stop(struct vm_paging *p)
{
	if (!p->pager)
		return;
	pager_end(p->pager);
	pager_read_stats(p->pager, &p->last);
	pager_free(p->pager);
	p->pager = NULL;
}

void vm_paging_read_stats(const struct vm_paging *p,
			  struct vm_paging_stats *ret)
{
	pthread_mutex_t *lock = (pthread_mutex_t *)&p->lock;

	*ret = (struct vm_paging_stats){
		.mode = p->mode,
		.was_paged = p->was_paged,
		.pager = p->last,
	};
	if (p->pager)
		pager_read_stats(p->pager, &ret->pager);
	pthread_mutex_lock(lock);
	ret->times = p->times;
	ret->failed = p->failed;
	ret->error = p->error;
	pthread_mutex_unlock(lock);
}
