/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/throttle.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/thread.h"
#include "vm/vcpu.h"

#define PERIOD_NS (THROTTLE_PERIOD_MS * NSEC_PER_MSEC)

struct vm_throttle {
	pthread_t thread;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	bool stop;
	struct vcpu *const *vcpus;
	unsigned int num;
	unsigned int percent[];
};

static void begin_period(struct vm_throttle *t, uint64_t now)
{
	for (unsigned int i = 0; i < t->num; i++) {
		if (t->percent[i])
			vcpu_nap_until(t->vcpus[i],
				       now + PERIOD_NS / 100 * t->percent[i]);
	}
}

static void wait_until(struct vm_throttle *t, uint64_t until_ns)
{
	bool more = true;

	while (more && !t->stop)
		more = cond_wait_until(&t->changed, &t->lock, until_ns);
}

/* Kicks are what every thread may do. */
const struct thread_class throttle_thread_class = {
	.name = "throttle",
	.what = "holds vCPUs back that write memory faster than it is sent",
};

static void *throttle_main(void *arg)
{
	struct vm_throttle *t = arg;

	pthread_mutex_lock(&t->lock);
	while (!t->stop) {
		uint64_t now = clock_now_ns();

		begin_period(t, now);
		wait_until(t, now + PERIOD_NS);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int vm_throttle_new(struct vm_throttle **ret, struct vcpu *const *vcpus,
		    unsigned int num)
{
	struct vm_throttle *t = calloc(1, sizeof(*t) +
						  num * sizeof(t->percent[0]));
	int r;

	if (!t)
		return -ENOMEM;
	t->vcpus = vcpus;
	t->num = num;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);
	r = thread_start(&t->thread, &throttle_thread_class, "throttle",
			 throttle_main, t);
	if (!r) {
		*ret = t;
		return 0;
	}
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
	free(t);
	return r;
}

void vm_throttle_free(struct vm_throttle *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->stop = true;
	pthread_cond_signal(&t->changed);
	pthread_mutex_unlock(&t->lock);
	pthread_join(t->thread, NULL);
	for (unsigned int i = 0; i < t->num; i++)
		vcpu_nap_until(t->vcpus[i], 0);
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

void vm_throttle_set(struct vm_throttle *t, unsigned int i,
		     unsigned int percent)
{
	pthread_mutex_lock(&t->lock);
	t->percent[i] = MIN(percent, THROTTLE_MAX_PERCENT);
	pthread_mutex_unlock(&t->lock);
}
