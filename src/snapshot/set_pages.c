/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/set_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/zero.h"
#include "mem/source.h"
#include "snapshot/format.h"
#include "snapshot/manifest.h"
#include "snapshot/reader.h"
#include "snapshot/records.h"
#include "snapshot/sum.h"

#define TMP_NAME "." SNAPSHOT_SET_PAGES ".tmp"

#define PREFACE_ID 8 /* its offset */

_Static_assert(PREFACE_ID + SNAPSHOT_ID_CHARS <= RECORDS_SET_PAGES_PREFACE,
	       "room for the id");
/* And so it is summed up as it is in the file. */
_Static_assert(sizeof(struct working_set_unit) == RECORDS_WORKING_SET_BYTES,
	       "a unit has no padding");

struct set_pages {
	int fd;
	struct set_pages_unit *units;
	struct working_set_store store;
};

/* Which set, of which snapshot. */
static void put_preface(const struct working_set *set, const char *id,
			uint8_t ret[RECORDS_SET_PAGES_PREFACE])
{
	memset(ret, 0, RECORDS_SET_PAGES_PREFACE);
	le64_store(ret,
		   sum_bytes(set->units, set->num * RECORDS_WORKING_SET_BYTES));
	memcpy(ret + PREFACE_ID, id, SNAPSHOT_ID_CHARS);
}

size_t set_pages_head_bytes(const struct working_set *set)
{
	return RECORDS_HEADER_BYTES + RECORDS_SET_PAGES_PREFACE +
	       set->num * RECORDS_SET_PAGES_BYTES;
}

static uint64_t data_offset(const struct working_set *set)
{
	return align_up(set_pages_head_bytes(set), PAGE_4K);
}

/* 0 says that a unit is not kept. */
static uint64_t sum_kept(const void *bytes, size_t len)
{
	uint64_t sum = len ? sum_bytes(bytes, len) : 1;

	return sum ? sum : 1;
}

/* ---- writing ---- */

struct saving {
	const struct working_set *set;
	const struct mem_source *source;
	const struct snapshot_manifest *manifest;
	uint8_t *head;
	char *unit, *packed; /* 2 MiB each */
	uint64_t end;	     /* of what was written */
};

/* Bytes of the unit at gpa, which is in the ranges: sets are checked. */
static uint64_t unit_bytes(const struct snapshot_manifest *m, uint64_t gpa)
{
	for (unsigned int i = 0; i < m->num_ranges; i++) {
		uint64_t off = gpa - m->ranges[i].start;

		if (off < m->ranges[i].len)
			return MIN(MEM_UNIT_BYTES, m->ranges[i].len - off);
	}
	return 0;
}

/* Those that are zero need no more than a bit in the set. */
static uint64_t pack(const struct saving *s, const struct working_set_unit *u,
		     uint64_t len, uint8_t *record)
{
	uint64_t pages[WORKING_SET_WORDS] = { 0 };
	char *to = s->packed;

	for (uint64_t at = 0; at < len; at += PAGE_4K) {
		if (!bitmap_test(u->pages, at / PAGE_4K) ||
		    zero_is_all(s->unit + at, PAGE_4K))
			continue;
		bitmap_set(pages, at / PAGE_4K);
		memcpy(to, s->unit + at, PAGE_4K);
		to += PAGE_4K;
	}
	for (size_t w = 0; w < WORKING_SET_WORDS; w++)
		le64_store(record + w * 8, pages[w]);
	return (uint64_t)(to - s->packed);
}

static int save_unit(struct saving *s, int fd, uint64_t i, struct err *err)
{
	const struct working_set_unit *u = &s->set->units[i];
	uint64_t len = unit_bytes(s->manifest, u->gpa), bytes;
	uint8_t *record = s->head + RECORDS_HEADER_BYTES +
			  RECORDS_SET_PAGES_PREFACE +
			  i * RECORDS_SET_PAGES_BYTES;
	int r;

	if (!len || working_set_count(u->pages) > SET_PAGES_MAX)
		return 0;
	r = mem_source_read(s->source, GPA(u->gpa), s->unit, len, err);
	if (r)
		return r;
	bytes = pack(s, u, len, record);
	le64_store(record + sizeof(u->pages), sum_kept(s->packed, bytes));
	r = io_pwrite_full(fd, s->packed, bytes, s->end);
	if (r)
		return err_errno(err, -r, "writing it");
	s->end += bytes;
	return 0;
}

static int save_all(struct saving *s, int fd, const char *id,
		    const _Atomic bool *stop, struct err *err)
{
	uint8_t *preface = s->head + RECORDS_HEADER_BYTES;
	int r = 0;

	s->end = data_offset(s->set);
	for (uint64_t i = 0; !r && i < s->set->num; i++)
		r = atomic_load(stop) ? err_set(err, ECANCELED, "stopped")
				      : save_unit(s, fd, i, err);
	if (r)
		return r;
	put_preface(s->set, id, preface);
	records_header(&records_set_pages, preface, s->set->num, s->head);
	r = io_pwrite_full(fd, s->head, set_pages_head_bytes(s->set), 0);
	if (!r && fsync(fd))
		r = -errno;
	return r ? err_errno(err, -r, "writing it") : 0;
}

static int save_tmp(struct saving *s, int dir_fd, const char *id,
		    const _Atomic bool *stop, struct err *err)
{
	_cleanup_close_ int fd = openat(
		dir_fd, TMP_NAME,
		O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		return err_errno(err, errno, "making it");
	return save_all(s, fd, id, stop, err);
}

/* Where nothing was kept there is nothing to be gained. */
static int put_tmp(const struct saving *s, int dir_fd, struct err *err)
{
	if (s->end > data_offset(s->set)) {
		if (!renameat(dir_fd, TMP_NAME, dir_fd, SNAPSHOT_SET_PAGES))
			return 0;
		return err_errno(err, errno, "putting it in its place");
	}
	(void)!unlinkat(dir_fd, TMP_NAME, 0);
	(void)!unlinkat(dir_fd, SNAPSHOT_SET_PAGES, 0);
	return 0;
}

int set_pages_save(const struct snapshot_reader *r,
		   const struct working_set *set, const _Atomic bool *stop,
		   struct err *err)
{
	int dir_fd = snapshot_reader_dir_fd(r), code = -ENOMEM;
	struct saving s = {
		.set = set,
		.source = snapshot_reader_memory(r),
		.manifest = snapshot_reader_manifest(r),
		.head = calloc(1, set_pages_head_bytes(set)),
		.unit = malloc(MEM_UNIT_BYTES),
		.packed = malloc(MEM_UNIT_BYTES),
	};

	if (s.head && s.unit && s.packed) {
		code = save_tmp(&s, dir_fd, s.manifest->id, stop, err);
		if (!code)
			code = put_tmp(&s, dir_fd, err);
		if (code)
			(void)!unlinkat(dir_fd, TMP_NAME, 0);
	} else {
		err_set(err, ENOMEM, "out of memory");
	}
	free(s.packed);
	free(s.unit);
	free(s.head);
	if (code)
		err_prefix(err, "snapshot %s: " SNAPSHOT_SET_PAGES,
			   snapshot_reader_path(r));
	return code;
}

/* ---- reading ---- */

static int parse_unit(const uint8_t *p, const struct working_set_unit *of,
		      struct set_pages_unit *ret)
{
	uint64_t all = 0;

	for (size_t w = 0; w < WORKING_SET_WORDS; w++) {
		ret->pages[w] = le64_load(p + w * 8);
		all |= ret->pages[w];
		if (ret->pages[w] & ~of->pages[w])
			return -EBADMSG;
	}
	ret->sum = le64_load(p + sizeof(ret->pages));
	return ret->sum || !all ? 0 : -EBADMSG;
}

static int parse_units(const uint8_t *p, uint64_t file_len,
		       const struct working_set *set,
		       struct set_pages_unit *ret, struct err *err)
{
	uint64_t end = data_offset(set);

	for (uint64_t i = 0; i < set->num; i++) {
		if (parse_unit(p + i * RECORDS_SET_PAGES_BYTES, &set->units[i],
			       &ret[i]))
			return err_set(err, EBADMSG,
				       SNAPSHOT_SET_PAGES
				       ": record %llu has pages that are not "
				       "in the set",
				       (unsigned long long)i);
		ret[i].offset = end;
		end += working_set_count(ret[i].pages) * PAGE_4K;
	}
	if (end != file_len)
		return err_set(err, EBADMSG,
			       SNAPSHOT_SET_PAGES
			       ": ends at offset %llu; its pages at %llu",
			       (unsigned long long)file_len,
			       (unsigned long long)end);
	return 0;
}

int set_pages_parse(const void *bytes, uint64_t file_len,
		    const struct working_set *set, const char *id,
		    struct set_pages_unit *ret, struct err *err)
{
	const uint8_t *preface = (const uint8_t *)bytes + RECORDS_HEADER_BYTES;
	uint8_t want[RECORDS_SET_PAGES_PREFACE];
	int64_t num = records_check(&records_set_pages, bytes,
				    set_pages_head_bytes(set), set->num, err);

	if (num < 0)
		return (int)num;
	put_preface(set, id, want);
	if (memcmp(preface, want, sizeof(want)) != 0)
		return err_set(err, ESTALE,
			       SNAPSHOT_SET_PAGES
			       ": offset 32: of another working set");
	return parse_units(preface + RECORDS_SET_PAGES_PREFACE, file_len, set,
			   ret, err);
}

static int read_kept(void *ctx, uint64_t i, void *buf,
		     uint64_t ret_pages[WORKING_SET_WORDS], struct err *err)
{
	const struct set_pages *p = ctx;
	const struct set_pages_unit *u = &p->units[i];
	size_t len = (size_t)working_set_count(u->pages) * PAGE_4K;
	int r;

	if (!u->sum)
		return 0;
	r = io_pread_full(p->fd, buf, len, u->offset);
	if (r)
		return err_errno(err, -r,
				 "reading " SNAPSHOT_SET_PAGES
				 " at offset %llu",
				 (unsigned long long)u->offset);
	if (sum_kept(buf, len) != u->sum)
		return err_set(err, EBADMSG,
			       SNAPSHOT_SET_PAGES
			       " at offset %llu: checksum does not match: the "
			       "file is damaged",
			       (unsigned long long)u->offset);
	memcpy(ret_pages, u->pages, sizeof(u->pages));
	return 1;
}

static int read_head(int fd, uint64_t file_len, const struct working_set *set,
		     const char *id, struct set_pages_unit *ret,
		     struct err *err)
{
	size_t len = set_pages_head_bytes(set);
	_cleanup_free_ void *bytes = NULL;
	int r;

	if (file_len < len)
		return err_set(err, EBADMSG,
			       SNAPSHOT_SET_PAGES
			       ": ends at offset %llu, in its records",
			       (unsigned long long)file_len);
	bytes = malloc(len);
	if (!bytes)
		return err_set(err, ENOMEM, "out of memory");
	r = io_pread_full(fd, bytes, len, 0);
	if (r)
		return err_errno(err, -r, "reading " SNAPSHOT_SET_PAGES);
	return set_pages_parse(bytes, file_len, set, id, ret, err);
}

static int open_pages(struct set_pages *p, const struct snapshot_reader *r,
		      const struct working_set *set, struct err *err)
{
	uint64_t len = 0;

	p->store = (struct working_set_store){ .read = read_kept, .ctx = p };
	p->fd = snapshot_reader_open_file(r, SNAPSHOT_SET_PAGES, &len, err);
	if (p->fd < 0)
		return p->fd;
	p->units = calloc(set->num + 1, sizeof(*p->units));
	if (!p->units)
		return err_set(err, ENOMEM, "out of memory");
	return read_head(p->fd, len, set, snapshot_reader_manifest(r)->id,
			 p->units, err);
}

int set_pages_open(struct set_pages **ret, const struct snapshot_reader *r,
		   const struct working_set *set, struct err *err)
{
	struct set_pages *p = calloc(1, sizeof(*p));
	int code;

	if (!p)
		return err_set(err, ENOMEM, "out of memory");
	p->fd = -1;
	code = open_pages(p, r, set, err);
	if (!code) {
		*ret = p;
		return 0;
	}
	set_pages_free(p);
	err_prefix(err, "snapshot %s", snapshot_reader_path(r));
	return code;
}

void set_pages_free(struct set_pages *p)
{
	if (!p)
		return;
	if (p->fd >= 0)
		close(p->fd);
	free(p->units);
	free(p);
}

const struct working_set_store *set_pages_store(const struct set_pages *p)
{
	return &p->store;
}
