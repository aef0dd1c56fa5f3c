/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices of a configuration, from the command line's text or from JSON: both
 * become pairs of key and text, and go through the class's setters. The pairs
 * are kept as JSON, for exporting: nothing else knows what is in a class's
 * configuration.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/json.h"
#include "vm/config.h"

/* A value that only a key of free text would take. */
#define NONSENSE "\x01 nonsense"

static void device_fini(struct vm_device_config *dev)
{
	if (dev->config && dev->cls->config_fini)
		dev->cls->config_fini(dev->config);
	free(dev->config);
	free(dev->id);
	json_decref(dev->fields);
	*dev = (struct vm_device_config){ .cls = dev->cls };
}

static int device_init(struct vm_device_config *dev,
		       const struct virtio_class *cls)
{
	size_t bytes = MAX(cls->config_bytes, (size_t)1);

	*dev = (struct vm_device_config){ .cls = cls };
	dev->config = calloc(1, bytes);
	dev->fields = json_object();
	if (!dev->config || !dev->fields) {
		device_fini(dev);
		return -ENOMEM;
	}
	if (cls->config_defaults)
		cls->config_defaults(dev->config);
	return 0;
}

/*
 * Does the key take any text? Then "on" and "1" are just text as well, and are
 * exported as such.
 */
static bool takes_any_text(const struct virtio_class *cls,
			   const struct kvlist_key *key)
{
	struct vm_device_config scratch;
	struct err err = ERR_INIT;
	bool takes;

	if (device_init(&scratch, cls))
		return true;
	takes = !key->set(scratch.config, NONSENSE, &err);
	device_fini(&scratch);
	return takes;
}

static bool is_plain_number(const char *text)
{
	size_t len = strlen(text);

	return len && len <= 15 && strspn(text, "0123456789") == len &&
	       (len == 1 || *text != '0');
}

/* In the type that a program would expect, however it was written. */
static json_t *typed(const struct virtio_class *cls,
		     const struct kvlist_key *key, const char *text)
{
	bool flag;

	if (takes_any_text(cls, key))
		return json_text(text);
	if (is_plain_number(text))
		return json_integer(strtoll(text, NULL, 10));
	if (!kvlist_bool(text, &flag, NULL))
		return json_boolean(flag);
	return json_text(text);
}

struct parse {
	struct vm_device_config dev;
	const char *where; /* "--disk", "disks[0]" */
	bool json;
	uint64_t seen;
};

static int set_id(struct parse *p, const char *value, struct err *err)
{
	int r;

	if (p->dev.id)
		return err_set(err, EINVAL, "given twice");
	/* As those have that are made here, and exported. */
	r = vm_config_check_name(*value == '_' ? value + 1 : value, err);
	if (!r && strlen(value) >= VM_MAX_NAME)
		r = err_set(err, EINVAL, "longer than %d", VM_MAX_NAME - 1);
	if (r)
		return r;
	p->dev.id = strdup(value);
	return p->dev.id ? 0 : err_set(err, ENOMEM, "out of memory");
}

static int set_class_key(struct parse *p, size_t index, const char *value,
			 struct err *err)
{
	const struct kvlist_key *key = &p->dev.cls->keys[index];
	char field[64];
	int r;

	BUG_ON(index >= 64);
	if (p->seen & (1ull << index))
		return err_set(err, EINVAL, "given twice");
	p->seen |= 1ull << index;
	r = key->set(p->dev.config, value, err);
	if (r)
		return r;
	snprintf(field, sizeof(field), "%s", key->name);
	for (char *c = field; *c; c++)
		if (*c == '-')
			*c = '_';
	r = json_object_set_new(p->dev.fields, field,
				typed(p->dev.cls, key, value));
	return r ? err_set(err, ENOMEM, "out of memory") : 0;
}

static int set_pair(struct parse *p, const char *key, const char *value,
		    struct err *err)
{
	const struct virtio_class *cls = p->dev.cls;
	int r = -ENOENT;

	if (!strcmp(key, "id"))
		r = set_id(p, value, err);
	for (size_t i = 0; r == -ENOENT && i < cls->num_keys; i++) {
		if (p->json ? vm_field_is(cls->keys[i].name, key)
			    : !strcmp(cls->keys[i].name, key)) {
			r = set_class_key(p, i, value, err);
			if (r == -ENOENT) /* the setter's own, not ours */
				r = -EINVAL;
			break;
		}
	}
	if (r == -ENOENT && p->json)
		return err_set(err, EINVAL, "%s.%s: unknown field", p->where,
			       key);
	if (r == -ENOENT)
		return kvlist_unknown(p->where, key, cls->keys, cls->num_keys,
				      err);
	if (r && p->json)
		err_prefix(err, "%s.%s", p->where, key);
	else if (r)
		err_prefix(err, "%s %s=%s", p->where, key, value);
	return r;
}

static int set_text_pair(void *ctx, const char *key, const char *value,
			 struct err *err)
{
	return set_pair(ctx, key, value, err);
}

static int set_fields(struct parse *p, const json_t *fields, struct err *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(fields))
		return err_set(err, EINVAL, "%s: not an object", p->where);
	json_object_foreach((json_t *)fields, key, value)
	{
		char number[32];
		const char *text = json_scalar_text(value, number);
		int r;

		if (json_is_null(value))
			continue; /* as if it were not there */
		if (!text)
			return err_set(err, EINVAL,
				       "%s.%s: neither a string, an integer "
				       "nor a boolean",
				       p->where, key);
		if (!*text)
			return err_set(err, EINVAL, "%s.%s: empty", p->where,
				       key);
		r = set_pair(p, key, text, err);
		if (r)
			return r;
	}
	return 0;
}

struct vm_device_config *vm_config_device(struct vm_config *cfg, const char *id)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		if (!strcmp(cfg->devices[i].id, id))
			return &cfg->devices[i];
	}
	return NULL;
}

/* "_disk0": the first that is free, from the number of devices on. */
static int make_id(struct vm_config *cfg, struct vm_device_config *dev)
{
	const struct virtio_class *cls = dev->cls;
	const char *stem = cls->option ? cls->option + 2 : cls->name;
	char id[VM_MAX_NAME];
	unsigned int n = cfg->num_devices;

	do
		snprintf(id, sizeof(id), "_%.40s%u", stem, n++);
	while (vm_config_device(cfg, id));
	dev->id = strdup(id);
	return dev->id ? 0 : -ENOMEM;
}

static unsigned int class_rank(const struct virtio_class *cls)
{
	unsigned int i = 0;

	while (virtio_classes[i] && virtio_classes[i] != cls)
		i++;
	return i;
}

/*
 * In the registry's order, whatever the order they were named in: JSON has the
 * devices by class, and the same configuration is to be the same machine.
 */
static void insert(struct vm_config *cfg, struct vm_device_config *dev)
{
	unsigned int at = cfg->num_devices;

	while (at &&
	       class_rank(cfg->devices[at - 1].cls) > class_rank(dev->cls)) {
		cfg->devices[at] = cfg->devices[at - 1];
		at--;
	}
	cfg->devices[at] = *dev;
	cfg->num_devices++;
	*dev = (struct vm_device_config){ .cls = dev->cls };
}

static const struct vm_device_config *of_class(const struct vm_config *cfg,
					       const struct virtio_class *cls)
{
	for (unsigned int i = 0; i < cfg->num_devices; i++) {
		if (cfg->devices[i].cls == cls)
			return &cfg->devices[i];
	}
	return NULL;
}

/* The parsed device is complete: check it, and make it part of cfg. */
static int finish(struct vm_config *cfg, struct parse *p, struct err *err)
{
	const struct virtio_class *cls = p->dev.cls;
	int r = cls->config_check ? cls->config_check(p->dev.config, err) : 0;

	if (r) {
		err_prefix(err, "%s", p->where);
		return r;
	}
	if (p->dev.id && !strcmp(p->dev.id, "_vm"))
		return err_set(err, EINVAL, "%s: the id _vm is taken",
			       p->where);
	if (p->dev.id && vm_config_device(cfg, p->dev.id))
		return err_set(err, EEXIST,
			       "%s: there is a device with the id '%s' already",
			       p->where, p->dev.id);
	if (!p->dev.id && make_id(cfg, &p->dev))
		return err_set(err, ENOMEM, "out of memory");
	/* A default gives way. */
	if (vm_device_wants_terminal(&p->dev) && !cfg->serial.given)
		cfg->serial.kind = CHARDEV_NULL;
	insert(cfg, &p->dev);
	return 0;
}

static int begin(struct vm_config *cfg, const struct virtio_class *cls,
		 struct parse *p, struct err *err)
{
	const struct vm_device_config *old = of_class(cfg, cls);

	if (cls->single && old && old->from_file && !p->json)
		vm_config_remove_device(cfg, old->id);
	else if (cls->single && old)
		return err_set(err, EINVAL, "%s may be given only once",
			       p->where);
	if (cfg->num_devices == VM_MAX_DEVICES)
		return err_set(err, ENOSPC, "%s: more than %d devices",
			       p->where, VM_MAX_DEVICES);
	return device_init(&p->dev, cls) ? err_set(err, ENOMEM, "out of memory")
					 : 0;
}

int vm_config_add_device(struct vm_config *cfg, const struct virtio_class *cls,
			 const char *text, struct err *err)
{
	struct parse p = { .where = cls->option, .dev.cls = cls };
	int r = begin(cfg, cls, &p, err);

	if (r)
		return r;
	if (*text)
		r = kvlist_each(cls->option, text, cls->first_key,
				set_text_pair, &p, err);
	if (!r)
		r = finish(cfg, &p, err);
	device_fini(&p.dev);
	return r;
}

int vm_config_add_device_json(struct vm_config *cfg,
			      const struct virtio_class *cls,
			      const json_t *fields, const char *path,
			      const char **ret_id, struct err *err)
{
	struct parse p = { .where = path, .dev.cls = cls, .json = true };
	int r = begin(cfg, cls, &p, err);
	const char *id;

	if (r)
		return r;
	r = set_fields(&p, fields, err);
	if (!r && !p.dev.id && make_id(cfg, &p.dev))
		r = err_set(err, ENOMEM, "out of memory");
	id = p.dev.id;
	if (!r)
		r = finish(cfg, &p, err);
	if (!r && ret_id)
		*ret_id = id;
	device_fini(&p.dev);
	return r;
}

void vm_config_remove_device(struct vm_config *cfg, const char *id)
{
	struct vm_device_config *dev = vm_config_device(cfg, id);
	size_t index;

	if (!dev)
		return;
	index = (size_t)(dev - cfg->devices);
	device_fini(dev);
	cfg->num_devices--;
	memmove(dev, dev + 1, (cfg->num_devices - index) * sizeof(*dev));
}
