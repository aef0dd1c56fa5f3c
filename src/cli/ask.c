/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/ask.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/rundir.h"
#include "base/cleanup.h"

static int find_socket(const struct cli_question *q, char *buf, size_t size,
		       struct err *err)
{
	struct rundir_entry entry;
	int r;

	if (strchr(q->vm, '/')) {
		if ((size_t)snprintf(buf, size, "%s", q->vm) >= size)
			return err_set(err, ENAMETOOLONG,
				       "%s: too long for a socket", q->vm);
		return 0;
	}
	r = rundir_find(q->vm, &entry, err);
	if (!r)
		snprintf(buf, size, "%s", entry.socket);
	return r;
}

static int pass_on(void *ctx, const char *data, size_t len)
{
	if (fwrite(data, 1, len, stdout) != len || fflush(stdout))
		return -EIO;
	return 0;
}

/* "error" of an error's body, or all of it. */
static int report_refusal(const struct cli_question *q,
			  const struct api_answer *a)
{
	json_t *root = a->text ? json_loads(a->text, 0, NULL) : NULL;
	const char *text = json_string_value(json_object_get(root, "error"));
	struct err err;

	(void)err_set(&err, EIO, "%s: %s", api_route_verb(q->route),
		      text ? text : "refused without a reason");
	if (!text)
		(void)err_set(&err, EIO, "%s: HTTP status %u",
			      api_route_verb(q->route), a->status);
	json_decref(root);
	return cli_fail(q->command, &err);
}

int cli_ask(const struct cli_question *q, struct api_answer *ret)
{
	bool stream = q->route->kind == API_EVENTS;
	_cleanup_free_ char *body = q->body ? json_dumps(q->body, JSON_COMPACT)
					    : NULL;
	char socket[RUNDIR_MAX_PATH];
	struct api_client_request request = {
		.socket = socket,
		.method = q->route->method,
		.path = q->route->path,
		.body = body,
		.timeout_s = stream ? 0 : q->timeout_s,
		.piece = stream ? pass_on : NULL,
	};
	struct err err = ERR_INIT;
	int status;

	if (find_socket(q, socket, sizeof(socket), &err))
		return cli_fail(q->command, &err);
	if (api_client_ask(&request, ret, &err)) {
		err_prefix(&err, "%s: %s", q->vm, api_route_verb(q->route));
		return cli_fail(q->command, &err);
	}
	if (ret->status < 300)
		return CLI_OK;
	status = report_refusal(q, ret);
	free(take_ptr(ret->text));
	return status;
}
