/* SPDX-License-Identifier: Apache-2.0 */
#include "api/body.h"

#include <errno.h>
#include <string.h>

#include "base/json.h"
#include "vm/config_json.h"

static bool has_type(const json_t *value, enum api_type type)
{
	switch (type) {
	case API_STRING:
		return json_is_string(value);
	case API_INTEGER:
		return json_is_integer(value) && json_integer_value(value) >= 0;
	case API_BOOL:
		return json_is_boolean(value);
	case API_OBJECT:
		return json_is_object(value);
	}
	return false;
}

static const char *type_text(enum api_type type)
{
	switch (type) {
	case API_STRING:
		return "a string";
	case API_INTEGER:
		return "a whole number of 0 or more";
	case API_BOOL:
		return "true or false";
	case API_OBJECT:
		return "an object";
	}
	return "?";
}

static const struct api_field *find_field(const struct api_route *route,
					  const char *name)
{
	for (size_t i = 0; i < route->num_fields; i++) {
		if (!strcmp(route->fields[i].name, name))
			return &route->fields[i];
	}
	return NULL;
}

/* "unknown field 'x'; known: a, b" */
static int refuse_field(const struct api_route *route, const char *name,
			struct err *err)
{
	char known[160];
	size_t used = 0;

	if (!route->num_fields)
		return err_set(err, EINVAL,
			       "unknown field '%.60s'; %s takes "
			       "none",
			       name, api_route_verb(route));
	known[0] = '\0';
	for (size_t i = 0; i < route->num_fields && used < sizeof(known); i++)
		used += (size_t)snprintf(known + used, sizeof(known) - used,
					 "%s%s", i ? ", " : "",
					 route->fields[i].name);
	return err_set(err, EINVAL, "unknown field '%.60s'; %s takes: %s", name,
		       api_route_verb(route), known);
}

static int check_fields(const struct api_route *route, json_t *object,
			struct err *err)
{
	const char *name;
	json_t *value;

	json_object_foreach(object, name, value)
	{
		const struct api_field *f = find_field(route, name);

		if (!f)
			return refuse_field(route, name, err);
		if (!has_type(value, f->type))
			return err_set(err, EINVAL, "field '%s': not %s",
				       f->name, type_text(f->type));
	}
	for (size_t i = 0; i < route->num_fields; i++) {
		const struct api_field *f = &route->fields[i];

		if (f->required && !json_object_get(object, f->name))
			return err_set(err, EINVAL,
				       "field '%s' (%s) is missing", f->name,
				       type_text(f->type));
	}
	return 0;
}

static bool is_blank(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		char c = text[i];

		if (c != ' ' && c != '\t' && c != '\r' && c != '\n')
			return false;
	}
	return true;
}

static int load(const char *text, size_t len, json_t **ret, struct err *err)
{
	json_t *root = vm_config_parse_text(text, len, err);

	if (!root)
		return -EINVAL;
	if (!json_is_object(root)) {
		json_decref(root);
		return err_set(err, EINVAL, "not a JSON object");
	}
	*ret = root;
	return 0;
}

int api_body_parse(const struct api_route *route, const char *text, size_t len,
		   json_t **ret, struct err *err)
{
	json_t *root = NULL;
	int r;

	if (is_blank(text, len)) {
		if (route->body == API_BODY_OPEN)
			return err_set(err, EINVAL,
				       "%s wants a JSON object as its body",
				       api_route_verb(route));
		/* Fields that are required are missing then. */
		root = json_object();
		r = root ? 0 : err_set(err, ENOMEM, "out of memory");
	} else {
		r = load(text, len, &root, err);
	}
	if (!r && route->body != API_BODY_OPEN)
		r = check_fields(route, root, err);
	if (r)
		json_decref(root);
	else
		*ret = root;
	return r;
}

char *api_body_error(const char *text)
{
	json_t *root = json_pack("{s:o}", "error", json_text(text));
	char *out = root ? json_dumps(root, JSON_COMPACT) : NULL;

	json_decref(root);
	return out;
}
