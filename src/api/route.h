/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control API's table: what can be asked, by which method and path, with
 * which fields, and who answers. Server, `quire ctl`, shell completion and the
 * test that compares docs/api/openapi.yaml with reality all read it.
 *
 * Paths, methods and field names are Cloud Hypervisor's where it has the same
 * (its API version 0.3.0); "changes" tells verbs from questions.
 *
 * Constant; any thread. Handlers run on the control thread (vmm_call()), what
 * renders an answer on the server's verb thread.
 */
#ifndef QUIRE_API_ROUTE_H
#define QUIRE_API_ROUTE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct virtio_class;
struct vmm;

#define API_PREFIX "/api/v1/"

/* The JSON types that a field may have. */
enum api_type {
	API_STRING,
	API_INTEGER, /* not negative */
	API_BOOL,
	API_OBJECT,
};

struct api_field {
	const char *name;
	enum api_type type;
	bool required;
};

enum api_body {
	API_BODY_NONE,	 /* empty, or {} */
	API_BODY_FIELDS, /* an object of the fields listed */
	API_BODY_OPEN,	 /* an object that the handler checks */
};

enum api_kind {
	API_VERB,   /* handle() on the control thread */
	API_WORK,   /* handle() on a thread of its own, and may take long */
	API_PING,   /* answered at once: a busy control thread is alive */
	API_EVENTS, /* a stream */
};

/* One request on its way through its handler. */
struct api_call {
	const struct virtio_class *cls; /* of vm.add-... */
	const json_t *body;		/* NULL: none */
	json_t *reply;			/* NULL: nothing to say, 204 */
	char *text;			/* rendered; the caller's to free */
};

struct api_route {
	char path[64]; /* "/api/v1/vm.pause" */
	const char *method;
	const char *summary; /* for people */
	bool changes;	     /* anything at all */
	enum api_kind kind;
	enum api_body body;
	const struct api_field *fields;
	size_t num_fields;
	const struct virtio_class *cls;
	/* arg: the struct api_call. As vmm_call() wants it. */
	int (*handle)(struct vmm *vmm, void *arg, struct err *err);
	/* reply into text; NULL: JSON as it is. -ENOMEM. */
	int (*render)(struct api_call *call);
	const char *content_type; /* of what render() makes */
};

/* Entry i into *ret. false: there are only i. */
bool api_route_get(size_t i, struct api_route *ret);

/*
 * The entry for method and path. -ENOENT: no such path. -EPERM: not by that
 * method; *ret is one that fits the path.
 */
__must_check int api_route_find(const char *method, const char *path,
				struct api_route *ret);

/*
 * By the name that people type: "vm.pause", "pause" (of vm.shutdown and
 * vmm.shutdown the VM's), "metrics". -ENOENT.
 */
__must_check int api_route_by_verb(const char *verb, struct api_route *ret);

/* "vm.pause" of "/api/v1/vm.pause", "metrics" of "/metrics". */
const char *api_route_verb(const struct api_route *route);

#endif
