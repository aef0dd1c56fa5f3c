/* SPDX-License-Identifier: Apache-2.0 */
#include "base/kvlist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/size.h"

#define KVLIST_MAX_KEYS 64

/* Append " a, b, c" of all key names to the message under construction. */
static void list_keys(char *buf, size_t size, const struct kvlist_key *keys,
		      size_t num_keys)
{
	size_t len = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < num_keys && len < size; i++)
		len += (size_t)snprintf(buf + len, size - len, "%s%s",
					i ? ", " : "", keys[i].name);
}

/*
 * Cut the next item off *cursor in place: up to a single comma, with ",,"
 * folded into one literal comma. Returns NULL at the end.
 */
static char *next_item(char **cursor)
{
	char *item = *cursor, *in, *out;

	if (!item)
		return NULL;
	for (in = out = item; *in; in++) {
		if (*in == ',') {
			if (in[1] != ',')
				break;
			in++;
		}
		*out++ = *in;
	}
	*cursor = *in ? in + 1 : NULL;
	*out = '\0';
	return item;
}

int kvlist_unknown(const char *option, const char *key,
		   const struct kvlist_key *keys, size_t num_keys,
		   struct err *err)
{
	char known[256];

	list_keys(known, sizeof(known), keys, num_keys);
	return err_set(err, EINVAL, "%s: unknown key '%s' (known: %s)", option,
		       key, known);
}

struct parse {
	const char *option;
	const struct kvlist_key *keys;
	size_t num_keys;
	uint64_t seen;
	void *obj;
};

static int set_one(void *ctx, const char *key, const char *value,
		   struct err *err)
{
	struct parse *p = ctx;
	int r;

	for (size_t i = 0; i < p->num_keys; i++) {
		if (strcmp(p->keys[i].name, key) != 0)
			continue;
		if (p->seen & (1ull << i))
			return err_set(err, EINVAL, "%s: %s given twice",
				       p->option, key);
		p->seen |= 1ull << i;
		r = p->keys[i].set(p->obj, value, err);
		if (r)
			err_prefix(err, "%s %s=%s", p->option, key, value);
		return r;
	}
	return kvlist_unknown(p->option, key, p->keys, p->num_keys, err);
}

/* Walks text, which it cuts up. */
static int walk_items(const char *option, char *text, const char *first_key,
		      int (*fn)(void *ctx, const char *key, const char *value,
				struct err *err),
		      void *ctx, struct err *err)
{
	char *cursor = text, *item;
	bool first = true;
	int r;

	while ((item = next_item(&cursor))) {
		char *eq = strchr(item, '=');
		const char *key = item, *value;

		if (eq) {
			*eq = '\0';
			value = eq + 1;
		} else if (first && first_key && *item) {
			key = first_key;
			value = item;
		} else {
			return err_set(err, EINVAL, "%s: '%s' is not key=value",
				       option, item);
		}
		if (!*value)
			return err_set(err, EINVAL, "%s: %s has no value",
				       option, key);
		r = fn(ctx, key, value, err);
		if (r)
			return r;
		first = false;
	}
	return 0;
}

int kvlist_each(const char *option, const char *text, const char *first_key,
		int (*fn)(void *ctx, const char *key, const char *value,
			  struct err *err),
		void *ctx, struct err *err)
{
	char *copy = strdup(text);
	int r;

	if (!copy)
		return err_set(err, ENOMEM, "%s: out of memory", option);
	r = walk_items(option, copy, first_key, fn, ctx, err);
	free(copy);
	return r;
}

int kvlist_parse(const char *option, const char *text, const char *first_key,
		 const struct kvlist_key *keys, size_t num_keys, void *obj,
		 struct err *err)
{
	struct parse parse = {
		.option = option,
		.keys = keys,
		.num_keys = num_keys,
		.obj = obj,
	};

	BUG_ON(num_keys > KVLIST_MAX_KEYS);
	return kvlist_each(option, text, first_key, set_one, &parse, err);
}

int kvlist_size(const char *value, uint64_t *ret, struct err *err)
{
	int r = size_parse(value, ret);

	if (r == -ERANGE)
		return err_set(err, ERANGE, "too large");
	if (r)
		return err_set(err, EINVAL,
			       "not a size (write 512M, 4G, 65536)");
	return 0;
}

int kvlist_u32(const char *value, uint32_t min, uint32_t max, uint32_t *ret,
	       struct err *err)
{
	uint64_t v;

	if (size_parse_u64(value, &v) || v < min || v > max)
		return err_set(err, EINVAL, "not a number from %u to %u", min,
			       max);
	*ret = (uint32_t)v;
	return 0;
}

int kvlist_pow2(const char *value, uint32_t min, uint32_t max, uint32_t *ret,
		struct err *err)
{
	uint32_t v = 0;
	int r = kvlist_u32(value, min, max, &v, err);

	if (r)
		return r;
	if (!is_pow2(v))
		return err_set(err, EINVAL, "not a power of two");
	*ret = v;
	return 0;
}

int kvlist_string(const char *value, char **ret, struct err *err)
{
	char *copy = strdup(value);

	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	free(*ret);
	*ret = copy;
	return 0;
}

int kvlist_bool(const char *value, bool *ret, struct err *err)
{
	if (!strcmp(value, "on") || !strcmp(value, "true")) {
		*ret = true;
		return 0;
	}
	if (!strcmp(value, "off") || !strcmp(value, "false")) {
		*ret = false;
		return 0;
	}
	return err_set(err, EINVAL, "neither on nor off");
}

int kvlist_enum(const char *value, const char *const *names, size_t num_names,
		int *ret, struct err *err)
{
	char known[200];
	size_t len = 0;

	for (size_t i = 0; i < num_names; i++) {
		if (names[i] && !strcmp(names[i], value)) {
			*ret = (int)i;
			return 0;
		}
	}
	known[0] = '\0';
	for (size_t i = 0; i < num_names && len < sizeof(known); i++)
		len += (size_t)snprintf(known + len, sizeof(known) - len,
					"%s%s", i ? ", " : "", names[i]);
	return err_set(err, EINVAL, "not one of %s", known);
}
