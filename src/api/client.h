/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client side of the control API, for `quire ctl` and `quire ps`: one
 * request, one answer, blocking. HTTP/1.0, whose answers end with the
 * connection, so that an answer of any length or none (events) is read alike.
 *
 * Not libcurl: it is loaded by every `quire run`, too, and costs each 0.7 MiB
 * of private memory and 4 ms of start (measured on Debian 12) for this little.
 */
#ifndef QUIRE_API_CLIENT_H
#define QUIRE_API_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct api_answer {
	unsigned int status; /* HTTP */
	bool is_json;
	char *text; /* NUL-terminated; the caller's to free */
	size_t len;
};

struct api_client_request {
	const char *socket, *method, *path;
	const char *body; /* NULL: none */
	/* Seconds without a byte until it gives up; 0: wait for ever. */
	unsigned int timeout_s;
	/*
	 * Called with each piece of a successful answer as it arrives, which is
	 * then not in ret->text. NULL: collect. An error ends it.
	 */
	int (*piece)(void *ctx, const char *data, size_t len);
	void *ctx;
};

/*
 * 0 for any answer, an error's as well. -ECONNREFUSED and friends: nobody
 * answers; -EPROTO: it is not HTTP; -EMSGSIZE: too long; -ETIMEDOUT. ret->text
 * is NULL then.
 */
__must_check int api_client_ask(const struct api_client_request *request,
				struct api_answer *ret, struct err *err);

/*
 * The head of an answer: status line and headers up to the empty line. Returns
 * its length, 0 if it is not complete yet, -EPROTO if it is none. Pure.
 */
ssize_t api_client_parse_head(const char *text, size_t len,
			      struct api_answer *ret);

#endif
