/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "key=value,key=value" option strings ("--disk path=a.img,readonly=on").
 *
 * A caller describes the keys it knows in a table and gets each pair handed to
 * that key's setter. Unknown keys, repeated keys and missing values are
 * refused with a message that lists what is known. Values are not split
 * further; a literal comma in a value is written ",,".
 */
#ifndef QUIRE_BASE_KVLIST_H
#define QUIRE_BASE_KVLIST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct kvlist_key {
	const char *name;
	/*
	 * Store value into obj. On bad input fill err (the key is put in front
	 * by the caller) and return a negative errno.
	 */
	int (*set)(void *obj, const char *value, struct err *err);
};

/*
 * option is the name for messages ("--disk"). A first item without '=' is
 * taken as the value of first_key when that is not NULL ("--memory 512M").
 */
__must_check int kvlist_parse(const char *option, const char *text,
			      const char *first_key,
			      const struct kvlist_key *keys, size_t num_keys,
			      void *obj, struct err *err);

/*
 * The same syntax for a caller with keys of its own kind: fn is called for each
 * pair in order, until it fails. It fills err whole.
 */
__must_check int kvlist_each(const char *option, const char *text,
			     const char *first_key,
			     int (*fn)(void *ctx, const char *key,
				       const char *value, struct err *err),
			     void *ctx, struct err *err);

/* Fill err with "unknown key 'x' (known: ...)"; returns -EINVAL. */
int kvlist_unknown(const char *option, const char *key,
		   const struct kvlist_key *keys, size_t num_keys,
		   struct err *err);

/*
 * Setters' building blocks: a copy of the text, in the place of what *ret had;
 * a size, a bounded number, one that is a power of two as well, on|off, one of
 * names.
 */
__must_check int kvlist_string(const char *value, char **ret, struct err *err);
__must_check int kvlist_size(const char *value, uint64_t *ret, struct err *err);
__must_check int kvlist_u32(const char *value, uint32_t min, uint32_t max,
			    uint32_t *ret, struct err *err);
__must_check int kvlist_pow2(const char *value, uint32_t min, uint32_t max,
			     uint32_t *ret, struct err *err);
__must_check int kvlist_bool(const char *value, bool *ret, struct err *err);
__must_check int kvlist_enum(const char *value, const char *const *names,
			     size_t num_names, int *ret, struct err *err);

#endif
