/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/starter.h"

#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/prctl.h>

#include "base/thread.h"

static const struct thread_call calls[] = {
	CALL_MASK(clone, 0, CLONE_THREAD, CLONE_THREAD, "CLONE_THREAD"),
	/* First steps of a new thread: the C library's, then ours. */
	CALL(rseq),
	CALL(set_robust_list),
	CALL_ARG(prctl, 0, PR_SET_NAME),
	CALL_ARG(seccomp, 0, SECCOMP_SET_MODE_FILTER),
};

const struct thread_class sandbox_starter_class = {
	.name = "starter",
	.what = "creates all other threads",
	THREAD_CALLS(calls),
};

/* One request at a time; it lives on the stack of who asks. */
struct request {
	pthread_t *ret;
	const pthread_attr_t *attr;
	void *(*fn)(void *);
	void *arg;
	int result;
	bool done;
};

static struct {
	pthread_mutex_t lock; /* request */
	pthread_cond_t changed;
	struct request *request;
} starter = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.changed = PTHREAD_COND_INITIALIZER,
};

static void *starter_main(void *arg)
{
	pthread_mutex_lock(&starter.lock);
	for (;;) {
		struct request *req = starter.request;

		if (!req) {
			pthread_cond_wait(&starter.changed, &starter.lock);
			continue;
		}
		req->result = -pthread_create(req->ret, req->attr, req->fn,
					      req->arg);
		req->done = true;
		starter.request = NULL;
		pthread_cond_broadcast(&starter.changed);
	}
	return NULL;
}

int sandbox_starter_create(pthread_t *ret, const pthread_attr_t *attr,
			   void *(*fn)(void *), void *arg)
{
	struct request req = {
		.ret = ret,
		.attr = attr,
		.fn = fn,
		.arg = arg,
	};

	pthread_mutex_lock(&starter.lock);
	while (starter.request)
		pthread_cond_wait(&starter.changed, &starter.lock);
	starter.request = &req;
	pthread_cond_broadcast(&starter.changed);
	while (!req.done)
		pthread_cond_wait(&starter.changed, &starter.lock);
	pthread_mutex_unlock(&starter.lock);
	return req.result;
}

static int (*confine_starter)(const struct thread_class *cls);

static int prepare(void *arg)
{
	return confine_starter(&sandbox_starter_class);
}

int sandbox_starter_init(int (*confine)(const struct thread_class *cls),
			 struct err *err)
{
	const struct thread_spec spec = {
		.cls = &sandbox_starter_class,
		.name = "starter",
		.prepare = prepare,
		.run = starter_main,
	};
	pthread_t thread;
	int r;

	confine_starter = confine;
	r = thread_create(&thread, &spec);
	/* It lives as long as the process. */
	return r ? err_errno(err, -r, "starting the thread that starts others")
		 : 0;
}
