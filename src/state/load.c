/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One section into one object. Tags ascend in the document as they do in the
 * table, so one walk over both tells what is known, unknown and missing, and
 * no field comes twice.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "state/state_priv.h"

struct state_check {
	const struct state_reader *reader;
	const struct state_section *section;
	const struct state_table *table;
	size_t *offsets; /* of each of the table's fields; 0: it is missing */
	char *scratch;
	struct err *err;
};

static bool is_section(const struct state_section *s, const char *name,
		       size_t name_len, const char *instance,
		       size_t instance_len)
{
	return s->name_len == name_len && s->instance_len == instance_len &&
	       memcmp(s->name, name, name_len) == 0 &&
	       (!instance_len || !memcmp(s->instance, instance, instance_len));
}

/* As a rule they are asked for in their order. */
static struct state_section *find(const struct state_reader *r,
				  const char *name, const char *instance)
{
	size_t name_len = strlen(name);
	size_t instance_len = instance ? strlen(instance) : 0;

	for (size_t i = 0; i < r->num_sections; i++) {
		size_t at = (r->next + i) % r->num_sections;
		struct state_section *s = &r->sections[at];

		if (is_section(s, name, name_len, instance, instance_len))
			return s;
	}
	return NULL;
}

bool state_has(const struct state_reader *r, const char *section,
	       const char *instance)
{
	return find(r, section, instance) != NULL;
}

/* "saved state: section 'serial' at byte 24: " in front of what err says. */
static int locate(const struct state_check *c, int r)
{
	const struct state_section *s = c->section;

	err_prefix(c->err, "saved state: section '%.*s'%s%.*s%s at byte %zu",
		   s->name_len, s->name, s->instance_len ? " of '" : "",
		   s->instance_len, s->instance, s->instance_len ? "'" : "",
		   s->offset);
	return r;
}

static size_t offset_of(const struct state_check *c, const uint8_t *p)
{
	return (size_t)(p - c->reader->data);
}

int state_refuse(const struct state_check *c, const char *field,
		 const char *fmt, ...)
{
	char text[256];
	size_t offset = 0;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	for (size_t i = 0; i < c->table->num_fields; i++)
		if (strcmp(c->table->fields[i].name, field) == 0)
			offset = c->offsets[i];
	if (offset)
		return err_set(c->err, EINVAL, "field '%s' at byte %zu: %s",
			       field, offset, text);
	return err_set(c->err, EINVAL, "field '%s': %s", field, text);
}

/* ---- values ---- */

static uint64_t load_uint(const uint8_t *from, uint32_t size)
{
	switch (size) {
	case 1:
		return *from;
	case 2:
		return le16_load(from);
	case 4:
		return le32_load(from);
	default:
		return le64_load(from);
	}
}

static void put_uint(char *to, uint64_t value, uint32_t size)
{
	uint8_t v8 = (uint8_t)value;
	uint16_t v16 = (uint16_t)value;
	uint32_t v32 = (uint32_t)value;

	switch (size) {
	case 1:
		memcpy(to, &v8, 1);
		break;
	case 2:
		memcpy(to, &v16, 2);
		break;
	case 4:
		memcpy(to, &v32, 4);
		break;
	default:
		memcpy(to, &value, 8);
	}
}

static int take_uints(const struct state_check *c, const struct state_field *f,
		      const uint8_t *from)
{
	for (uint32_t i = 0; i < f->count; i++) {
		size_t at = (size_t)i * f->size;
		uint64_t value = load_uint(from + at, f->size);

		if (f->max && value > f->max)
			return state_refuse(c, f->name, "%llu, at most %llu",
					    (unsigned long long)value,
					    (unsigned long long)f->max);
		put_uint(c->scratch + f->offset + at, value, f->size);
	}
	return 0;
}

static int take_bools(const struct state_check *c, const struct state_field *f,
		      const uint8_t *from)
{
	for (uint32_t i = 0; i < f->count; i++) {
		if (from[i] > 1)
			return state_refuse(c, f->name, "%u is neither 0 nor 1",
					    from[i]);
		c->scratch[f->offset + i] = (char)from[i];
	}
	return 0;
}

static int take_blob(const struct state_check *c, const struct state_field *f,
		     const uint8_t *from, uint32_t bytes)
{
	struct state_blob *blob = (void *)(c->scratch + f->offset);

	if (f->max && bytes > f->max)
		return state_refuse(c, f->name, "%u bytes, at most %llu", bytes,
				    (unsigned long long)f->max);
	if (!bytes)
		return 0;
	blob->data = malloc(bytes);
	if (!blob->data)
		return err_set(c->err, ENOMEM, "out of memory");
	memcpy(blob->data, from, bytes);
	blob->bytes = bytes;
	return 0;
}

static int take_value(const struct state_check *c, const struct state_field *f,
		      const uint8_t *from, uint32_t bytes)
{
	uint64_t want = (uint64_t)f->size * f->count;

	if (f->kind == STATE_BLOB)
		return take_blob(c, f, from, bytes);
	if (bytes != want)
		return state_refuse(c, f->name, "%u bytes instead of %llu",
				    bytes, (unsigned long long)want);
	if (f->kind == STATE_UINT)
		return take_uints(c, f, from);
	if (f->kind == STATE_BOOL)
		return take_bools(c, f, from);
	if (bytes)
		memcpy(c->scratch + f->offset, from, bytes);
	return 0;
}

/* ---- fields ---- */

struct raw_field {
	const uint8_t *header, *value;
	uint16_t tag;
	bool skippable;
	uint32_t bytes;
};

/* The field at *at of the payload; moves *at behind it. */
static int parse_field(const struct state_check *c, uint32_t *at,
		       uint16_t last_tag, struct raw_field *ret)
{
	const struct state_section *s = c->section;
	const uint8_t *h = s->payload + *at;
	uint16_t flags;

	if (!range_ok(*at, STATE_FIELD_HEADER_BYTES, s->payload_bytes))
		goto bad;
	flags = le16_load(h + STATE_FIELD_FLAGS);
	*ret = (struct raw_field){
		.header = h,
		.value = h + STATE_FIELD_HEADER_BYTES,
		.tag = le16_load(h + STATE_FIELD_TAG),
		.skippable = flags & STATE_FLAG_SKIPPABLE,
		.bytes = le32_load(h + STATE_FIELD_LENGTH),
	};
	*at += STATE_FIELD_HEADER_BYTES;
	if ((flags & ~STATE_FLAG_SKIPPABLE) || ret->tag <= last_tag ||
	    !range_ok(*at, ret->bytes, s->payload_bytes))
		goto bad;
	*at += ret->bytes;
	return 0;

bad:
	return err_set(c->err, EBADMSG, "no field at byte %zu",
		       offset_of(c, h));
}

/* A field of the table that the document does not have. */
static int miss_field(const struct state_check *c, const struct state_field *f)
{
	if (f->since > c->section->version)
		return 0; /* the section is older: scratch has the default */
	return err_set(c->err, EBADMSG, "field '%s' (tag %u) is missing",
		       f->name, f->tag);
}

static int unknown_field(const struct state_check *c,
			 const struct raw_field *raw)
{
	if (raw->skippable)
		return 0;
	return err_set(c->err, ENOTSUP,
		       "field with tag %u at byte %zu is not known to this "
		       "quire, which knows version %u of the section; it was "
		       "saved by a newer one (version %u)",
		       raw->tag, offset_of(c, raw->header), c->table->version,
		       c->section->version);
}

static int parse_fields(const struct state_check *c)
{
	const struct state_table *t = c->table;
	uint16_t last_tag = 0;
	uint32_t at = 0;
	size_t next = 0;
	int r;

	for (unsigned int n = 0; n < c->section->num_fields; n++) {
		struct raw_field raw = { .tag = 0 };

		r = parse_field(c, &at, last_tag, &raw);
		if (r)
			return r;
		last_tag = raw.tag;
		for (; next < t->num_fields && t->fields[next].tag < raw.tag;
		     next++) {
			r = miss_field(c, &t->fields[next]);
			if (r)
				return r;
		}
		if (next < t->num_fields && t->fields[next].tag == raw.tag) {
			c->offsets[next] = offset_of(c, raw.header);
			r = take_value(c, &t->fields[next++], raw.value,
				       raw.bytes);
		} else {
			r = unknown_field(c, &raw);
		}
		if (r)
			return r;
	}
	for (; next < t->num_fields; next++) {
		r = miss_field(c, &t->fields[next]);
		if (r)
			return r;
	}
	return at == c->section->payload_bytes
		       ? 0
		       : err_set(c->err, EBADMSG,
				 "bytes behind its last field");
}

/* ---- objects ---- */

/* Between objects of the table: from the live one for a start, and back. */
static void copy_fields(const struct state_table *t, char *to, const char *from,
			bool with_blobs)
{
	for (size_t i = 0; i < t->num_fields; i++) {
		const struct state_field *f = &t->fields[i];

		if (f->kind != STATE_BLOB) {
			memcpy(to + f->offset, from + f->offset,
			       (size_t)f->size * f->count);
		} else if (with_blobs) {
			state_blob_fini((void *)(to + f->offset));
			memcpy(to + f->offset, from + f->offset, f->size);
		}
	}
}

static void free_blobs(const struct state_table *t, char *obj)
{
	for (size_t i = 0; i < t->num_fields; i++)
		if (t->fields[i].kind == STATE_BLOB)
			state_blob_fini((void *)(obj + t->fields[i].offset));
}

void state_blob_fini(struct state_blob *blob)
{
	free(take_ptr(blob->data));
	blob->bytes = 0;
}

static int load_section(struct state_check *c, void *obj)
{
	int r;

	copy_fields(c->table, c->scratch, obj, false);
	r = parse_fields(c);
	if (!r && c->table->check)
		r = c->table->check(c, c->scratch, obj);
	if (r) {
		free_blobs(c->table, c->scratch);
		return locate(c, r);
	}
	copy_fields(c->table, obj, c->scratch, true);
	return 0;
}

/* With memory for it. */
static int load_with_scratch(struct state_check *c, void *obj)
{
	int r;

	c->offsets = calloc(c->table->num_fields + 1, sizeof(*c->offsets));
	c->scratch = calloc(1, c->table->object_bytes + 1u);
	r = c->offsets && c->scratch ? load_section(c, obj)
				     : err_set(c->err, ENOMEM, "out of memory");
	free(c->offsets);
	free(c->scratch);
	return r;
}

int state_load(struct state_reader *r, const struct state_table *table,
	       const char *instance, void *obj, struct err *err)
{
	struct state_section *s = find(r, table->section, instance);
	struct state_check c = {
		.reader = r,
		.section = s,
		.table = table,
		.err = err,
	};
	int ret;

	BUG_ON(!state_table_is_sound(table));
	if (!s)
		return err_set(err, ENOENT,
			       "saved state: there is no section '%s'%s%s%s",
			       table->section, instance ? " of '" : "",
			       instance ? instance : "", instance ? "'" : "");
	ret = load_with_scratch(&c, obj);
	if (ret)
		return ret;
	s->used = true;
	r->next = (size_t)(s - r->sections) + 1;
	return 0;
}
