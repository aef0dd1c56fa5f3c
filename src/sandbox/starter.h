/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that creates all others.
 *
 * A thread inherits the filter of its creator, and filters only add up. If the
 * vCPU on which a driver enables a disk created the disk's thread itself, that
 * could do no more than a vCPU, or a vCPU would need all that any device does.
 * So one thread, which does nothing else, stands in for them: it is confined to
 * what is allowed to any class, and to creating threads; no other may do that.
 */
#ifndef QUIRE_SANDBOX_STARTER_H
#define QUIRE_SANDBOX_STARTER_H

#include <pthread.h>

#include "base/err.h"
#include "base/thread_class.h"

extern const struct thread_class sandbox_starter_class;

/*
 * Once. confine is called on it first, with its class. Its signals are those
 * that thread_create() leaves open.
 */
__must_check int
sandbox_starter_init(int (*confine)(const struct thread_class *cls),
		     struct err *err);

/* See struct thread_cage. Any thread. */
__must_check int sandbox_starter_create(pthread_t *ret,
					const pthread_attr_t *attr,
					void *(*fn)(void *), void *arg);

#endif
