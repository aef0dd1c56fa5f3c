/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What strangers send to either side of the control API: bodies of requests,
 * for each entry of the table, and heads of answers.
 *
 * Input: a byte that chooses, then the bytes. What is accepted has to be what
 * was promised: an object, nested no deeper than the limit; a head that ends
 * inside the text, with a status of three digits.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/body.h"
#include "api/client.h"
#include "api/route.h"
#include "base/compiler.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned int depth_of(const json_t *value)
{
	unsigned int deepest = 0, depth;
	const char *key;
	json_t *inner;
	size_t i;

	if (json_is_object(value)) {
		json_object_foreach((json_t *)value, key, inner)
		{
			depth = depth_of(inner);
			deepest = depth > deepest ? depth : deepest;
		}
	} else if (json_is_array(value)) {
		json_array_foreach(value, i, inner)
		{
			depth = depth_of(inner);
			deepest = depth > deepest ? depth : deepest;
		}
	} else {
		return 0;
	}
	return deepest + 1;
}

static void parse_body(const struct api_route *route, const char *text,
		       size_t len)
{
	struct err err = ERR_INIT;
	json_t *body = NULL;
	char *message;

	if (api_body_parse(route, text, len, &body, &err)) {
		BUG_ON(body || !err.text[0]);
		message = api_body_error(err.text);
		BUG_ON(!message);
		body = json_loads(message, 0, NULL);
		BUG_ON(!json_is_string(json_object_get(body, "error")));
		free(message);
	} else {
		BUG_ON(!json_is_object(body));
		BUG_ON(depth_of(body) > API_MAX_DEPTH);
		for (size_t i = 0; i < route->num_fields; i++)
			BUG_ON(route->fields[i].required &&
			       !json_object_get(body, route->fields[i].name));
	}
	json_decref(body);
}

static void parse_head(const char *text, size_t len)
{
	struct api_answer answer = { .status = 0 };
	ssize_t n = api_client_parse_head(text, len, &answer);

	BUG_ON(n > (ssize_t)len);
	if (n > 0)
		BUG_ON(answer.status < 100 || answer.status > 999 ||
		       text[n - 1] != '\n');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct api_route route;
	char *copy;

	if (!size)
		return 0;
	/* Exactly as long as it is, for AddressSanitizer. */
	copy = malloc(size - 1 ? size - 1 : 1);
	BUG_ON(!copy);
	memcpy(copy, data + 1, size - 1);
	if (api_route_get(data[0], &route))
		parse_body(&route, copy, size - 1);
	else
		parse_head(copy, size - 1);
	free(copy);
	return 0;
}
