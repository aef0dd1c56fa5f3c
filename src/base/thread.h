/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named threads with all signals blocked except those a caller opens itself
 * (vCPU threads open the kick signal). Signals are handled by the control
 * thread through a signalfd.
 */
#ifndef QUIRE_BASE_THREAD_H
#define QUIRE_BASE_THREAD_H

#include <pthread.h>

#include "base/compiler.h"

/*
 * Start fn(arg) in a thread called name (cut to 15 characters, as the kernel
 * does). Returns 0 or a negative errno. The caller joins with pthread_join.
 */
__must_check int thread_start(pthread_t *ret_thread, const char *name,
			      void *(*fn)(void *), void *arg);

#endif
