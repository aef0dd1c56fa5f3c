/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/records.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "snapshot/format.h"
#include "snapshot/sum.h"

#define RECORDS_VERSION 1u

const struct records_kind records_sums = { SNAPSHOT_SUMS, "quireSUM", 8, 0 };
const struct records_kind records_map = { SNAPSHOT_MAP, "quireMAP", 16, 0 };
const struct records_kind records_working_set = {
	SNAPSHOT_WORKING_SET,
	"quireWST",
	RECORDS_WORKING_SET_BYTES,
	0,
};
const struct records_kind records_set_pages = {
	SNAPSHOT_SET_PAGES,
	"quireWSP",
	RECORDS_SET_PAGES_BYTES,
	RECORDS_SET_PAGES_PREFACE,
};

void records_header(const struct records_kind *kind, const void *body,
		    uint64_t num, uint8_t ret[RECORDS_HEADER_BYTES])
{
	memcpy(ret, kind->magic, 8);
	le32_store(ret + 8, RECORDS_VERSION);
	le32_store(ret + 12, kind->record_bytes);
	le64_store(ret + 16, num);
	le64_store(ret + 24, sum_bytes(body, kind->preface_bytes +
						     num * kind->record_bytes));
}

static int check_header(const struct records_kind *kind, const uint8_t *h,
			size_t len, struct err *err)
{
	if (len < RECORDS_HEADER_BYTES)
		return err_set(err, EBADMSG,
			       "%s: ends at offset %zu, in its header",
			       kind->name, len);
	if (memcmp(h, kind->magic, 8) != 0)
		return err_set(err, EBADMSG, "%s: offset 0: not such a file",
			       kind->name);
	if (le32_load(h + 8) != RECORDS_VERSION)
		return err_set(err, ENOTSUP,
			       "%s: offset 8: version %u; this quire knows %u",
			       kind->name, le32_load(h + 8), RECORDS_VERSION);
	if (le32_load(h + 12) != kind->record_bytes)
		return err_set(err, EBADMSG,
			       "%s: offset 12: records of %u bytes, not %u",
			       kind->name, le32_load(h + 12),
			       kind->record_bytes);
	return 0;
}

int64_t records_check(const struct records_kind *kind, const void *bytes,
		      size_t len, uint64_t max, struct err *err)
{
	const uint8_t *h = bytes;
	int r = check_header(kind, h, len, err);
	uint64_t num, size, body = len - RECORDS_HEADER_BYTES;

	if (r)
		return r;
	num = le64_load(h + 16);
	if (num > MIN(max, (uint64_t)INT64_MAX))
		return err_set(err, EBADMSG,
			       "%s: offset 16: %llu records, at most %llu can "
			       "be",
			       kind->name, (unsigned long long)num,
			       (unsigned long long)max);
	if (!mul_u64(num, kind->record_bytes, &size) ||
	    body < kind->preface_bytes || size != body - kind->preface_bytes)
		return err_set(err, EBADMSG,
			       "%s: offset %zu: the file ends here; its %llu "
			       "records do not",
			       kind->name, len, (unsigned long long)num);
	if (sum_bytes(h + RECORDS_HEADER_BYTES, body) != le64_load(h + 24))
		return err_set(err, EBADMSG,
			       "%s: offset 24: checksum does not match: the "
			       "file is damaged",
			       kind->name);
	return (int64_t)num;
}

bool records_in_ranges(const struct mem_range *ranges, unsigned int num,
		       uint64_t start, uint64_t len)
{
	for (unsigned int i = 0; i < num; i++) {
		if (start >= ranges[i].start &&
		    range_ok(start - ranges[i].start, len, ranges[i].len))
			return true;
	}
	return false;
}

int records_read_map(const void *records, uint64_t num,
		     const struct mem_range *ranges, unsigned int num_ranges,
		     struct mem_range *ret, struct err *err)
{
	const uint8_t *p = records;
	uint64_t end = 0;

	for (uint64_t i = 0; i < num; i++, p += records_map.record_bytes) {
		uint64_t start = le64_load(p), len = le64_load(p + 8);

		if (!len || !is_aligned(start | len, PAGE_4K) ||
		    (i && start <= end) ||
		    !records_in_ranges(ranges, num_ranges, start, len))
			return err_set(
				err, EBADMSG,
				"%s: offset %llu: run %#llx+%#llx is out of "
				"place",
				records_map.name,
				(unsigned long long)(RECORDS_HEADER_BYTES +
						     i * 16),
				(unsigned long long)start,
				(unsigned long long)len);
		end = start + len;
		ret[i] = (struct mem_range){ .start = start, .len = len };
	}
	return 0;
}
