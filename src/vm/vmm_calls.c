/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command queue. A caller puts an entry, which lives on its own stack, into
 * the queue, wakes the loop, and sleeps on the entry's condition. The control
 * thread takes entries off one by one and runs them without the lock; a caller
 * does not leave before its entry is done, so the entry cannot vanish.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "vm/vmm_priv.h"

struct vmm_call_entry {
	struct vmm_call_entry *next;
	int (*fn)(struct vmm *v, void *arg, struct err *err);
	void *arg;
	struct err *err;
	pthread_cond_t finished;
	bool done;
	int result;
};

static struct vmm_call_entry *take_first_locked(struct vmm_calls *calls)
{
	struct vmm_call_entry *entry = calls->first;

	if (!entry)
		return NULL;
	calls->first = entry->next;
	if (!calls->first)
		calls->last = &calls->first;
	return entry;
}

static void finish_locked(struct vmm_call_entry *entry, int result)
{
	entry->result = result;
	entry->done = true;
	pthread_cond_signal(&entry->finished);
}

static int refuse(struct err *err)
{
	return err_set(err, ESHUTDOWN, "quire is ending");
}

/* One at a time: the loop looks at signals in between. */
static void on_call(void *ctx, uint32_t events)
{
	struct vmm *v = ctx;
	struct vmm_calls *calls = &v->calls;
	struct vmm_call_entry *entry;
	int r;

	io_eventfd_drain(calls->event_fd);
	pthread_mutex_lock(&calls->lock);
	entry = take_first_locked(calls);
	if (calls->first)
		io_eventfd_signal(calls->event_fd);
	pthread_mutex_unlock(&calls->lock);
	if (!entry)
		return;
	r = v->ending ? refuse(entry->err)
		      : entry->fn(v, entry->arg, entry->err);
	pthread_mutex_lock(&calls->lock);
	finish_locked(entry, r);
	pthread_mutex_unlock(&calls->lock);
}

int vmm_calls_open(struct vmm *v)
{
	struct vmm_calls *calls = &v->calls;

	calls->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (calls->event_fd < 0)
		return -errno;
	return evloop_add(v->loop, calls->event_fd, EPOLLIN, on_call, v);
}

void vmm_calls_close(struct vmm *v)
{
	vmm_interrupt_calls(v);
	close_fd(&v->calls.event_fd);
	pthread_mutex_destroy(&v->calls.lock);
}

void vmm_interrupt_calls(struct vmm *v)
{
	struct vmm_calls *calls = &v->calls;
	struct vmm_call_entry *entry;

	pthread_mutex_lock(&calls->lock);
	calls->closed = true;
	while ((entry = take_first_locked(calls)))
		finish_locked(entry, refuse(entry->err));
	pthread_mutex_unlock(&calls->lock);
}

bool vmm_is_ending(struct vmm *v)
{
	bool closed;

	pthread_mutex_lock(&v->calls.lock);
	closed = v->calls.closed;
	pthread_mutex_unlock(&v->calls.lock);
	return closed;
}

int vmm_call(struct vmm *v,
	     int (*fn)(struct vmm *v, void *arg, struct err *err), void *arg,
	     struct err *err)
{
	struct vmm_call_entry entry = { .fn = fn, .arg = arg, .err = err };
	struct vmm_calls *calls = &v->calls;

	if (pthread_equal(pthread_self(), v->control))
		return fn(v, arg, err);
	pthread_cond_init(&entry.finished, NULL);
	pthread_mutex_lock(&calls->lock);
	if (calls->closed) {
		entry.result = refuse(err);
		entry.done = true;
	} else {
		*calls->last = &entry;
		calls->last = &entry.next;
		io_eventfd_signal(calls->event_fd);
	}
	while (!entry.done)
		pthread_cond_wait(&entry.finished, &calls->lock);
	pthread_mutex_unlock(&calls->lock);
	pthread_cond_destroy(&entry.finished);
	return entry.result;
}
