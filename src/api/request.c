/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request. libmicrohttpd calls api_request_step() when the headers are
 * there, for each piece of the body, and when that is complete. Then the verb
 * is handed to the verb thread and the connection suspended; resumed, the same
 * function is called once more and sends the answer.
 *
 * A body that is refused is read to its end all the same (up to API_MAX_DRAIN),
 * since many clients send all of it before they look for an answer.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/body.h"
#include "api/server.h"
#include "api/server_priv.h"
#include "base/arith.h"
#include "base/log.h"
#include "version.h"
#include "vm/vmm.h"

static const char too_large[] = "the body is larger than 1 MiB";

static unsigned int status_of(int r)
{
	switch (-r) {
	case 0:
		return MHD_HTTP_OK;
	case EINVAL:
	case ENAMETOOLONG:
	case EOPNOTSUPP:
	case ERANGE:
		return MHD_HTTP_BAD_REQUEST;
	case ENOENT:
	case ENODEV:
		return MHD_HTTP_NOT_FOUND;
	case EBADFD:
	case EEXIST:
	case EBUSY:
	case ENOSPC:
		return MHD_HTTP_CONFLICT;
	case EUSERS:
		return MHD_HTTP_TOO_MANY_REQUESTS;
	case ESHUTDOWN:
		return MHD_HTTP_SERVICE_UNAVAILABLE;
	default:
		return MHD_HTTP_INTERNAL_SERVER_ERROR;
	}
}

/* For the first thing that is wrong; what follows from it is not said. */
static void refuse(struct api_request *q, unsigned int status, const char *text)
{
	if (q->status)
		return;
	q->status = status;
	(void)err_set(&q->err, EINVAL, "%s", text);
}

/* ---- headers ---- */

static void find_route(struct api_request *q, const char *method,
		       const char *url)
{
	struct err err;
	int r = api_route_find(method, url, &q->route);

	if (r == -ENOENT) {
		(void)err_set(&err, ENOENT, "%.100s: no such path", url);
		refuse(q, MHD_HTTP_NOT_FOUND, err.text);
	} else if (r) {
		(void)err_set(&err, EPERM, "%s takes %s, not %.20s",
			      q->route.path, q->route.method, method);
		refuse(q, MHD_HTTP_METHOD_NOT_ALLOWED, err.text);
	}
}

/*
 * Cloud Hypervisor does not look at the type. Here a client that says it sends
 * something else than JSON is believed, but for curl -d, which says "form"
 * unless told otherwise.
 */
static bool accepts_type(const char *type)
{
	static const char *const types[] = {
		"application/json",
		"application/x-www-form-urlencoded",
	};
	size_t len;

	if (!type)
		return true;
	len = strcspn(type, "; \t");
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		if (len == strlen(types[i]) &&
		    !strncasecmp(type, types[i], len))
			return true;
	}
	return false;
}

static const char *header(struct MHD_Connection *mhd, const char *name)
{
	return MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, name);
}

static void check_headers(struct api_request *q, struct MHD_Connection *mhd)
{
	const char *length = header(mhd, MHD_HTTP_HEADER_CONTENT_LENGTH);

	if (MHD_get_connection_values(mhd, MHD_GET_ARGUMENT_KIND, NULL, NULL))
		refuse(q, MHD_HTTP_BAD_REQUEST,
		       "no path here takes a query (?...)");
	if (!accepts_type(header(mhd, MHD_HTTP_HEADER_CONTENT_TYPE)))
		refuse(q, MHD_HTTP_UNSUPPORTED_MEDIA_TYPE,
		       "Content-Type: only application/json is understood");
	/* MHD has checked that it is a number. */
	q->announced = length ? strtoull(length, NULL, 10) : 0;
	if (q->announced > API_MAX_BODY)
		refuse(q, MHD_HTTP_CONTENT_TOO_LARGE, too_large);
}

/* Is the client better told before it sends its body? */
static bool answer_early(const struct api_request *q,
			 struct MHD_Connection *mhd)
{
	return q->status && (header(mhd, MHD_HTTP_HEADER_EXPECT) ||
			     q->announced > API_MAX_DRAIN);
}

static struct api_request *begin(struct api_server *s,
				 struct MHD_Connection *mhd, const char *url,
				 const char *method)
{
	struct api_request *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->server = s;
	q->conn = MHD_get_connection_info(mhd,
					  MHD_CONNECTION_INFO_SOCKET_CONTEXT)
			  ->socket_context;
	if (!q->conn) {
		free(q);
		return NULL;
	}
	s->num_requests++;
	find_route(q, method, url);
	check_headers(q, mhd);
	return q;
}

/* ---- body ---- */

static bool make_room(struct api_request *q, size_t len)
{
	size_t capacity = MAX(q->capacity, (size_t)4096);
	char *bigger;

	while (capacity < len)
		capacity *= 2;
	if (capacity == q->capacity)
		return true;
	bigger = realloc(q->data, capacity);
	if (!bigger)
		return false;
	q->data = bigger;
	q->capacity = capacity;
	return true;
}

/* false: hang up. */
static bool take_body(struct api_request *q, const char *upload, size_t len)
{
	q->received += len;
	if (q->received > API_MAX_BODY)
		refuse(q, MHD_HTTP_CONTENT_TOO_LARGE, too_large);
	if (q->status)
		return q->received <= API_MAX_DRAIN;
	if (!make_room(q, q->len + len))
		return false;
	memcpy(q->data + q->len, upload, len);
	q->len += len;
	return true;
}

/* ---- the verb ---- */

static int out_of_memory(struct err *err)
{
	return err_set(err, ENOMEM, "out of memory");
}

/*
 * For a verb on the control thread, rendering included: an answer may hold
 * parts of the VM's configuration, which the next verb changes.
 */
static int handle(struct vmm *vmm, void *arg, struct err *err)
{
	struct api_request *q = arg;
	struct api_call *call = &q->call;
	int r = q->route.handle(vmm, call, err);

	if (!r && q->route.render)
		r = q->route.render(call) ? out_of_memory(err) : 0;
	else if (!r && call->reply) {
		call->text = json_dumps(call->reply, JSON_COMPACT);
		r = call->text ? 0 : out_of_memory(err);
	}
	json_decref(call->reply);
	call->reply = NULL;
	return r;
}

void api_request_carry_out(struct api_request *q, bool refused)
{
	struct err err = ERR_INIT;
	int r;

	q->call.cls = q->route.cls;
	q->call.body = q->body;
	if (refused)
		r = err_set(&err, ESHUTDOWN, "quire is ending");
	else if (q->route.kind == API_WORK)
		r = handle(q->server->vmm, q, &err);
	else
		r = vmm_call(q->server->vmm, handle, q, &err);
	if (r) {
		q->err = err;
		if (!err.text[0])
			(void)err_errno(&q->err, -r, "%s",
					api_route_verb(&q->route));
		q->status = status_of(r);
	} else {
		q->status = q->call.text ? MHD_HTTP_OK : MHD_HTTP_NO_CONTENT;
	}
	q->decided = true;
	if (q->route.changes)
		log_info("%s: %u%s%s", api_route_verb(&q->route), q->status,
			 q->err.text[0] ? " " : "", q->err.text);
}

/* ---- answer ---- */

static enum MHD_Result respond(struct api_request *q,
			       struct MHD_Connection *mhd,
			       struct MHD_Response *response, const char *type)
{
	enum MHD_Result r;

	if (!response)
		return MHD_NO;
	if (type)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
					type);
	if (q->status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW,
					q->route.method);
	r = MHD_queue_response(mhd, q->status, response);
	MHD_destroy_response(response);
	return r;
}

/* text: the caller's no more. */
static enum MHD_Result respond_text(struct api_request *q,
				    struct MHD_Connection *mhd, char *text,
				    const char *type)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(
		text ? strlen(text) : 0, text ? text : (char *)"",
		text ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);

	if (!response)
		free(text);
	return respond(q, mhd, response, text ? type : NULL);
}

static enum MHD_Result answer(struct api_request *q, struct MHD_Connection *mhd)
{
	const char *type = q->route.content_type;
	char *text;

	api_conn_set_deadline(q->conn, API_WRITE_SECONDS);
	if (q->status >= MHD_HTTP_BAD_REQUEST) {
		type = NULL;
		text = api_body_error(q->err.text);
	} else {
		text = q->call.text;
		q->call.text = NULL;
	}
	return respond_text(q, mhd, text, type ? type : "application/json");
}

static enum MHD_Result answer_ping(struct api_request *q,
				   struct MHD_Connection *mhd)
{
	json_t *o = json_pack("{s:s, s:s, s:i, s:[]}", "build_version",
			      "quire " QUIRE_VERSION, "version", QUIRE_VERSION,
			      "pid", (int)getpid(), "features");

	q->call.text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	q->status = MHD_HTTP_OK;
	return q->call.text ? answer(q, mhd) : MHD_NO;
}

/* ---- the stream of events ---- */

static ssize_t read_events(void *arg, uint64_t pos, char *buf, size_t max)
{
	struct api_stream *stream = arg;
	ssize_t n;

	if (!stream->conn || stream->conn->gone)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	n = api_listener_read(stream->listener, buf, max);
	if (n < 0)
		return MHD_CONTENT_READER_END_OF_STREAM;
	if (!n)
		api_server_suspend(stream->conn);
	return n;
}

static void end_events(void *arg)
{
	struct api_stream *stream = arg;

	if (stream->conn)
		stream->conn->stream = NULL;
	api_listener_free(stream->listener);
	free(stream);
}

static int begin_events(struct api_request *q)
{
	struct api_stream *stream = calloc(1, sizeof(*stream));
	int r = stream ? api_listener_new(q->server->events, &stream->listener)
		       : -ENOMEM;

	if (r) {
		free(stream);
		q->status = status_of(r);
		return err_set(&q->err, -r,
			       "%d listeners for events are there already",
			       API_MAX_LISTENERS);
	}
	stream->conn = q->conn;
	q->conn->stream = stream;
	q->status = MHD_HTTP_OK;
	return 0;
}

static enum MHD_Result answer_events(struct api_request *q,
				     struct MHD_Connection *mhd)
{
	struct MHD_Response *response;

	if (begin_events(q))
		return answer(q, mhd);
	response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096,
						     read_events,
						     q->conn->stream,
						     end_events);
	if (!response)
		end_events(q->conn->stream);
	return respond(q, mhd, response, "application/x-ndjson");
}

/* ---- steps ---- */

/* The request is complete. */
static enum MHD_Result decide(struct api_request *q, struct MHD_Connection *mhd)
{
	struct err err = ERR_INIT;

	api_conn_set_deadline(q->conn, 0);
	if (!q->status &&
	    api_body_parse(&q->route, q->data, q->len, &q->body, &err))
		refuse(q, MHD_HTTP_BAD_REQUEST, err.text);
	if (q->status)
		return answer(q, mhd);
	switch (q->route.kind) {
	case API_PING:
		return answer_ping(q, mhd);
	case API_EVENTS:
		return answer_events(q, mhd);
	case API_VERB:
	case API_WORK:
		break;
	}
	api_server_suspend(q->conn);
	api_server_submit(q->server, q);
	return MHD_YES;
}

enum MHD_Result api_request_step(void *server, struct MHD_Connection *mhd,
				 const char *url, const char *method,
				 const char *version, const char *upload,
				 size_t *upload_size, void **request)
{
	struct api_request *q = *request;

	if (!q) {
		q = begin(server, mhd, url, method);
		*request = q;
		if (!q)
			return MHD_NO;
		return answer_early(q, mhd) ? answer(q, mhd) : MHD_YES;
	}
	if (*upload_size) {
		size_t len = *upload_size;

		*upload_size = 0;
		return take_body(q, upload, len) ? MHD_YES : MHD_NO;
	}
	return q->decided ? answer(q, mhd) : decide(q, mhd);
}

void api_request_end(void *server, struct MHD_Connection *mhd, void **request,
		     enum MHD_RequestTerminationCode code)
{
	struct api_request *q = *request;

	if (!q)
		return;
	*request = NULL;
	q->server->num_requests--;
	/* The next one may come on the same connection. */
	api_conn_set_deadline(q->conn, API_READ_SECONDS);
	json_decref(q->body);
	free(q->call.text);
	free(q->data);
	free(q);
}
