/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saved state: what a snapshot keeps and a migration sends of a machine, apart
 * from guest memory and disks.
 *
 * A document is a header, sections, a checksum. A section is what one thing (a
 * serial port, a vCPU, a queue) has to say: a name, which of its kind it is
 * (the instance), a version, and tagged fields. What the fields are is told by
 * a table over a C struct; the struct itself is never written, and neither
 * padding nor the compiler's layout gets out. docs/state-format.md has the
 * bytes.
 *
 * Growing it. A new field gets the next tag and the table's next version, which
 * is its `since`; loading an older section leaves it as the live object has it.
 * Fields are never removed nor given another meaning or width. What an older
 * reader may ignore without harm is marked skippable; it refuses all else that
 * it does not know.
 *
 * Loading. The bytes are hostile: each length is checked before it is used,
 * nothing is allocated that the document does not pay for in bytes of its own
 * (but for the list of sections, of which there may not be many), and fields go
 * into a scratch object. Only when the table's limits and check() are content
 * are they copied over to the live one, so an object has all of its section or
 * nothing. A refusal names section, field and byte.
 *
 * Threads: a writer or reader belongs to one thread at a time. The object being
 * saved or loaded must hold still: its owner locks it.
 */
#ifndef QUIRE_STATE_STATE_H
#define QUIRE_STATE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* A document of more bytes is neither written nor read. */
#define STATE_MAX_BYTES	   (256u << 20)
#define STATE_MAX_NAME	   31u /* bytes of a section's name */
#define STATE_MAX_INSTANCE 95u
#define STATE_MAX_FIELDS   256u /* of a section */
/* Of a document. All CPUs and queues a machine can have are 7000 or so. */
#define STATE_MAX_SECTIONS 16384u

enum state_kind {
	STATE_UINT,  /* count integers of size 1, 2, 4 or 8 bytes */
	STATE_BOOL,  /* count bools, a byte each: 0 or 1 */
	STATE_BYTES, /* size bytes as they are */
	STATE_BLOB,  /* a struct state_blob */
};

/* Bytes on the heap, as many as there happen to be. */
struct state_blob {
	uint8_t *data;
	size_t bytes;
};

struct state_field {
	const char *name; /* for messages */
	uint16_t tag;	  /* ascending in a table; never given twice */
	uint16_t since;	  /* version of the section it came with; 0: always */
	enum state_kind kind;
	bool skippable; /* who does not know it may do without */
	uint32_t offset, size, count;
	/* UINT: the largest value; BLOB: most bytes. 0: no limit of its own. */
	uint64_t max;
};

#define STATE_SIZE_OF(type, member) sizeof(((type *)0)->member)

#define STATE_FIELD_UINT(type, member, number, ...)                            \
	{                                                                      \
		.name = #member, .tag = (number), .kind = STATE_UINT,          \
		.offset = offsetof(type, member),                              \
		.size = STATE_SIZE_OF(type, member), .count = 1, ##__VA_ARGS__ \
	}
/* An array of integers, all of it. */
#define STATE_FIELD_UINTS(type, member, number, ...)                  \
	{                                                             \
		.name = #member, .tag = (number), .kind = STATE_UINT, \
		.offset = offsetof(type, member),                     \
		.size = STATE_SIZE_OF(type, member[0]),               \
		.count = STATE_SIZE_OF(type, member) /                \
			 STATE_SIZE_OF(type, member[0]),              \
		##__VA_ARGS__                                         \
	}
#define STATE_FIELD_BOOL(type, member, number, ...)                   \
	{                                                             \
		.name = #member, .tag = (number), .kind = STATE_BOOL, \
		.offset = offsetof(type, member), .size = 1,          \
		.count = STATE_SIZE_OF(type, member), ##__VA_ARGS__   \
	}
#define STATE_FIELD_BYTES(type, member, number, ...)                           \
	{                                                                      \
		.name = #member, .tag = (number), .kind = STATE_BYTES,         \
		.offset = offsetof(type, member),                              \
		.size = STATE_SIZE_OF(type, member), .count = 1, ##__VA_ARGS__ \
	}
#define STATE_FIELD_BLOB(type, member, number, limit, ...)                     \
	{                                                                      \
		.name = #member, .tag = (number), .kind = STATE_BLOB,          \
		.offset = offsetof(type, member),                              \
		.size = sizeof(struct state_blob), .count = 1, .max = (limit), \
		##__VA_ARGS__                                                  \
	}

struct state_check;

struct state_table {
	const char *section;
	uint16_t version; /* at least the largest `since` */
	bool skippable;	  /* who does not know the section may do without */
	uint32_t object_bytes;
	const struct state_field *fields;
	size_t num_fields;
	/*
	 * Is what was loaded possible, in itself and for the live object? The
	 * limits of single fields have been checked. 0 or state_refuse(). May
	 * be NULL.
	 */
	int (*check)(const struct state_check *c, const void *loaded,
		     const void *live);
};

/* A programming error in a table (order of tags, sizes); for tests. */
bool state_table_is_sound(const struct state_table *table);

/* -- writing -- */

struct state_writer {
	uint8_t *data; /* the document, once finished */
	size_t bytes, capacity;
	uint32_t num_sections;
	int error; /* the first; what follows it has no effect */
};

void state_writer_init(struct state_writer *w);
void state_writer_fini(struct state_writer *w);

/*
 * Append a section with the fields of obj. instance may be NULL. Failures (no
 * memory, too much) show in state_writer_finish().
 */
void state_save(struct state_writer *w, const struct state_table *table,
		const char *instance, const void *obj);

/* Complete the document: w->data, w->bytes. 0, -ENOMEM or -EFBIG. */
__must_check int state_writer_finish(struct state_writer *w);

/* -- reading -- */

struct state_section {
	size_t offset;		     /* of its header in the document */
	const char *name, *instance; /* not terminated */
	uint8_t name_len, instance_len;
	uint16_t version, num_fields;
	bool skippable, used;
	const uint8_t *payload;
	uint32_t payload_bytes;
};

struct state_reader {
	const uint8_t *data;
	size_t bytes;
	struct state_section *sections;
	size_t num_sections;
	size_t next; /* where to look first */
};

/*
 * Check the frame: header, lengths, checksum, no two sections alike. data stays
 * the caller's and has to stay. -EBADMSG: not such a document, or damaged;
 * -ENOTSUP: of a version that is not known.
 */
__must_check int state_reader_init(struct state_reader *r, const void *data,
				   size_t bytes, struct err *err);
void state_reader_fini(struct state_reader *r);

bool state_has(const struct state_reader *r, const char *section,
	       const char *instance);

/*
 * Load a section into obj, of which only the table's fields are changed, and on
 * failure none. A blob replaces the one that is there. -ENOENT: there is no
 * such section; -EBADMSG: it breaks the format; -ENOTSUP: it has what this
 * version does not know; -EINVAL: its values are not possible here.
 */
__must_check int state_load(struct state_reader *r,
			    const struct state_table *table,
			    const char *instance, void *obj, struct err *err);

/*
 * All has been loaded that this machine has a place for: is there a section
 * that nobody wanted, and which is not skippable? -ENOTSUP then.
 */
__must_check int state_reader_finish(const struct state_reader *r,
				     struct err *err);

/*
 * Make the checksum right again, for tests that damage what it covers. bytes:
 * a whole document.
 */
void state_fix_checksum(void *data, size_t bytes);

/* For check(): fills the error, with where field is. Returns -EINVAL. */
int state_refuse(const struct state_check *c, const char *field,
		 const char *fmt, ...) __printf_fmt(3, 4);

/* Take the bytes over, or give them back. */
void state_blob_fini(struct state_blob *blob);

#endif
