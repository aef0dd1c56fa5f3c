/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "state/state_priv.h"

#define FIRST_BYTES 4096u

/* Room for len more bytes at the end, which count as written; or NULL. */
static uint8_t *append(struct state_writer *w, size_t len)
{
	size_t want = w->bytes + len, capacity = w->capacity;
	uint8_t *data;

	if (w->error)
		return NULL;
	if (len > STATE_MAX_BYTES || want > STATE_MAX_BYTES) {
		w->error = -EFBIG;
		return NULL;
	}
	while (capacity < want)
		capacity = capacity ? 2 * capacity : FIRST_BYTES;
	if (capacity != w->capacity) {
		data = realloc(w->data, capacity);
		if (!data) {
			w->error = -ENOMEM;
			return NULL;
		}
		w->data = data;
		w->capacity = capacity;
	}
	data = w->data + w->bytes;
	w->bytes = want;
	return data;
}

/* Without its end. */
static void put_text(uint8_t *to, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		to[i] = (uint8_t)text[i];
}

void state_writer_init(struct state_writer *w)
{
	uint8_t *h;

	*w = (struct state_writer){ .data = NULL };
	h = append(w, STATE_HEADER_BYTES);
	if (!h)
		return;
	memset(h, 0, STATE_HEADER_BYTES);
	put_text(h, STATE_MAGIC, STATE_MAGIC_BYTES);
	le32_store(h + STATE_HEADER_VERSION, STATE_VERSION);
}

void state_writer_fini(struct state_writer *w)
{
	free(take_ptr(w->data));
	w->bytes = w->capacity = 0;
}

static void store_uint(uint8_t *to, const void *from, uint32_t size)
{
	switch (size) {
	case 1:
		memcpy(to, from, 1);
		break;
	case 2:
		le16_store(to, *(const uint16_t *)from);
		break;
	case 4:
		le32_store(to, *(const uint32_t *)from);
		break;
	default:
		le64_store(to, *(const uint64_t *)from);
	}
}

static size_t field_bytes(const struct state_field *f, const void *member)
{
	if (f->kind == STATE_BLOB)
		return ((const struct state_blob *)member)->bytes;
	return (size_t)f->size * f->count;
}

static void put_value(uint8_t *to, const struct state_field *f,
		      const void *member, size_t bytes)
{
	const struct state_blob *blob = member;
	const uint8_t *from = member;

	switch (f->kind) {
	case STATE_UINT:
		for (uint32_t i = 0; i < f->count; i++)
			store_uint(to + (size_t)i * f->size,
				   from + (size_t)i * f->size, f->size);
		break;
	case STATE_BOOL:
	case STATE_BYTES:
		memcpy(to, from, bytes);
		break;
	case STATE_BLOB:
		if (bytes)
			memcpy(to, blob->data, bytes);
		break;
	}
}

static void put_field(struct state_writer *w, const struct state_field *f,
		      const void *obj)
{
	const void *member = (const char *)obj + f->offset;
	size_t bytes = field_bytes(f, member);
	uint8_t *h;

	/* What would be refused when it is loaded. */
	if (f->kind == STATE_BLOB && f->max && bytes > f->max && !w->error)
		w->error = -EFBIG;
	h = append(w, STATE_FIELD_HEADER_BYTES + bytes);
	if (!h)
		return;
	le16_store(h + STATE_FIELD_TAG, f->tag);
	le16_store(h + STATE_FIELD_FLAGS,
		   f->skippable ? STATE_FLAG_SKIPPABLE : 0);
	le32_store(h + STATE_FIELD_LENGTH, (uint32_t)bytes);
	put_value(h + STATE_FIELD_HEADER_BYTES, f, member, bytes);
}

void state_save(struct state_writer *w, const struct state_table *table,
		const char *instance, const void *obj)
{
	size_t name_len = strlen(table->section);
	size_t instance_len = instance ? strlen(instance) : 0;
	size_t at = w->bytes, payload;
	uint8_t *h;

	BUG_ON(!state_table_is_sound(table) ||
	       instance_len > STATE_MAX_INSTANCE);
	h = append(w, STATE_SECTION_BYTES + name_len + instance_len);
	if (!h)
		return;
	memset(h, 0, STATE_SECTION_BYTES);
	le16_store(h + STATE_SECTION_VERSION, table->version);
	le16_store(h + STATE_SECTION_FLAGS,
		   table->skippable ? STATE_FLAG_SKIPPABLE : 0);
	h[STATE_SECTION_NAME_LEN] = (uint8_t)name_len;
	h[STATE_SECTION_INSTANCE_LEN] = (uint8_t)instance_len;
	le16_store(h + STATE_SECTION_FIELDS, (uint16_t)table->num_fields);
	put_text(h + STATE_SECTION_BYTES, table->section, name_len);
	put_text(h + STATE_SECTION_BYTES + name_len, instance, instance_len);
	payload = w->bytes;
	for (size_t i = 0; i < table->num_fields; i++)
		put_field(w, &table->fields[i], obj);
	/* What would be refused when it is loaded. */
	if (w->num_sections == STATE_MAX_SECTIONS && !w->error)
		w->error = -EFBIG;
	if (w->error)
		return;
	le32_store(w->data + at + STATE_SECTION_LENGTH,
		   (uint32_t)(w->bytes - payload));
	w->num_sections++;
}

int state_writer_finish(struct state_writer *w)
{
	if (!append(w, STATE_TRAILER_BYTES))
		return w->error;
	le32_store(w->data + STATE_HEADER_SECTIONS, w->num_sections);
	le64_store(w->data + STATE_HEADER_LENGTH, w->bytes);
	state_fix_checksum(w->data, w->bytes);
	return 0;
}

void state_fix_checksum(void *data, size_t bytes)
{
	size_t covered = bytes - STATE_TRAILER_BYTES;

	if (bytes >= STATE_TRAILER_BYTES)
		le64_store((char *)data + covered, XXH64(data, covered, 0));
}
