/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config_json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/json.h"

/*
 * Names out of the document go to terminals, logs and JSON: printable ASCII,
 * and not endless.
 */
static const char *shown(const char *name, char buf[64])
{
	size_t i;

	for (i = 0; i < 60 && name[i]; i++)
		buf[i] = name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?';
	buf[i] = '\0';
	return buf;
}

static int refuse_unknown(const char *object, const char *field,
			  struct err *err)
{
	char buf[64];

	return err_set(err, EINVAL, "%s%s%s: unknown field",
		       object ? object : "", object ? "." : "",
		       shown(field, buf));
}

static int refuse_type(const char *path, struct err *err)
{
	return err_set(err, EINVAL,
		       "%s: neither a string, an integer nor a boolean", path);
}

/* ---- options that are one value ---- */

static bool option_is(const struct vm_option *opt, const char *object,
		      const char *field)
{
	if ((opt->object || object) &&
	    (!opt->object || !object || strcmp(opt->object, object) != 0))
		return false;
	return opt->field ? !strcmp(opt->field, field)
			  : vm_field_is(opt->name, field);
}

static const struct vm_option *find_option(const char *object,
					   const char *field)
{
	for (size_t i = 0; i < vm_num_options; i++) {
		if (option_is(&vm_options[i], object, field))
			return &vm_options[i];
	}
	return NULL;
}

static int set_value(struct vm_config *cfg, const struct vm_option *opt,
		     const char *path, const json_t *value, struct err *err)
{
	char number[32];
	const char *text;
	int r;

	if (opt->set_json) {
		r = opt->set_json(cfg, value, err);
	} else {
		text = json_scalar_text(value, number);
		if (!text)
			return refuse_type(path, err);
		r = opt->set(cfg, text, err);
	}
	if (r)
		err_prefix(err, "%s", path);
	return r;
}

/* ---- options with keys ---- */

static const struct vm_option_key *find_key(const struct vm_option *opt,
					    const char *field)
{
	for (size_t i = 0; i < opt->num_keys; i++) {
		const struct vm_option_key *key = &opt->keys[i];

		if (vm_field_is(key->name, field) ||
		    (key->field && !strcmp(key->field, field)))
			return key;
	}
	return NULL;
}

static int set_key(struct vm_config *cfg, const struct vm_option_key *key,
		   const char *path, const json_t *value, struct err *err)
{
	char number[32];
	const char *text = json_scalar_text(value, number);
	int r;

	if (!text)
		return refuse_type(path, err);
	r = *text ? key->set(cfg, text, err) : err_set(err, EINVAL, "empty");
	if (r)
		err_prefix(err, "%s", path);
	return r;
}

static int set_keys(struct vm_config *cfg, const struct vm_option *opt,
		    const char *object, const json_t *fields, struct err *err)
{
	uint64_t seen = 0;
	const char *field;
	json_t *value;
	int r;

	if (!json_is_object(fields))
		return err_set(err, EINVAL, "%s: not an object", object);
	json_object_foreach((json_t *)fields, field, value)
	{
		const struct vm_option_key *key = find_key(opt, field);
		char path[128];
		uint64_t bit;

		if (!key)
			return refuse_unknown(object, field, err);
		if (json_is_null(value))
			continue;
		/* A key may have two names: "boot" and "boot_vcpus". */
		bit = 1ull << (key - opt->keys);
		if (seen & bit)
			return err_set(err, EINVAL,
				       "%s.%s: given twice, under two names",
				       object, field);
		seen |= bit;
		snprintf(path, sizeof(path), "%s.%s", object, field);
		r = set_key(cfg, key, path, value, err);
		if (r)
			return r;
	}
	r = opt->done ? opt->done(cfg, err) : 0;
	if (r)
		err_prefix(err, "%s", object);
	return r;
}

/* An object that only groups options ("payload"). */
static bool is_group(const char *field)
{
	for (size_t i = 0; i < vm_num_options; i++) {
		if (vm_options[i].object &&
		    !strcmp(vm_options[i].object, field))
			return true;
	}
	return false;
}

static int set_group(struct vm_config *cfg, const char *object,
		     const json_t *fields, struct err *err)
{
	const char *field;
	json_t *value;

	if (!json_is_object(fields))
		return err_set(err, EINVAL, "%s: not an object", object);
	json_object_foreach((json_t *)fields, field, value)
	{
		const struct vm_option *opt = find_option(object, field);
		char path[128];
		int r;

		if (!opt)
			return refuse_unknown(object, field, err);
		if (json_is_null(value))
			continue;
		snprintf(path, sizeof(path), "%s.%s", object, field);
		r = set_value(cfg, opt, path, value, err);
		if (r)
			return r;
	}
	return 0;
}

/* ---- devices ---- */

static const struct virtio_class *find_class(const char *field)
{
	for (size_t i = 0; virtio_classes[i]; i++) {
		const struct virtio_class *cls = virtio_classes[i];

		if (cls->option && cls->api_field &&
		    !strcmp(cls->api_field, field))
			return cls;
	}
	return NULL;
}

static int add_devices(struct vm_config *cfg, const struct virtio_class *cls,
		       const json_t *devices, struct err *err)
{
	char path[64];
	size_t i;
	json_t *device;

	if (cls->single)
		return vm_config_add_device_json(cfg, cls, devices,
						 cls->api_field, NULL, err);
	if (!json_is_array(devices))
		return err_set(err, EINVAL, "%s: not an array", cls->api_field);
	json_array_foreach((json_t *)devices, i, device)
	{
		int r;

		snprintf(path, sizeof(path), "%s[%zu]", cls->api_field, i);
		r = vm_config_add_device_json(cfg, cls, device, path, NULL,
					      err);
		if (r)
			return r;
	}
	return 0;
}

/* ---- the document ---- */

static int set_other(const struct vm_config_others *others, const char *field,
		     const json_t *value, struct err *err)
{
	char number[32];
	const char *text = json_scalar_text(value, number);
	int r = -ENOENT;

	if (others && text)
		r = others->set(others->ctx, field, text, err);
	if (r == -ENOENT)
		return refuse_unknown(NULL, field, err);
	if (r)
		err_prefix(err, "%s", field);
	return r;
}

static int set_field(struct vm_config *cfg, const char *field,
		     const json_t *value, const struct vm_config_others *others,
		     struct err *err)
{
	const struct vm_option *opt = find_option(NULL, field);
	const struct virtio_class *cls = find_class(field);

	if (json_is_null(value) && (opt || cls || is_group(field)))
		return 0;
	if (opt && opt->keys)
		return set_keys(cfg, opt, field, value, err);
	if (opt)
		return set_value(cfg, opt, field, value, err);
	if (is_group(field))
		return set_group(cfg, field, value, err);
	if (cls)
		return add_devices(cfg, cls, value, err);
	return set_other(others, field, value, err);
}

int vm_config_from_json(struct vm_config *cfg, const json_t *doc,
			const struct vm_config_others *others, struct err *err)
{
	const char *field;
	json_t *value;

	if (!json_is_object(doc))
		return err_set(err, EINVAL,
			       "the configuration is not a JSON object");
	json_object_foreach((json_t *)doc, field, value)
	{
		int r = set_field(cfg, field, value, others, err);

		if (r)
			return r;
	}
	return 0;
}

/*
 * The deepest nesting in text. jansson parses by recursion, up to 2048 levels,
 * which is more than the stack of a small thread has room for.
 */
static unsigned int nesting(const char *text, size_t bytes)
{
	unsigned int depth = 0, deepest = 0;
	bool in_string = false;

	for (size_t i = 0; i < bytes; i++) {
		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		else if (!in_string && (text[i] == '{' || text[i] == '['))
			depth++;
		else if (!in_string && (text[i] == '}' || text[i] == ']') &&
			 depth)
			depth--;
		deepest = MAX(deepest, depth);
	}
	return deepest;
}

json_t *vm_config_parse_text(const char *text, size_t bytes, struct err *err)
{
	json_error_t error;
	json_t *doc;

	if (bytes > VM_CONFIG_MAX_BYTES) {
		err_set(err, EFBIG, "more than %d bytes", VM_CONFIG_MAX_BYTES);
		return NULL;
	}
	if (nesting(text, bytes) > VM_CONFIG_MAX_DEPTH) {
		err_set(err, EINVAL, "nested more than %d levels deep",
			VM_CONFIG_MAX_DEPTH);
		return NULL;
	}
	doc = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
	if (!doc) {
		for (char *c = error.text; *c; c++)
			if (*c < 0x20 || *c >= 0x7f)
				*c = '?';
		err_set(err, EINVAL, "line %d, column %d: not JSON: %s",
			error.line, error.column, error.text);
	}
	return doc;
}

/* One byte more than is allowed, so that it shows. */
static int read_file(const char *path, char *buf, size_t size, size_t *ret_len,
		     struct err *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	size_t len = 0;

	if (fd < 0)
		return err_errno(err, errno, "%s", path);
	while (len < size) {
		ssize_t n = read(fd, buf + len, size - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "%s", path);
		if (n == 0)
			break;
		len += (size_t)n;
	}
	*ret_len = len;
	return 0;
}

int vm_config_load(struct vm_config *cfg, const char *path,
		   const struct vm_config_others *others, struct err *err)
{
	char *text = malloc(VM_CONFIG_MAX_BYTES + 1);
	json_t *doc;
	size_t len = 0;
	int r;

	if (!text)
		return err_set(err, ENOMEM, "out of memory");
	r = read_file(path, text, VM_CONFIG_MAX_BYTES + 1, &len, err);
	if (r) {
		free(text);
		return r;
	}
	doc = vm_config_parse_text(text, len, err);
	free(text);
	r = doc ? vm_config_from_json(cfg, doc, others, err) : -EINVAL;
	json_decref(doc);
	if (r)
		err_prefix(err, "%s", path);
	for (unsigned int i = 0; i < cfg->num_devices; i++)
		cfg->devices[i].from_file = true;
	return r;
}

/* ---- export ---- */

static void field_name(const char *name, const char *field, char buf[64])
{
	snprintf(buf, 64, "%s", field ? field : name);
	for (char *c = buf; !field && *c; c++)
		if (*c == '-')
			*c = '_';
}

static json_t *export_keys(const struct vm_config *cfg,
			   const struct vm_option *opt)
{
	json_t *o = json_object();

	for (size_t i = 0; i < opt->num_keys; i++) {
		const struct vm_option_key *key = &opt->keys[i];
		json_t *value = key->get ? key->get(cfg) : NULL;
		char field[64];

		field_name(key->name, key->field, field);
		if (value)
			json_object_set_new(o, field, value);
	}
	return o;
}

/* Borrowed: the object within doc that has opt, made where it is missing. */
static json_t *export_place(json_t *doc, const struct vm_option *opt)
{
	json_t *o;

	if (!opt->object)
		return doc;
	o = json_object_get(doc, opt->object);
	if (!o) {
		json_object_set_new(doc, opt->object, json_object());
		o = json_object_get(doc, opt->object);
	}
	return o;
}

static void export_option(json_t *doc, const struct vm_config *cfg,
			  const struct vm_option *opt)
{
	json_t *value = opt->keys ? export_keys(cfg, opt) : opt->get(cfg);
	char field[64];

	field_name(opt->name, opt->field, field);
	if (value)
		json_object_set_new(export_place(doc, opt), field, value);
}

static void export_device(json_t *doc, const struct vm_device_config *dev)
{
	json_t *o = json_deep_copy(dev->fields), *array;
	const char *field = dev->cls->api_field;

	if (!field) {
		json_decref(o);
		return;
	}
	json_object_set_new(o, "id", json_string(dev->id));
	if (dev->cls->single) {
		json_object_set_new(doc, field, o);
		return;
	}
	array = json_object_get(doc, field);
	if (!array) {
		json_object_set_new(doc, field, json_array());
		array = json_object_get(doc, field);
	}
	json_array_append_new(array, o);
}

json_t *vm_config_to_json(const struct vm_config *cfg)
{
	json_t *doc = json_object();

	for (size_t i = 0; doc && i < vm_num_options; i++)
		export_option(doc, cfg, &vm_options[i]);
	for (unsigned int i = 0; doc && i < cfg->num_devices; i++)
		export_device(doc, &cfg->devices[i]);
	return doc;
}
