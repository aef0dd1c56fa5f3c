/* SPDX-License-Identifier: Apache-2.0 */
/* The verb that works on guest memory: its request, read and carried out. */
#include <errno.h>
#include <string.h>

#include "vm/vmm_priv.h"

struct request {
	enum keeper_work work;
	uint64_t start, size;
};

static bool is_absent(const json_t *value)
{
	return !value || json_is_null(value);
}

/* value is an object with these two fields, or one of them, and no others. */
static int check_object(const json_t *value, const char *a, const char *b,
			struct err *err)
{
	const char *field;
	json_t *member;

	if (!json_is_object(value))
		return err_set(err, EINVAL, "not an object");
	json_object_foreach((json_t *)value, field, member)
	{
		if (strcmp(field, a) != 0 && strcmp(field, b) != 0)
			return err_set(err, EINVAL,
				       "unknown field (known: %s, %s)", a, b);
	}
	return 0;
}

static int read_number(const json_t *object, const char *field, uint64_t *ret,
		       struct err *err)
{
	const json_t *value = json_object_get(object, field);

	if (is_absent(value))
		return 0;
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return err_set(err, EINVAL, "%s: not an integer from 0 on",
			       field);
	*ret = (uint64_t)json_integer_value(value);
	return 0;
}

static int read_range(const json_t *range, struct request *ret, struct err *err)
{
	int r;

	if (is_absent(range))
		return 0;
	r = check_object(range, "start", "size", err);
	if (!r)
		r = read_number(range, "start", &ret->start, err);
	if (!r)
		r = read_number(range, "size", &ret->size, err);
	if (r)
		err_prefix(err, "range");
	return r;
}

static int read_mode(const json_t *mode, struct request *ret, struct err *err)
{
	int i = 0, r;

	if (is_absent(mode))
		return 0;
	if (json_is_string(mode))
		r = kvlist_enum(json_string_value(mode), keeper_work_names,
				KEEPER_NUM_WORKS, &i, err);
	else
		r = err_set(err, EINVAL, "not a string");
	if (r)
		err_prefix(err, "mode");
	else
		ret->work = (enum keeper_work)i;
	return r;
}

static int read_request(const json_t *doc, struct request *ret, struct err *err)
{
	int r;

	*ret = (struct request){ KEEPER_POPULATE, 0, UINT64_MAX };
	if (!doc)
		return 0;
	r = check_object(doc, "range", "mode", err);
	if (!r)
		r = read_mode(json_object_get(doc, "mode"), ret, err);
	if (!r)
		r = read_range(json_object_get(doc, "range"), ret, err);
	return r;
}

int vmm_populate(struct vmm *v, const json_t *request, struct err *err)
{
	struct request req;
	int r = vmm_check_state(v, "populate",
				VMM_IN(VMM_RUNNING) | VMM_IN(VMM_PAUSED), err);

	if (!r)
		r = read_request(request, &req, err);
	if (r)
		return r;
	if (req.start >= v->machine->memory.ram.span || !req.size)
		return err_set(err, EINVAL,
			       "range: the guest has no memory there");
	r = vm_memory_request(&v->machine->memory, req.work, GPA(req.start),
			      req.size, err);
	if (!r)
		v->populating = true;
	return r;
}
