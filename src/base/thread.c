/* SPDX-License-Identifier: Apache-2.0 */
#include "base/thread.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>

/*
 * The guest-facing threads run no deep recursion; 256 KiB is several times
 * what any of them uses and keeps a many-vCPU VM's overhead small.
 */
#define THREAD_STACK_BYTES ((size_t)256 * 1024)

const struct thread_class thread_class_tool = {
	.name = "tool",
	.what = "a measuring tool, never confined",
};

/* Process-wide, as what it stands for is. Written once, see the header. */
static _Atomic(const struct thread_cage *) thread_cage;

static _Thread_local char own_name[THREAD_NAME_MAX] = "main";
static _Thread_local const struct thread_class *own_class;

/* On the creator's stack, until the thread has posted ready. */
struct launch {
	const struct thread_spec *spec;
	sem_t ready;
	int result;
};

void thread_set_cage(const struct thread_cage *cage)
{
	atomic_store(&thread_cage, cage);
}

bool thread_is_caged(void)
{
	return atomic_load(&thread_cage) != NULL;
}

bool thread_may_exec(void)
{
	const struct thread_cage *cage = atomic_load(&thread_cage);

	return !cage || cage->may_exec;
}

const char *thread_own_name(void)
{
	return own_name;
}

const struct thread_class *thread_own_class(void)
{
	return own_class;
}

void thread_adopt(const struct thread_class *cls, const char *name)
{
	strncpy(own_name, name, sizeof(own_name) - 1);
	own_name[sizeof(own_name) - 1] = '\0';
	own_class = cls;
}

static int confine(const struct thread_class *cls)
{
	const struct thread_cage *cage = atomic_load(&thread_cage);

	return cage ? cage->confine(cls) : 0;
}

static void *thread_main(void *arg)
{
	struct launch *launch = arg;
	struct thread_spec spec = *launch->spec;
	int r;

	thread_adopt(spec.cls, spec.name);
	/* Here and not from outside, which would be a file of /proc. */
	prctl(PR_SET_NAME, own_name);
	r = spec.prepare ? spec.prepare(spec.arg) : 0;
	if (!r)
		r = confine(spec.cls);
	launch->result = r;
	sem_post(&launch->ready); /* launch is gone from here on */
	return r ? NULL : spec.run(spec.arg);
}

/* The new thread inherits the mask: block before it can run. */
static int create_masked(pthread_t *ret, const pthread_attr_t *attr,
			 struct launch *launch)
{
	const struct thread_cage *cage = atomic_load(&thread_cage);
	sigset_t most, old;
	int r;

	if (cage)
		return cage->create(ret, attr, thread_main, launch);
	sigfillset(&most);
	sigdelset(&most, SIGSYS);
	pthread_sigmask(SIG_SETMASK, &most, &old);
	r = -pthread_create(ret, attr, thread_main, launch);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

int thread_create(pthread_t *ret_thread, const struct thread_spec *spec)
{
	struct launch launch = { .spec = spec };
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return -r;
	r = -pthread_attr_setstacksize(&attr, THREAD_STACK_BYTES);
	sem_init(&launch.ready, 0, 0);
	if (!r)
		r = create_masked(&thread, &attr, &launch);
	pthread_attr_destroy(&attr);
	if (!r) {
		while (sem_wait(&launch.ready) && errno == EINTR)
			;
		r = launch.result;
		if (r)
			pthread_join(thread, NULL);
		else
			*ret_thread = thread;
	}
	sem_destroy(&launch.ready);
	return r;
}

int thread_start(pthread_t *ret_thread, const struct thread_class *cls,
		 const char *name, void *(*fn)(void *), void *arg)
{
	const struct thread_spec spec = {
		.cls = cls,
		.name = name,
		.run = fn,
		.arg = arg,
	};

	return thread_create(ret_thread, &spec);
}
