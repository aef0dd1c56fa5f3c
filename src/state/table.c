/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/arith.h"
#include "state/state_priv.h"

static bool field_is_sound(const struct state_table *table,
			   const struct state_field *f)
{
	uint64_t bytes = (uint64_t)f->size * f->count;

	if (!f->name || !f->tag || !f->count || f->since > table->version ||
	    !range_ok(f->offset, bytes, table->object_bytes))
		return false;
	switch (f->kind) {
	case STATE_UINT:
		return is_pow2(f->size) && f->size <= 8;
	case STATE_BOOL:
		return f->size == 1;
	case STATE_BYTES:
		return f->count == 1;
	case STATE_BLOB:
		return f->count == 1 && f->size == sizeof(struct state_blob);
	}
	return false;
}

bool state_table_is_sound(const struct state_table *table)
{
	size_t len = strlen(table->section);
	uint16_t last = 0;

	if (!len || len > STATE_MAX_NAME || !table->version ||
	    table->num_fields > STATE_MAX_FIELDS)
		return false;
	for (size_t i = 0; i < table->num_fields; i++) {
		const struct state_field *f = &table->fields[i];

		if (f->tag <= last || !field_is_sound(table, f))
			return false;
		last = f->tag;
	}
	return true;
}
