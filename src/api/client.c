/* SPDX-License-Identifier: Apache-2.0 */
#include "api/client.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"

#define MAX_HEAD   ((size_t)64 << 10)
#define MAX_ANSWER ((size_t)64 << 20)
#define PIECE	   4096

/* ---- the head ---- */

/* "HTTP/1.x NNN ..." */
static int parse_status(const char *text, size_t len, struct api_answer *ret)
{
	if (len < 12 || strncmp(text, "HTTP/1.", 7) != 0 || text[8] != ' ')
		return -EPROTO;
	for (int i = 9; i < 12; i++)
		if (!isdigit((unsigned char)text[i]))
			return -EPROTO;
	ret->status = (unsigned int)((text[9] - '0') * 100 +
				     (text[10] - '0') * 10 + (text[11] - '0'));
	return ret->status >= 100 ? 0 : -EPROTO;
}

static void parse_header(const char *line, size_t len, struct api_answer *ret)
{
	static const char name[] = "content-type:";
	static const char json[] = "application/json";
	size_t skip = sizeof(name) - 1;

	if (len < skip || strncasecmp(line, name, skip) != 0)
		return;
	while (skip < len && line[skip] == ' ')
		skip++;
	ret->is_json = len - skip >= sizeof(json) - 1 &&
		       !strncasecmp(line + skip, json, sizeof(json) - 1);
}

ssize_t api_client_parse_head(const char *text, size_t len,
			      struct api_answer *ret)
{
	const char *at = text, *end = text + len;

	while (at < end) {
		const char *nl = memchr(at, '\n', (size_t)(end - at));
		size_t line;

		if (!nl)
			return 0;
		line = (size_t)(nl - at);
		if (line && at[line - 1] == '\r')
			line--;
		if (at == text) {
			if (parse_status(at, line, ret))
				return -EPROTO;
		} else if (!line) {
			return nl + 1 - text;
		} else {
			parse_header(at, line, ret);
		}
		at = nl + 1;
	}
	return 0;
}

/* ---- transfer ---- */

static int send_all(int fd, const char *text, size_t len, struct err *err)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		/* It may have answered before it had read everything. */
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return 0;
		if (n < 0)
			return err_errno(err, errno, "sending the request");
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

static int send_request(int fd, const struct api_client_request *q,
			struct err *err)
{
	size_t len = q->body ? strlen(q->body) : 0;
	char *head = NULL;
	int n, r;

	if (q->body)
		n = asprintf(&head,
			     "%s %s HTTP/1.0\r\nHost: localhost\r\n"
			     "Content-Type: application/json\r\n"
			     "Content-Length: %zu\r\n\r\n",
			     q->method, q->path, len);
	else
		n = asprintf(&head, "%s %s HTTP/1.0\r\nHost: localhost\r\n\r\n",
			     q->method, q->path);
	if (n < 0)
		return err_set(err, ENOMEM, "out of memory");
	r = send_all(fd, head, (size_t)n, err);
	free(head);
	return r || !len ? r : send_all(fd, q->body, len, err);
}

/* 0: the end. */
static ssize_t receive(int fd, char *buf, size_t size, struct err *err)
{
	ssize_t n;

	do
		n = recv(fd, buf, size, 0);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno == EAGAIN)
		return err_set(err, ETIMEDOUT, "no answer in time");
	return err_errno(err, errno, "reading the answer");
}

/* len bytes more behind those of *ret. */
static int collect(struct api_answer *ret, const char *data, size_t len,
		   size_t max, struct err *err)
{
	char *bigger;

	if (ret->len + len > max)
		return err_set(err, EMSGSIZE, "the answer is too long");
	bigger = realloc(ret->text, ret->len + len + 1);
	if (!bigger)
		return err_set(err, ENOMEM, "out of memory");
	memcpy(bigger + ret->len, data, len);
	ret->text = bigger;
	ret->len += len;
	ret->text[ret->len] = '\0';
	return 0;
}

/* Until the empty line; what came behind it is left in ret. */
static int read_head(int fd, struct api_answer *ret, struct err *err)
{
	char piece[PIECE];
	ssize_t head = 0, n;
	int r;

	while (!head) {
		n = receive(fd, piece, sizeof(piece), err);
		if (n < 0)
			return (int)n;
		if (!n)
			return err_set(err, EPROTO,
				       "the connection ended without an "
				       "answer, as when the process behind it "
				       "ends (see quire ps)");
		r = collect(ret, piece, (size_t)n, MAX_HEAD, err);
		if (r)
			return r;
		head = api_client_parse_head(ret->text, ret->len, ret);
	}
	if (head < 0)
		return err_set(err, EPROTO, "what answers does not speak HTTP");
	ret->len -= (size_t)head;
	memmove(ret->text, ret->text + head, ret->len + 1);
	return 0;
}

static int read_body(int fd, const struct api_client_request *q,
		     struct api_answer *ret, struct err *err)
{
	bool pieces = q->piece && ret->status < 300;
	char piece[PIECE];
	ssize_t n;
	int r = 0;

	if (pieces && ret->len) {
		r = q->piece(q->ctx, ret->text, ret->len);
		ret->len = 0;
	}
	while (!r) {
		n = receive(fd, piece, sizeof(piece), err);
		if (n <= 0)
			return (int)n;
		if (pieces)
			r = q->piece(q->ctx, piece, (size_t)n);
		else
			r = collect(ret, piece, (size_t)n, MAX_ANSWER, err);
	}
	if (err && !err->text[0])
		(void)err_errno(err, -r, "passing the answer on");
	return r;
}

static int set_timeout(int fd, unsigned int seconds, struct err *err)
{
	const struct timeval tv = { .tv_sec = seconds };

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)))
		return err_errno(err, errno, "setsockopt");
	return 0;
}

int api_client_ask(const struct api_client_request *q, struct api_answer *ret,
		   struct err *err)
{
	_cleanup_close_ int fd = -1;
	int r = unix_socket_connect(q->socket, 0, &fd);

	*ret = (struct api_answer){ .status = 0 };
	if (r)
		err_errno(err, -r, "connecting to %s", q->socket);
	else
		r = set_timeout(fd, q->timeout_s, err);
	if (!r)
		r = send_request(fd, q, err);
	if (!r)
		r = read_head(fd, ret, err);
	if (!r)
		r = read_body(fd, q, ret, err);
	if (r) {
		free(ret->text);
		ret->text = NULL;
	}
	return r;
}
