/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small epoll loop for one thread (the control thread: signals, terminal
 * input, API). Handlers run on that thread only. evloop_stop() may be called
 * from any thread; everything else only from the loop's own, or before it runs.
 */
#ifndef QUIRE_BASE_EVLOOP_H
#define QUIRE_BASE_EVLOOP_H

#include <stdint.h>

#include "base/compiler.h"

struct evloop;

/* events is the EPOLL* mask that fired. */
typedef void (*evloop_fn)(void *ctx, uint32_t events);

__must_check int evloop_new(struct evloop **ret_loop);

/* NULL is fine. Does not close the registered descriptors. */
void evloop_free(struct evloop *loop);

/* fd stays the caller's and is registered once. EPOLLIN etc.; level triggered.
 */
__must_check int evloop_add(struct evloop *loop, int fd, uint32_t events,
			    evloop_fn fn, void *ctx);

/* Safe from inside a handler, for its own fd or another. Unknown fd: ignored.
 */
void evloop_del(struct evloop *loop, int fd);

/*
 * Runs until evloop_stop(), which may have come already; returns its code, or a
 * negative errno. The stop is used up: the loop may run again.
 */
__must_check int evloop_run(struct evloop *loop);

/* The first call since the last run decides the code (>= 0). */
void evloop_stop(struct evloop *loop, int code);

#endif
