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
#include "snapshot/set_pages.h"
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

/* The pages of a set of two units, in a file that ends where the bytes do. */
static void run_set_pages(uint8_t *bytes, size_t len, bool fix)
{
	struct working_set_unit units[] = {
		{ .gpa = 2 << 20, .pages = { 5 } },
		{ .gpa = 0, .pages = { [7] = ~0ull } },
	};
	const struct working_set set = { .num = 2, .units = units };
	struct set_pages_unit kept[2];
	struct err err = ERR_INIT;
	uint64_t end;

	if (len < set_pages_head_bytes(&set))
		return;
	if (fix) {
		le64_store(bytes + RECORDS_HEADER_BYTES,
			   sum_bytes(units, sizeof(units)));
		fix_sum(bytes, set_pages_head_bytes(&set));
	}
	if (set_pages_parse(bytes, len, &set,
			    "01234567-89ab-cdef-0123-456789abcdef", kept,
			    &err)) {
		BUG_ON(!err.text[0]);
		return;
	}
	for (unsigned int i = 0; i < 2; i++) {
		end = kept[i].offset + working_set_count(kept[i].pages) * 4096;
		BUG_ON(kept[i].offset % 4096 || end > len);
		for (unsigned int w = 0; w < WORKING_SET_WORDS; w++)
			BUG_ON(kept[i].pages[w] & ~units[i].pages[w]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
		if (size > 8 && !memcmp(copy, records_set_pages.magic, 8))
			run_set_pages(copy, size - 1, fix);
		else
			run_working_set(copy, size - 1);
		break;
	}
	free(copy);
	return 0;
}
