/* SPDX-License-Identifier: Apache-2.0 */
#include "api/events.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "base/arith.h"
#include "base/clock.h"

struct api_listener {
	struct api_events *hub;
	/* Under the hub's lock. */
	char *queue;
	size_t start, len, capacity;
	uint64_t lost;
	bool last_line; /* that events were lost is in the queue */
};

struct api_events {
	uint64_t start_ns;
	pthread_mutex_t lock;
	bool ended;
	struct api_listener *listeners[API_MAX_LISTENERS];
};

int api_events_new(struct api_events **ret)
{
	struct api_events *hub = calloc(1, sizeof(*hub));

	if (!hub)
		return -ENOMEM;
	hub->start_ns = clock_now_ns();
	pthread_mutex_init(&hub->lock, NULL);
	*ret = hub;
	return 0;
}

void api_events_free(struct api_events *hub)
{
	if (!hub)
		return;
	pthread_mutex_destroy(&hub->lock);
	free(hub);
}

/* With its newline; NULL: out of memory, or no UTF-8. */
static char *format_line(const struct api_events *hub, const char *source,
			 const char *event, const json_t *properties)
{
	uint64_t ns = clock_now_ns() - hub->start_ns;
	json_t *root = json_pack("{s:{s:I, s:I}, s:s, s:s, s:O?}", "timestamp",
				 "secs", (json_int_t)(ns / NSEC_PER_SEC),
				 "nanos", (json_int_t)(ns % NSEC_PER_SEC),
				 "source", source, "event", event, "properties",
				 (json_t *)properties);
	char *text, *line = NULL;

	if (!root)
		return NULL;
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (text && asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	free(text);
	return line;
}

static bool make_room(struct api_listener *l, size_t len)
{
	size_t capacity = MAX(l->capacity, (size_t)1024);
	char *bigger;

	if (l->start) {
		memmove(l->queue, l->queue + l->start, l->len);
		l->start = 0;
	}
	while (capacity < l->len + len)
		capacity *= 2;
	if (capacity == l->capacity)
		return true;
	bigger = realloc(l->queue, capacity);
	if (!bigger)
		return false;
	l->queue = bigger;
	l->capacity = capacity;
	return true;
}

static bool append(struct api_listener *l, const char *line)
{
	size_t len = strlen(line);

	if (l->start + l->len + len > l->capacity && !make_room(l, len))
		return false;
	memcpy(l->queue + l->start + l->len, line, len);
	l->len += len;
	return true;
}

void api_events_publish(struct api_events *hub, const char *source,
			const char *event, const json_t *properties)
{
	char *line = format_line(hub, source, event, properties);

	pthread_mutex_lock(&hub->lock);
	for (size_t i = 0; i < API_MAX_LISTENERS; i++) {
		struct api_listener *l = hub->listeners[i];

		if (!l || hub->ended)
			continue;
		/* Behind a gap there is nothing more: a reader could not tell.
		 */
		if (!line || l->lost ||
		    l->len + strlen(line) > API_QUEUE_BYTES || !append(l, line))
			l->lost++;
	}
	pthread_mutex_unlock(&hub->lock);
	free(line);
}

void api_events_end(struct api_events *hub)
{
	pthread_mutex_lock(&hub->lock);
	hub->ended = true;
	pthread_mutex_unlock(&hub->lock);
}

int api_listener_new(struct api_events *hub, struct api_listener **ret)
{
	struct api_listener *l = calloc(1, sizeof(*l));
	int r = -EUSERS;

	if (!l)
		return -ENOMEM;
	l->hub = hub;
	pthread_mutex_lock(&hub->lock);
	for (size_t i = 0; r && i < API_MAX_LISTENERS; i++) {
		if (!hub->listeners[i]) {
			hub->listeners[i] = l;
			r = 0;
		}
	}
	pthread_mutex_unlock(&hub->lock);
	if (r)
		free(l);
	else
		*ret = l;
	return r;
}

void api_listener_free(struct api_listener *l)
{
	if (!l)
		return;
	pthread_mutex_lock(&l->hub->lock);
	for (size_t i = 0; i < API_MAX_LISTENERS; i++) {
		if (l->hub->listeners[i] == l)
			l->hub->listeners[i] = NULL;
	}
	pthread_mutex_unlock(&l->hub->lock);
	free(l->queue);
	free(l);
}

enum api_listener_state api_listener_state(struct api_listener *l)
{
	enum api_listener_state state = API_LISTENER_EMPTY;

	pthread_mutex_lock(&l->hub->lock);
	if (l->lost)
		state = API_LISTENER_LATE;
	else if (l->len || l->hub->ended)
		state = API_LISTENER_READY;
	pthread_mutex_unlock(&l->hub->lock);
	return state;
}

/* The queue is empty and events were lost: say so, once. */
static void add_last_line(struct api_listener *l)
{
	json_t *properties = json_pack("{s:I}", "lost", (json_int_t)l->lost);
	char *line = format_line(l->hub, "api", "dropped", properties);

	if (line)
		(void)append(l, line);
	l->last_line = true;
	free(line);
	json_decref(properties);
}

ssize_t api_listener_read(struct api_listener *l, char *buf, size_t size)
{
	ssize_t n = 0;

	pthread_mutex_lock(&l->hub->lock);
	if (!l->len && l->lost && !l->last_line)
		add_last_line(l);
	if (l->len) {
		n = (ssize_t)MIN(size, l->len);
		memcpy(buf, l->queue + l->start, (size_t)n);
		l->start += (size_t)n;
		l->len -= (size_t)n;
		if (!l->len)
			l->start = 0;
	} else if (l->last_line || l->hub->ended) {
		n = -ENODATA;
	}
	pthread_mutex_unlock(&l->hub->lock);
	return n;
}
