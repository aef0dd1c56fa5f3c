/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON form of a configuration. What is accepted has to come out of an
 * export as it went in: the export of that export is the same.
 */
#include <stdint.h>
#include <string.h>

#include "vm/config_json.h"

static int check(struct vm_config *cfg, const json_t *doc)
{
	struct err err = ERR_INIT;
	int r = vm_config_from_json(cfg, doc, NULL, &err);

	if (r) {
		/* said, for people and for JSON */
		BUG_ON(!err.text[0]);
		return r;
	}
	(void)!vm_config_check(cfg, &err);
	return 0;
}

static void round_trip(const struct vm_config *cfg)
{
	json_t *doc = vm_config_to_json(cfg), *again;
	struct vm_config copy;

	vm_config_init(&copy);
	BUG_ON(!doc || check(&copy, doc));
	again = vm_config_to_json(&copy);
	BUG_ON(!json_equal(doc, again));
	json_decref(again);
	json_decref(doc);
	vm_config_fini(&copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = ERR_INIT;
	json_t *doc = vm_config_parse_text((const char *)data, size, &err);
	struct vm_config cfg;

	if (!doc)
		return 0;
	vm_config_init(&cfg);
	if (!check(&cfg, doc))
		round_trip(&cfg);
	vm_config_fini(&cfg);
	json_decref(doc);
	return 0;
}
