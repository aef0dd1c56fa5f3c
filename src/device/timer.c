/* SPDX-License-Identifier: Apache-2.0 */
#include "device/timer.h"

#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/evloop.h"

static void timer_fired(void *ctx, uint32_t events)
{
	struct dev_timer *timer = ctx;
	uint64_t count;

	/* EAGAIN: cancelled or armed again since epoll saw it. */
	if (read(timer->fd, &count, sizeof(count)) == sizeof(count))
		timer->fn(timer->ctx);
}

int dev_timer_init(struct dev_timer *timer, struct evloop *loop,
		   clockid_t clock, void (*fn)(void *ctx), void *ctx)
{
	int r;

	*timer = (struct dev_timer){ .fd = -1, .fn = fn, .ctx = ctx };
	if (!loop)
		return 0;
	timer->fd = timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC);
	if (timer->fd < 0)
		return -errno;
	r = evloop_add(loop, timer->fd, EPOLLIN, timer_fired, timer);
	if (r) {
		close_fd(&timer->fd);
		return r;
	}
	timer->loop = loop;
	return 0;
}

void dev_timer_fini(struct dev_timer *timer)
{
	if (!timer->loop)
		return;
	evloop_del(timer->loop, timer->fd);
	close_fd(&timer->fd);
	timer->loop = NULL;
}

static void set_at(struct dev_timer *timer, uint64_t at_ns)
{
	struct itimerspec when = {
		.it_value = {
			.tv_sec = (time_t)(at_ns / NSEC_PER_SEC),
			.tv_nsec = (long)(at_ns % NSEC_PER_SEC),
		},
	};

	/* Absolute and valid values on an open timerfd cannot be refused. */
	if (timer->loop)
		timerfd_settime(timer->fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void dev_timer_arm(struct dev_timer *timer, uint64_t at_ns)
{
	/* Zero would disarm; a time beyond the clock's range is "never". */
	if (at_ns > INT64_MAX)
		at_ns = INT64_MAX;
	set_at(timer, at_ns ? at_ns : 1);
}

void dev_timer_cancel(struct dev_timer *timer)
{
	set_at(timer, 0);
}

uint64_t dev_clock_now(const struct dev_clock *clock, clockid_t fallback)
{
	struct timespec ts;

	if (clock->now_ns)
		return clock->now_ns(clock->ctx);
	clock_gettime(fallback, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}
