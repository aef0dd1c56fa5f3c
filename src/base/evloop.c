/* SPDX-License-Identifier: Apache-2.0 */
#include "base/evloop.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/io.h"

/*
 * Theory of operation. Watches live in a list and are found by fd through
 * epoll's data pointer. A handler may delete any watch, including one whose
 * event is already in the batch being delivered: a deleted watch is only
 * marked dead and freed after the batch.
 */
struct watch {
	struct watch *next;
	int fd;
	bool dead;
	evloop_fn fn;
	void *ctx;
};

struct evloop {
	int epoll_fd;
	int wake_fd;
	struct watch *watches; /* owner: the loop's thread */
	pthread_mutex_t lock;  /* stopped, code */
	bool stopped;
	int code;
};

int evloop_new(struct evloop **ret_loop)
{
	struct evloop *loop = calloc(1, sizeof(*loop));
	struct epoll_event ev = { .events = EPOLLIN };
	int r;

	if (!loop)
		return -ENOMEM;
	pthread_mutex_init(&loop->lock, NULL);
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
	    epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &ev)) {
		r = -errno;
		evloop_free(loop);
		return r;
	}
	*ret_loop = loop;
	return 0;
}

void evloop_free(struct evloop *loop)
{
	struct watch *w;

	if (!loop)
		return;
	while ((w = loop->watches)) {
		loop->watches = w->next;
		free(w);
	}
	close_fd(&loop->epoll_fd);
	close_fd(&loop->wake_fd);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

int evloop_add(struct evloop *loop, int fd, uint32_t events, evloop_fn fn,
	       void *ctx)
{
	struct watch *w = calloc(1, sizeof(*w));
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (!w)
		return -ENOMEM;
	w->fd = fd;
	w->fn = fn;
	w->ctx = ctx;
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
		int r = -errno;

		free(w);
		return r;
	}
	w->next = loop->watches;
	loop->watches = w;
	return 0;
}

void evloop_del(struct evloop *loop, int fd)
{
	for (struct watch *w = loop->watches; w; w = w->next) {
		if (w->fd != fd || w->dead)
			continue;
		w->dead = true;
		epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return;
	}
}

static void reap_dead(struct evloop *loop)
{
	struct watch **link = &loop->watches;

	while (*link) {
		struct watch *w = *link;

		if (w->dead) {
			*link = w->next;
			free(w);
		} else {
			link = &w->next;
		}
	}
}

static bool take_stop(struct evloop *loop, int *ret_code)
{
	bool stopped;

	pthread_mutex_lock(&loop->lock);
	stopped = loop->stopped;
	*ret_code = loop->code;
	loop->stopped = false;
	pthread_mutex_unlock(&loop->lock);
	return stopped;
}

int evloop_run(struct evloop *loop)
{
	struct epoll_event evs[16];
	int code;

	while (!take_stop(loop, &code)) {
		int n = epoll_wait(loop->epoll_fd, evs, ARRAY_SIZE(evs), -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			struct watch *w = evs[i].data.ptr;

			if (!w)
				io_eventfd_drain(loop->wake_fd);
			else if (!w->dead)
				w->fn(w->ctx, evs[i].events);
		}
		reap_dead(loop);
	}
	return code;
}

void evloop_stop(struct evloop *loop, int code)
{
	pthread_mutex_lock(&loop->lock);
	if (!loop->stopped) {
		loop->stopped = true;
		loop->code = code;
	}
	pthread_mutex_unlock(&loop->lock);
	io_eventfd_signal(loop->wake_fd);
}
