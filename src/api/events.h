/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events on their way from the control thread to those who listen through the
 * API: JSON lines, in a queue for each listener. Publishing never waits. A
 * listener that does not read loses what does not fit into its queue, gets what
 * is in there, one last line that says how much is missing, and the end.
 *
 * Threads: publish and end from any, the rest from the server's. One lock, held
 * for copies only.
 *
 * A line is Cloud Hypervisor's event monitor's:
 *	{"timestamp": {"secs": N, "nanos": N}, "source": "vm",
 *	 "event": "booted", "properties": {...} or null}
 * with the time since the hub was made.
 */
#ifndef QUIRE_API_EVENTS_H
#define QUIRE_API_EVENTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/compiler.h"

#define API_MAX_LISTENERS 16
#define API_QUEUE_BYTES	  ((size_t)256 * 1024) /* of a listener */

struct api_events;
struct api_listener;

__must_check int api_events_new(struct api_events **ret);
/* No listener is left. NULL is fine. */
void api_events_free(struct api_events *hub);

/* properties is borrowed and may be NULL. */
void api_events_publish(struct api_events *hub, const char *source,
			const char *event, const json_t *properties);
/* No more of them: listeners get what they still have, then the end. */
void api_events_end(struct api_events *hub);

/* -EUSERS: API_MAX_LISTENERS are there. -ENOMEM. */
__must_check int api_listener_new(struct api_events *hub,
				  struct api_listener **ret);
void api_listener_free(struct api_listener *l);

enum api_listener_state {
	API_LISTENER_EMPTY,
	API_LISTENER_READY, /* api_listener_read() gives something, or the end
			     */
	API_LISTENER_LATE,  /* the same, and it has lost events */
};

enum api_listener_state api_listener_state(struct api_listener *l);

/* Up to size bytes of lines. 0: none now. -ENODATA: none ever again. */
ssize_t api_listener_read(struct api_listener *l, char *buf, size_t size);

#endif
