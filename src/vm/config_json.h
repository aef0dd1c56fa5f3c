/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration as JSON: a file for `quire run --config`, the body of the
 * API's vm.create, and what vm.info says. docs/config.md describes it. Field
 * names are Cloud Hypervisor's where there are such; each field goes through
 * the setter of the option it stands for.
 *
 * Everything in the document is hostile. Refused, with the field's path in the
 * message: unknown fields, wrong types, repeated fields, bad values. null is as
 * if the field were not there.
 */
#ifndef QUIRE_VM_CONFIG_JSON_H
#define QUIRE_VM_CONFIG_JSON_H

#include <jansson.h>

#include "vm/config.h"

/* Of the file or body, in bytes. */
#define VM_CONFIG_MAX_BYTES 0x100000
/* Objects and arrays within each other. */
#define VM_CONFIG_MAX_DEPTH 16

/*
 * For fields at the top that are not the VM's: what else `quire run` can be
 * told. Returns -ENOENT for a field it does not know either.
 */
struct vm_config_others {
	int (*set)(void *ctx, const char *field, const char *text,
		   struct err *err);
	void *ctx;
};

/*
 * Read doc into *cfg, which holds defaults or an earlier configuration. others
 * may be NULL. On failure *cfg is fit for vm_config_fini() only.
 * vm_config_check() is still to be called.
 */
__must_check int vm_config_from_json(struct vm_config *cfg, const json_t *doc,
				     const struct vm_config_others *others,
				     struct err *err);

/*
 * Parse text, which may hold anything. NULL: refused, err has the line. The API
 * uses it for every body.
 */
json_t *vm_config_parse_text(const char *text, size_t bytes, struct err *err);

/* Both, of a file. */
__must_check int vm_config_load(struct vm_config *cfg, const char *path,
				const struct vm_config_others *others,
				struct err *err);

/*
 * All of cfg, defaults included; vm_config_from_json() makes the same VM of it,
 * as long as the names of its files are UTF-8. NULL: out of memory.
 */
json_t *vm_config_to_json(const struct vm_config *cfg);

#endif
