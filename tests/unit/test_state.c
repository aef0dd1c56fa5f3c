/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state/: the codec by itself. Round trips, growing, and hostile bytes: each
 * truncation, each flipped bit, with the checksum as it was and made right.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "state/state.h"

struct thing {
	int unrelated;
	uint8_t u8;
	uint16_t u16;
	uint32_t u32[3];
	uint64_t u64;
	bool flag, flags[2];
	uint8_t raw[5];
	struct state_blob blob;
	uint32_t later; /* came with version 2 */
};

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct thing, member, __VA_ARGS__)

static const struct state_field fields_v2[] = {
	F(UINT, u8, 1, .max = 200),
	F(UINT, u16, 2),
	F(UINTS, u32, 3),
	F(UINT, u64, 5),
	F(BOOL, flag, 6),
	F(BOOL, flags, 7),
	F(BYTES, raw, 8),
	F(BLOB, blob, 9, 64),
	F(UINT, later, 10, .since = 2),
};

static int check_thing(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct thing *t = loaded, *here = live;

	if (t->u16 == 666)
		return state_refuse(c, "u16", "%u, of all numbers", t->u16);
	if (here->unrelated == 13)
		return state_refuse(c, "u64", "not for this one");
	return 0;
}

/* What version 1 knew is the same without its last field. */
static const struct state_table v1 = {
	.section = "thing",
	.version = 1,
	.object_bytes = sizeof(struct thing),
	.fields = fields_v2,
	.num_fields = ARRAY_SIZE(fields_v2) - 1,
	.check = check_thing,
};

static const struct state_table v2 = {
	.section = "thing",
	.version = 2,
	.object_bytes = sizeof(struct thing),
	.fields = fields_v2,
	.num_fields = ARRAY_SIZE(fields_v2),
	.check = check_thing,
};

static struct thing example(void)
{
	struct thing t = {
		.unrelated = 1,
		.u8 = 0x12,
		.u16 = 0x3456,
		.u32 = { 0x789abcde, 0, UINT32_MAX },
		.u64 = 0x0123456789abcdef,
		.flag = true,
		.flags = { false, true },
		.raw = { 1, 2, 3, 4, 5 },
		.later = 77,
	};

	t.blob.data = malloc(3);
	assert_non_null(t.blob.data);
	memcpy(t.blob.data, "abc", 3);
	t.blob.bytes = 3;
	return t;
}

static void save_one(struct state_writer *w, const struct state_table *table,
		     const char *instance, const struct thing *t)
{
	state_writer_init(w);
	state_save(w, table, instance, t);
	assert_int_equal(state_writer_finish(w), 0);
}

static int load_bytes(const void *data, size_t bytes,
		      const struct state_table *table, const char *instance,
		      struct thing *t, struct err *err)
{
	struct state_reader r;
	int ret = state_reader_init(&r, data, bytes, err);

	if (ret)
		return ret;
	ret = state_load(&r, table, instance, t, err);
	if (!ret)
		ret = state_reader_finish(&r, err);
	state_reader_fini(&r);
	return ret;
}

static void assert_same(const struct thing *a, const struct thing *b)
{
	assert_int_equal(a->u8, b->u8);
	assert_int_equal(a->u16, b->u16);
	assert_memory_equal(a->u32, b->u32, sizeof(a->u32));
	assert_int_equal(a->u64, b->u64);
	assert_int_equal(a->flag, b->flag);
	assert_memory_equal(a->flags, b->flags, sizeof(a->flags));
	assert_memory_equal(a->raw, b->raw, sizeof(a->raw));
	assert_int_equal(a->blob.bytes, b->blob.bytes);
	assert_memory_equal(a->blob.data, b->blob.data, a->blob.bytes);
}

static void test_round_trip(void **state)
{
	struct thing t = example(), got = { .unrelated = 5 };
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v2, "one", &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "one", &got, &err),
			 0);
	assert_same(&t, &got);
	assert_int_equal(got.later, 77);
	assert_int_equal(got.unrelated, 5);
	/* Once more: a blob replaces the one that is there. */
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "one", &got, &err),
			 0);
	assert_same(&t, &got);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
	state_blob_fini(&got.blob);
}

/* The bytes of docs/state-format.md, by hand. */
static void test_layout(void **state)
{
	static const struct state_field fields[] = {
		STATE_FIELD_UINT(struct thing, u16, 2),
	};
	static const struct state_table table = {
		.section = "ab",
		.version = 7,
		.object_bytes = sizeof(struct thing),
		.fields = fields,
		.num_fields = 1,
	};
	static const uint8_t want[] = {
		'Q',  'U',  'I', 'R', 'E', 'S', 'T', 'A', /* magic */
		1,    0,    0,	 0,			  /* format */
		1,    0,    0,	 0,			  /* sections */
		61,   0,    0,	 0,   0,   0,	0,   0,	  /* bytes */
		10,   0,    0,	 0,			  /* payload */
		7,    0,				  /* version */
		0,    0,				  /* flags */
		2,    1,				  /* name, instance */
		1,    0,				  /* fields */
		0,    0,    0,	 0,			  /* zero */
		'a',  'b',  'x',			  /* names */
		2,    0,				  /* tag */
		0,    0,				  /* flags */
		2,    0,    0,	 0,			  /* length */
		0x34, 0x12,				  /* value */
	};
	const struct thing t = { .u16 = 0x1234 };
	struct state_writer w;

	save_one(&w, &table, "x", &t);
	assert_int_equal(w.bytes, sizeof(want) + 8);
	assert_memory_equal(w.data, want, sizeof(want));
	state_writer_fini(&w);
}

static void test_older_section(void **state)
{
	struct thing t = example(), got = { .later = 99 };
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v1, NULL, &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, NULL, &got, &err), 0);
	assert_same(&t, &got);
	assert_int_equal(got.later, 99); /* as the live object had it */
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
	state_blob_fini(&got.blob);
}

static void test_newer_section(void **state)
{
	struct state_field fields[ARRAY_SIZE(fields_v2)];
	struct state_table newer = v2;
	struct thing t = example(), got = { .u8 = 0 };
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v2, NULL, &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v1, NULL, &got, &err),
			 -ENOTSUP);
	assert_non_null(strstr(err.text, "tag 10"));
	assert_non_null(strstr(err.text, "'thing'"));
	assert_int_equal(got.u16, 0); /* nothing of it was taken */
	assert_null(got.blob.data);
	state_writer_fini(&w);

	/* The newer one said that it can be done without. */
	memcpy(fields, fields_v2, sizeof(fields));
	fields[ARRAY_SIZE(fields) - 1].skippable = true;
	newer.fields = fields;
	save_one(&w, &newer, NULL, &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v1, NULL, &got, &err), 0);
	assert_same(&t, &got);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
	state_blob_fini(&got.blob);
}

static void test_missing_field(void **state)
{
	struct state_table without = v1;
	struct thing t = example(), got = { .u8 = 0 };
	struct state_writer w;
	struct err err = ERR_INIT;

	without.fields++;
	without.num_fields--;
	save_one(&w, &without, NULL, &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v1, NULL, &got, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "'u8'"));
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
}

static void test_values_are_refused(void **state)
{
	struct thing t = example(), got = { .u8 = 3 };
	struct state_writer w;
	struct err err = ERR_INIT;

	t.u8 = 201;
	save_one(&w, &v2, "x", &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "x", &got, &err),
			 -EINVAL);
	assert_string_equal(err.text,
			    "saved state: section 'thing' of 'x' at byte 24: "
			    "field 'u8' at byte 46: 201, at most 200");
	assert_int_equal(got.u8, 3);
	state_writer_fini(&w);

	t.u8 = 1;
	t.u16 = 666;
	save_one(&w, &v2, "x", &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "x", &got, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "field 'u16' at byte 55: 666, of "));
	assert_int_equal(got.u8, 3);
	state_writer_fini(&w);

	t.u16 = 1;
	got.unrelated = 13;
	save_one(&w, &v2, "x", &t);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "x", &got, &err),
			 -EINVAL);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
}

static void test_blob_too_large(void **state)
{
	struct thing t = example();
	struct state_writer w;

	state_blob_fini(&t.blob);
	t.blob.data = calloc(1, 65);
	t.blob.bytes = 65;
	state_writer_init(&w);
	state_save(&w, &v2, NULL, &t);
	assert_int_equal(state_writer_finish(&w), -EFBIG);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
}

static void test_sections(void **state)
{
	struct thing t = example(), got = { .u8 = 0 };
	struct state_table other = v2;
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;

	other.section = "other";
	state_writer_init(&w);
	state_save(&w, &v2, "a", &t);
	state_save(&w, &other, "a", &t);
	state_save(&w, &v2, "b", &t);
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err), 0);
	assert_true(state_has(&r, "thing", "b"));
	assert_false(state_has(&r, "thing", NULL));
	assert_false(state_has(&r, "thin", "b"));
	/* In any order. */
	assert_int_equal(state_load(&r, &v2, "b", &got, &err), 0);
	assert_int_equal(state_load(&r, &v2, "a", &got, &err), 0);
	assert_int_equal(state_load(&r, &v2, "c", &got, &err), -ENOENT);
	assert_non_null(strstr(err.text, "'thing' of 'c'"));
	/* One is left that nobody wanted. */
	assert_int_equal(state_reader_finish(&r, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "'other'"));
	assert_int_equal(state_load(&r, &other, "a", &got, &err), 0);
	assert_int_equal(state_reader_finish(&r, &err), 0);
	state_reader_fini(&r);
	state_writer_fini(&w);

	/* The same twice. */
	state_writer_init(&w);
	state_save(&w, &v2, "a", &t);
	state_save(&w, &other, "a", &t);
	state_save(&w, &v2, "a", &t);
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "twice"));
	state_writer_fini(&w);

	/* One that can be done without. */
	other.skippable = true;
	state_writer_init(&w);
	state_save(&w, &other, "a", &t);
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err), 0);
	assert_int_equal(state_reader_finish(&r, &err), 0);
	state_reader_fini(&r);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
	state_blob_fini(&got.blob);
}

static void test_empty(void **state)
{
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;

	state_writer_init(&w);
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err), 0);
	assert_int_equal(state_reader_finish(&r, &err), 0);
	state_reader_fini(&r);
	state_writer_fini(&w);
	assert_int_equal(state_reader_init(&r, "", 0, &err), -EBADMSG);
}

static void test_other_format(void **state)
{
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;

	state_writer_init(&w);
	assert_int_equal(state_writer_finish(&w), 0);
	w.data[8] = 2;
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err),
			 -ENOTSUP);
	state_writer_fini(&w);
}

static void test_truncated(void **state)
{
	struct thing t = example(), got = { .u8 = 0 };
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v2, "x", &t);
	for (size_t n = 0; n < w.bytes; n++) {
		/* Of its own, so that a read behind it is noticed. */
		uint8_t *copy = malloc(n + 1);

		assert_non_null(copy);
		memcpy(copy, w.data, n);
		assert_int_equal(load_bytes(copy, n, &v2, "x", &got, &err),
				 -EBADMSG);
		/* The length made right, too. */
		if (n >= 32) {
			le64_store(copy + 16, n);
			state_fix_checksum(copy, n);
			assert_int_not_equal(
				load_bytes(copy, n, &v2, "x", &got, &err), 0);
		}
		free(copy);
	}
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
	state_blob_fini(&got.blob);
}

static void test_bit_flips(void **state)
{
	struct thing t = example();
	unsigned int accepted = 0;
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v2, "x", &t);
	for (size_t bit = 0; bit < 8 * w.bytes; bit++) {
		struct thing got = { .u8 = 0 };
		uint8_t *copy = malloc(w.bytes);
		int r;

		assert_non_null(copy);
		memcpy(copy, w.data, w.bytes);
		copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
		r = load_bytes(copy, w.bytes, &v2, "x", &got, &err);
		/* A version that is not known comes before the checksum. */
		assert_true(r == -EBADMSG || r == -ENOTSUP);
		state_fix_checksum(copy, w.bytes);
		r = load_bytes(copy, w.bytes, &v2, "x", &got, &err);
		assert_true(r <= 0);
		accepted += !r;
		if (!r) {
			assert_true(got.u8 <= 200);
			assert_true(got.blob.bytes <= 64);
		} else {
			assert_true(strlen(err.text) > 0);
			assert_int_equal(got.u16, 0);
			assert_null(got.blob.data);
		}
		state_blob_fini(&got.blob);
		free(copy);
	}
	/* Flips within values, most of them. */
	assert_in_range(accepted, 200, 8 * w.bytes / 2);
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
}

/* A document that claims to be more than it is costs no memory. */
static void test_claims(void **state)
{
	struct thing t = example(), got = { .u8 = 0 };
	struct state_writer w;
	struct err err = ERR_INIT;

	save_one(&w, &v2, "x", &t);
	le32_store(w.data + 12, UINT32_MAX); /* sections */
	state_fix_checksum(w.data, w.bytes);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "x", &got, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "byte 12"));
	le32_store(w.data + 12, 1);
	le32_store(w.data + 24, UINT32_MAX); /* payload */
	state_fix_checksum(w.data, w.bytes);
	assert_int_equal(load_bytes(w.data, w.bytes, &v2, "x", &got, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "byte 24"));
	state_writer_fini(&w);
	state_blob_fini(&t.blob);
}

/* As many sections as there may be, and one more; of the smallest kind. */
static void test_many_sections(void **state)
{
	static const struct state_table table = {
		.section = "s",
		.version = 1,
	};
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;
	char instance[16];
	uint8_t *copy, *h;

	state_writer_init(&w);
	for (unsigned int i = 0; i < STATE_MAX_SECTIONS; i++) {
		snprintf(instance, sizeof(instance), "%u", i);
		state_save(&w, &table, instance, NULL);
	}
	assert_int_equal(state_writer_finish(&w), 0);
	assert_int_equal(state_reader_init(&r, w.data, w.bytes, &err), 0);
	assert_true(state_has(&r, "s", "16383"));
	state_reader_fini(&r);
	/* One more, at its place, with all that a reader looks at right. */
	copy = calloc(1, w.bytes + 18);
	assert_non_null(copy);
	memcpy(copy, w.data, w.bytes - 8);
	h = copy + w.bytes - 8;
	le16_store(h + 4, 1);
	h[8] = h[9] = 1;
	h[16] = 's';
	h[17] = 'x';
	le32_store(copy + 12, STATE_MAX_SECTIONS + 1);
	le64_store(copy + 16, w.bytes + 18);
	state_fix_checksum(copy, w.bytes + 18);
	assert_int_equal(state_reader_init(&r, copy, w.bytes + 18, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "at most 16384"));
	free(copy);
	state_writer_fini(&w);

	state_writer_init(&w);
	for (unsigned int i = 0; i <= STATE_MAX_SECTIONS; i++)
		state_save(&w, &table, NULL, NULL);
	assert_int_equal(state_writer_finish(&w), -EFBIG);
	state_writer_fini(&w);
}

static void test_unsound_tables(void **state)
{
	static const struct state_field same_tag[] = {
		F(UINT, u8, 1),
		F(UINT, u16, 1),
	};
	static const struct state_field from_the_future[] = {
		F(UINT, u8, 1, .since = 3),
	};
	struct state_table t = v2;

	assert_true(state_table_is_sound(&t));
	t.section = "";
	assert_false(state_table_is_sound(&t));
	t.section = "a-name-that-is-longer-than-it-may-be";
	assert_false(state_table_is_sound(&t));
	t = v2;
	t.object_bytes = sizeof(struct thing) - 8;
	assert_false(state_table_is_sound(&t));
	t = v2;
	t.fields = same_tag;
	t.num_fields = ARRAY_SIZE(same_tag);
	assert_false(state_table_is_sound(&t));
	t.fields = from_the_future;
	t.num_fields = ARRAY_SIZE(from_the_future);
	assert_false(state_table_is_sound(&t));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_older_section),
		cmocka_unit_test(test_newer_section),
		cmocka_unit_test(test_missing_field),
		cmocka_unit_test(test_values_are_refused),
		cmocka_unit_test(test_blob_too_large),
		cmocka_unit_test(test_sections),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_other_format),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_claims),
		cmocka_unit_test(test_many_sections),
		cmocka_unit_test(test_unsound_tables),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
