/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a snapshot that are parsed: manifest, sums, map, working set.
 * The first byte says which. Checksums are made right first, or nothing behind
 * them would ever be reached; every eighth input is left as it is.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "snapshot/manifest.h"
#include "snapshot/records.h"
#include "snapshot/sum.h"
#include "snapshot/working_set.h"

static const struct mem_range ranges[] = {
	{ .start = 0, .len = 64 << 20 },
	{ .start = 4ull << 30, .len = (8 << 20) + 12288 },
};

/* The text with a checksum that fits; NULL: no JSON object. */
static char *with_checksum(const char *text, size_t len)
{
	json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
	char *compact, *fixed = NULL, hex[20];

	if (json_is_object(doc)) {
		json_object_del(doc, "checksum");
		compact = json_dumps(doc, JSON_COMPACT | JSON_SORT_KEYS);
		if (compact) {
			snprintf(hex, sizeof(hex), "%016llx",
				 (unsigned long long)sum_bytes(
					 compact, strlen(compact)));
			json_object_set_new(doc, "checksum", json_string(hex));
			fixed = json_dumps(doc, 0);
		}
		free(compact);
	}
	json_decref(doc);
	return fixed;
}

/* What is accepted comes out as it went in. */
static void round_trip(const struct snapshot_manifest *m)
{
	char *text = snapshot_manifest_format(m), *again;
	struct snapshot_manifest copy;
	struct err err = ERR_INIT;

	BUG_ON(!text);
	BUG_ON(snapshot_manifest_parse(&copy, text, strlen(text), &err));
	again = snapshot_manifest_format(&copy);
	BUG_ON(!again || strcmp(text, again) != 0);
	BUG_ON(snapshot_manifest_span(m) > 1ull << 46);
	snapshot_manifest_fini(&copy);
	free(again);
	free(text);
}

static void run_manifest(const char *text, size_t len, bool fix)
{
	char *fixed = fix ? with_checksum(text, len) : NULL;
	struct snapshot_manifest m;
	struct err err = ERR_INIT;
	int r;

	if (fixed) {
		text = fixed;
		len = strlen(fixed);
	}
	r = snapshot_manifest_parse(&m, text, len, &err);
	BUG_ON(r && !err.text[0]);
	if (!r) {
		round_trip(&m);
		snapshot_manifest_fini(&m);
	}
	free(fixed);
}

static void fix_sum(uint8_t *bytes, size_t len)
{
	if (len >= RECORDS_HEADER_BYTES)
		le64_store(bytes + 24, sum_bytes(bytes + RECORDS_HEADER_BYTES,
						 len - RECORDS_HEADER_BYTES));
}

static void run_map(const uint8_t *bytes, size_t len)
{
	struct err err = ERR_INIT;
	int64_t num = records_check(&records_map, bytes, len, 20000, &err);
	struct mem_range *runs;

	if (num < 0)
		return;
	runs = calloc((size_t)num + 1, sizeof(*runs));
	BUG_ON(!runs);
	if (!records_read_map(bytes + RECORDS_HEADER_BYTES, (uint64_t)num,
			      ranges, 2, runs, &err)) {
		for (int64_t i = 0; i < num; i++)
			BUG_ON(!records_in_ranges(ranges, 2, runs[i].start,
						  runs[i].len) ||
			       (i && runs[i].start <= runs[i - 1].start +
							      runs[i - 1].len));
	}
	free(runs);
}

static void run_working_set(const uint8_t *bytes, size_t len)
{
	struct working_set set;
	struct err err = ERR_INIT;

	if (working_set_parse(bytes, len, ranges, 2, &set, &err)) {
		BUG_ON(!err.text[0]);
		return;
	}
	for (uint64_t i = 0; i < set.num; i++)
		BUG_ON(!records_in_ranges(ranges, 2, set.units[i].gpa, 4096));
	working_set_fini(&set);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = ERR_INIT;
	uint8_t *copy;
	bool fix;

	if (!size)
		return 0;
	fix = data[0] / 4 % 8 != 7;
	copy = malloc(size);
	BUG_ON(!copy);
	memcpy(copy, data + 1, size - 1);
	if (fix && data[0] % 4)
		fix_sum(copy, size - 1);
	switch (data[0] % 4) {
	case 0:
		run_manifest((const char *)copy, size - 1, fix);
		break;
	case 1:
		(void)!records_check(&records_sums, copy, size - 1, 100, &err);
		break;
	case 2:
		run_map(copy, size - 1);
		break;
	default:
		run_working_set(copy, size - 1);
		break;
	}
	free(copy);
	return 0;
}
