/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes that a client sent, into a JSON object that is safe to hand on: the
 * one place where they are checked. Any thread; pure.
 */
#ifndef QUIRE_API_BODY_H
#define QUIRE_API_BODY_H

#include "api/route.h"
#include "vm/config_json.h"

/* The limits are those of a configuration: vm.create's body is the largest. */
#define API_MAX_BODY  ((size_t)VM_CONFIG_MAX_BYTES)
#define API_MAX_DEPTH VM_CONFIG_MAX_DEPTH

/*
 * *ret: a new reference to an object, empty where there is no body. -EINVAL:
 * not JSON, nested too deeply, no object, or (but for API_BODY_OPEN) an
 * unknown, missing or ill-typed field.
 */
__must_check int api_body_parse(const struct api_route *route, const char *text,
				size_t len, json_t **ret, struct err *err);

/* {"error": text}, even when text is no UTF-8. NULL: out of memory. */
char *api_body_error(const char *text);

#endif
