/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named threads with all signals blocked except those a caller opens itself
 * (vCPU threads open the kick signal). Signals are handled by the control
 * thread through a signalfd. SIGSYS alone stays open: it is how a seccomp
 * filter reports (sandbox/trap.h), and is fatal where it is blocked.
 *
 * Each thread is of a class (base/thread_class.h), which says what system calls
 * it makes. With a sandbox entered it can make no others; without, the class is
 * a comment.
 */
#ifndef QUIRE_BASE_THREAD_H
#define QUIRE_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "base/thread_class.h"

#define THREAD_NAME_MAX 16 /* with the NUL; the kernel's limit */

struct thread_spec {
	const struct thread_class *cls;
	const char *name; /* cut to 15 characters */
	/*
	 * Runs first on the new thread, before it is confined: for what its
	 * class need not be allowed later (making an io_uring). A failure ends
	 * the thread and is thread_create()'s result. May be NULL.
	 */
	int (*prepare)(void *arg);
	void *(*run)(void *arg);
	void *arg;
};

/*
 * Start a thread; returns when it is prepared and confined, 0 or a negative
 * errno. Any thread may call it. The caller joins with pthread_join.
 */
__must_check int thread_create(pthread_t *ret_thread,
			       const struct thread_spec *spec);

/* The same without a preparation. */
__must_check int thread_start(pthread_t *ret_thread,
			      const struct thread_class *cls, const char *name,
			      void *(*fn)(void *), void *arg);

/*
 * Of the calling thread. "main" and NULL on the one that runs main(). They make
 * no system call and are safe in a signal handler.
 */
const char *thread_own_name(void);
const struct thread_class *thread_own_class(void);

/* For the thread that runs main(): take that name and class. */
void thread_adopt(const struct thread_class *cls, const char *name);

/*
 * What a sandbox does for threads to come. Set once, by sandbox_enter(), while
 * there are no other threads, for the rest of the process's life.
 */
struct thread_cage {
	/*
	 * pthread_create(3), in the name of a thread that may: a new thread
	 * inherits its creator's confinement, which is not to be any caller's.
	 */
	int (*create)(pthread_t *ret, const pthread_attr_t *attr,
		      void *(*fn)(void *), void *arg);
	/* Confine the calling thread as its class says. 0 or -errno. */
	int (*confine)(const struct thread_class *cls);
	bool may_exec; /* programs can still be started */
};

void thread_set_cage(const struct thread_cage *cage);

/* Is the process confined? It has no capabilities, then. */
bool thread_is_caged(void);

/* May it start programs? Unless it is confined so that it cannot. */
bool thread_may_exec(void);

#endif
