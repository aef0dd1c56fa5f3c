/* SPDX-License-Identifier: Apache-2.0 */
/* Ask a running VM over its control API; errors are said on stderr. */
#ifndef QUIRE_CLI_ASK_H
#define QUIRE_CLI_ASK_H

#include <jansson.h>

#include "api/client.h"
#include "api/route.h"
#include "cli/cli.h"

struct cli_question {
	const struct cli_command *command; /* for messages */
	const char *vm;			   /* its name, or a socket's path */
	const struct api_route *route;
	const json_t *body;	/* NULL: none */
	unsigned int timeout_s; /* 0: for ever */
};

/*
 * CLI_OK: *ret is a successful answer, whose text is the caller's to free; of
 * a route of kind API_EVENTS, all of it went to stdout.
 */
int cli_ask(const struct cli_question *q, struct api_answer *ret);

#endif
