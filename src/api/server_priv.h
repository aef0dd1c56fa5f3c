/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What server.c (threads, connections, time) and request.c (one request, from
 * headers to answer) share.
 */
#ifndef QUIRE_API_SERVER_PRIV_H
#define QUIRE_API_SERVER_PRIV_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/events.h"
#include "api/route.h"
#include "base/unix_socket.h"

struct api_request;

struct api_conn;

/*
 * A listener's answer. Whether MHD ends the answer or the connection first is
 * its business: each lets go of the other.
 */
struct api_stream {
	struct api_conn *conn; /* NULL: closed */
	struct api_listener *listener;
};

/* HTTP thread only. */
struct api_conn {
	struct api_conn *next, **at;
	struct MHD_Connection *mhd;
	int fd;			   /* MHD's */
	uint64_t deadline_ns;	   /* then it is cut off; 0: never */
	bool suspended;		   /* MHD leaves it alone */
	bool gone;		   /* the listener hung up */
	struct api_stream *stream; /* NULL: it does not listen */
};

/* Requests that one thread carries out, in order. */
struct api_lane {
	struct api_server *server;
	pthread_t thread;
	bool has_thread;
	pthread_cond_t work; /* waiting is not empty, or closing */
	struct api_request *waiting,
		**waiting_end; /* under the server's lock */
};

/* So that a snapshot, which takes its time, stands in nobody's way. */
enum api_lane_id {
	API_LANE_VERBS,
	API_LANE_WORK, /* API_WORK */
};
#define API_NUM_LANES 2

struct api_server {
	struct vmm *vmm;
	struct unix_listener socket;
	struct api_events *events;
	struct MHD_Daemon *daemon;
	int wake_fd; /* for the HTTP thread */
	pthread_t http_thread;
	bool has_http;
	struct api_lane lanes[API_NUM_LANES];

	/* HTTP thread only. */
	struct api_conn *conns;
	unsigned int num_requests; /* begun, and not ended */
	bool made_room;		   /* a connection was closed */

	pthread_mutex_t lock;
	/* Under the lock. */
	struct api_request *done; /* by a lane, for the HTTP thread */
	bool closing; /* no verb is begun any more; send answers, then end */
};

/* One request. The HTTP thread's, but while a lane has it. */
struct api_request {
	struct api_server *server;
	struct api_conn *conn;
	struct api_request *next;
	struct api_route route; /* valid when status is 0 */
	char *data;
	size_t len, capacity;
	uint64_t announced;  /* Content-Length, or 0 */
	uint64_t received;   /* of the body, what was dropped included */
	bool decided;	     /* status and text are final */
	unsigned int status; /* HTTP; 0: not known yet */
	struct err err;	     /* what is wrong with it */
	json_t *body;
	struct api_call call;
};

/* MHD's callbacks. */
enum MHD_Result api_request_step(void *server, struct MHD_Connection *mhd,
				 const char *url, const char *method,
				 const char *version, const char *upload,
				 size_t *upload_size, void **request);
void api_request_end(void *server, struct MHD_Connection *mhd, void **request,
		     enum MHD_RequestTerminationCode code);

/* The verb itself. A lane's thread. refuse: quire is ending. */
void api_request_carry_out(struct api_request *q, bool refuse);

/* For request.c. HTTP thread. */
void api_server_submit(struct api_server *s, struct api_request *q);
void api_server_suspend(struct api_conn *conn);
void api_conn_set_deadline(struct api_conn *conn, unsigned int seconds);

#endif
