/* SPDX-License-Identifier: Apache-2.0 */
#include "base/thread.h"

#include <signal.h>

/*
 * The guest-facing threads run no deep recursion; 256 KiB is several times
 * what any of them uses and keeps a many-vCPU VM's overhead small.
 */
#define THREAD_STACK_BYTES ((size_t)256 * 1024)

int thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *),
		 void *arg)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return -r;
	r = pthread_attr_setstacksize(&attr, THREAD_STACK_BYTES);
	if (r) {
		pthread_attr_destroy(&attr);
		return -r;
	}
	/* The new thread inherits the mask: block before it can run. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&thread, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r)
		return -r;
	pthread_setname_np(thread, name);
	*ret_thread = thread;
	return 0;
}
