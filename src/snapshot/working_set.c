/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "snapshot/format.h"
#include "snapshot/reader.h"
#include "snapshot/records.h"

#define TMP_NAME "." SNAPSHOT_WORKING_SET ".tmp"

static void put_units(uint8_t *to, const struct working_set *set)
{
	for (uint64_t i = 0; i < set->num; i++) {
		const struct working_set_unit *u = &set->units[i];

		le64_store(to, u->gpa);
		for (size_t w = 0; w < WORKING_SET_WORDS; w++)
			le64_store(to + 8 + w * 8, u->pages[w]);
		to += RECORDS_WORKING_SET_BYTES;
	}
}

static int write_tmp(int dir_fd, const uint8_t *bytes, size_t len)
{
	_cleanup_close_ int fd = openat(
		dir_fd, TMP_NAME,
		O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : io_write_full(fd, bytes, len);

	if (!r && fsync(fd))
		r = -errno;
	return r;
}

static int put_file(int dir_fd, const uint8_t *bytes, size_t len)
{
	int r = write_tmp(dir_fd, bytes, len);

	if (!r && renameat(dir_fd, TMP_NAME, dir_fd, SNAPSHOT_WORKING_SET))
		r = -errno;
	if (r)
		(void)!unlinkat(dir_fd, TMP_NAME, 0);
	return r;
}

int snapshot_working_set_save(const struct snapshot_reader *r,
			      const struct working_set *set, struct err *err)
{
	size_t len = set->num * RECORDS_WORKING_SET_BYTES;
	uint8_t *bytes = malloc(RECORDS_HEADER_BYTES + len);
	int code = -ENOMEM;

	if (bytes) {
		put_units(bytes + RECORDS_HEADER_BYTES, set);
		records_header(&records_working_set,
			       bytes + RECORDS_HEADER_BYTES, set->num, bytes);
		code = put_file(snapshot_reader_dir_fd(r), bytes,
				RECORDS_HEADER_BYTES + len);
	}
	free(bytes);
	return code ? err_errno(err, -code,
				"snapshot %s: writing " SNAPSHOT_WORKING_SET,
				snapshot_reader_path(r))
		    : 0;
}

/* Some page that the unit does not have? */
static bool has_pages_beyond(const struct working_set_unit *u, uint64_t pages)
{
	for (uint64_t i = pages; i < MEM_UNIT_BYTES / PAGE_4K; i++) {
		if (bitmap_test(u->pages, i))
			return true;
	}
	return false;
}

static int check_unit(const struct working_set_unit *u,
		      const struct mem_range *ranges, unsigned int num_ranges,
		      uint64_t *seen)
{
	for (unsigned int i = 0; i < num_ranges; i++) {
		uint64_t off = u->gpa - ranges[i].start, left;

		if (u->gpa < ranges[i].start || off >= ranges[i].len)
			continue;
		left = ranges[i].len - off;
		if (!is_aligned(u->gpa, MEM_UNIT_BYTES) ||
		    has_pages_beyond(u, left / PAGE_4K) ||
		    bitmap_test(seen, u->gpa / MEM_UNIT_BYTES))
			return -EBADMSG;
		bitmap_set(seen, u->gpa / MEM_UNIT_BYTES);
		return 0;
	}
	return -EBADMSG;
}

static int parse_units(const uint8_t *p, struct working_set *set,
		       const struct mem_range *ranges, unsigned int num_ranges,
		       uint64_t *seen, struct err *err)
{
	for (uint64_t i = 0; i < set->num; i++) {
		struct working_set_unit *u = &set->units[i];

		u->gpa = le64_load(p);
		for (size_t w = 0; w < WORKING_SET_WORDS; w++)
			u->pages[w] = le64_load(p + 8 + w * 8);
		p += RECORDS_WORKING_SET_BYTES;
		if (check_unit(u, ranges, num_ranges, seen))
			return err_set(
				err, EBADMSG,
				SNAPSHOT_WORKING_SET
				": offset %llu: unit %#llx is out of place",
				(unsigned long long)(RECORDS_HEADER_BYTES +
						     i * RECORDS_WORKING_SET_BYTES),
				(unsigned long long)u->gpa);
	}
	return 0;
}

int working_set_parse(const void *bytes, size_t len,
		      const struct mem_range *ranges, unsigned int num_ranges,
		      struct working_set *ret, struct err *err)
{
	const struct mem_range *last = &ranges[num_ranges - 1];
	uint64_t units = div_round_up(last->start + last->len, MEM_UNIT_BYTES);
	int64_t num = records_check(&records_working_set, bytes, len, units,
				    err);
	struct working_set set = { 0 };
	uint64_t *seen;
	int r;

	if (num < 0)
		return (int)num;
	set.num = (uint64_t)num;
	set.units = calloc(set.num + 1, sizeof(*set.units));
	seen = calloc(BITMAP_WORDS(units), sizeof(*seen));
	if (set.units && seen)
		r = parse_units((const uint8_t *)bytes + RECORDS_HEADER_BYTES,
				&set, ranges, num_ranges, seen, err);
	else
		r = err_set(err, ENOMEM, "working set: out of memory");
	free(seen);
	if (r)
		working_set_fini(&set);
	else
		*ret = set;
	return r;
}

int snapshot_working_set_load(const struct snapshot_reader *r,
			      struct working_set *ret, struct err *err)
{
	const struct snapshot_manifest *m = snapshot_reader_manifest(r);
	uint64_t max = RECORDS_HEADER_BYTES +
		       mem_units(m->ranges, m->num_ranges) *
			       RECORDS_WORKING_SET_BYTES;
	_cleanup_free_ void *bytes = NULL;
	uint64_t len = 0;
	int code = snapshot_reader_read_file(r, SNAPSHOT_WORKING_SET, max,
					     &bytes, &len, err);

	if (!code)
		code = working_set_parse(bytes, len, m->ranges, m->num_ranges,
					 ret, err);
	if (code)
		err_prefix(err, "snapshot %s", snapshot_reader_path(r));
	return code;
}
