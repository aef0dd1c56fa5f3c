/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame: it is read once, checked, and kept as a list of sections that
 * point into the document. The list is searched and sorted, and an entry of it
 * is larger than the smallest section: so there is a limit of its own.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "state/state_priv.h"

static int check_header(const uint8_t *data, size_t bytes, struct err *err)
{
	uint32_t version;
	uint64_t length;

	if (bytes < STATE_HEADER_BYTES + STATE_TRAILER_BYTES ||
	    memcmp(data, STATE_MAGIC, STATE_MAGIC_BYTES) != 0)
		return err_set(err, EBADMSG,
			       "not a saved state: it does not begin with "
			       "\"" STATE_MAGIC "\"");
	if (bytes > STATE_MAX_BYTES)
		return err_set(err, EBADMSG,
			       "saved state of %zu bytes; at most %u are taken",
			       bytes, STATE_MAX_BYTES);
	version = le32_load(data + STATE_HEADER_VERSION);
	if (version != STATE_VERSION)
		return err_set(err, ENOTSUP,
			       "saved state of format %u at byte %u; this "
			       "quire knows format %u",
			       version, STATE_HEADER_VERSION, STATE_VERSION);
	length = le64_load(data + STATE_HEADER_LENGTH);
	if (length != bytes)
		return err_set(err, EBADMSG,
			       "saved state has %zu bytes, and says at byte %u "
			       "that it has %llu: cut off or added to",
			       bytes, STATE_HEADER_LENGTH,
			       (unsigned long long)length);
	if (le64_load(data + bytes - STATE_TRAILER_BYTES) !=
	    XXH64(data, bytes - STATE_TRAILER_BYTES, 0))
		return err_set(err, EBADMSG,
			       "saved state is damaged: the checksum at byte "
			       "%zu does not fit",
			       bytes - STATE_TRAILER_BYTES);
	return 0;
}

/* A name is printed in messages: no control bytes, no quotes. */
static bool is_text(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (s[i] <= ' ' || s[i] > '~' || s[i] == '\'')
			return false;
	return true;
}

/* The section at *at of the first end bytes; moves *at behind it. */
static int parse_section(const uint8_t *data, size_t end, size_t *at,
			 struct state_section *s)
{
	const uint8_t *h = data + *at;
	size_t names;
	uint16_t flags;

	if (!range_ok(*at, STATE_SECTION_BYTES, end))
		return -EBADMSG;
	flags = le16_load(h + STATE_SECTION_FLAGS);
	*s = (struct state_section){
		.offset = *at,
		.name = (const char *)h + STATE_SECTION_BYTES,
		.name_len = h[STATE_SECTION_NAME_LEN],
		.instance_len = h[STATE_SECTION_INSTANCE_LEN],
		.version = le16_load(h + STATE_SECTION_VERSION),
		.num_fields = le16_load(h + STATE_SECTION_FIELDS),
		.skippable = flags & STATE_FLAG_SKIPPABLE,
		.payload_bytes = le32_load(h + STATE_SECTION_LENGTH),
	};
	names = (size_t)s->name_len + s->instance_len;
	if ((flags & ~STATE_FLAG_SKIPPABLE) || !s->version || !s->name_len ||
	    le32_load(h + STATE_SECTION_ZERO) || s->name_len > STATE_MAX_NAME ||
	    s->instance_len > STATE_MAX_INSTANCE ||
	    !range_ok(*at, STATE_SECTION_BYTES + names + s->payload_bytes, end))
		return -EBADMSG;
	s->instance = s->name + s->name_len;
	s->payload = h + STATE_SECTION_BYTES + names;
	*at += STATE_SECTION_BYTES + names + s->payload_bytes;
	return is_text(s->name, names) ? 0 : -EBADMSG;
}

static int compare(const void *a, const void *b)
{
	const struct state_section *x = *(const struct state_section *const *)a;
	const struct state_section *y = *(const struct state_section *const *)b;
	int r;

	if (x->name_len != y->name_len)
		return x->name_len < y->name_len ? -1 : 1;
	if (x->instance_len != y->instance_len)
		return x->instance_len < y->instance_len ? -1 : 1;
	/* The instance follows the name. */
	r = memcmp(x->name, y->name, (size_t)x->name_len + x->instance_len);
	return r;
}

static int check_unique(const struct state_reader *r, struct err *err)
{
	_cleanup_free_ const struct state_section **sorted = NULL;

	sorted = calloc(r->num_sections + 1, sizeof(struct state_section *));
	if (!sorted)
		return err_set(err, ENOMEM, "out of memory");
	for (size_t i = 0; i < r->num_sections; i++)
		sorted[i] = &r->sections[i];
	qsort(sorted, r->num_sections, sizeof(struct state_section *), compare);
	for (size_t i = 1; i < r->num_sections; i++)
		if (compare(&sorted[i - 1], &sorted[i]) == 0)
			return err_set(err, EBADMSG,
				       "saved state: section '%.*s' of '%.*s' "
				       "at byte %zu is there twice",
				       sorted[i]->name_len, sorted[i]->name,
				       sorted[i]->instance_len,
				       sorted[i]->instance, sorted[i]->offset);
	return 0;
}

static int parse_sections(struct state_reader *r, struct err *err)
{
	size_t end = r->bytes - STATE_TRAILER_BYTES;
	uint32_t num = le32_load(r->data + STATE_HEADER_SECTIONS);
	size_t at = STATE_HEADER_BYTES;

	if (num > (end - at) / STATE_SECTION_BYTES)
		return err_set(err, EBADMSG,
			       "saved state says at byte %u that it has %u "
			       "sections, more than fit",
			       STATE_HEADER_SECTIONS, num);
	if (num > STATE_MAX_SECTIONS)
		return err_set(err, EBADMSG,
			       "saved state says at byte %u that it has %u "
			       "sections; at most %u are taken",
			       STATE_HEADER_SECTIONS, num, STATE_MAX_SECTIONS);
	r->sections = calloc((size_t)num + 1, sizeof(*r->sections));
	if (!r->sections)
		return err_set(err, ENOMEM, "out of memory");
	for (; r->num_sections < num; r->num_sections++) {
		size_t begin = at;

		if (parse_section(r->data, end, &at,
				  &r->sections[r->num_sections]))
			return err_set(err, EBADMSG,
				       "saved state: no section at byte %zu",
				       begin);
	}
	if (at != end)
		return err_set(err, EBADMSG,
			       "saved state: %zu bytes at byte %zu belong to "
			       "no section",
			       end - at, at);
	return check_unique(r, err);
}

int state_reader_init(struct state_reader *r, const void *data, size_t bytes,
		      struct err *err)
{
	int ret;

	*r = (struct state_reader){ .data = data, .bytes = bytes };
	ret = check_header(data, bytes, err);
	if (!ret)
		ret = parse_sections(r, err);
	if (ret)
		state_reader_fini(r);
	return ret;
}

void state_reader_fini(struct state_reader *r)
{
	free(take_ptr(r->sections));
	r->num_sections = 0;
}

int state_reader_finish(const struct state_reader *r, struct err *err)
{
	for (size_t i = 0; i < r->num_sections; i++) {
		const struct state_section *s = &r->sections[i];

		if (s->used || s->skippable)
			continue;
		return err_set(err, ENOTSUP,
			       "saved state: section '%.*s' of '%.*s' at byte "
			       "%zu has no place in this machine",
			       s->name_len, s->name, s->instance_len,
			       s->instance, s->offset);
	}
	return 0;
}
