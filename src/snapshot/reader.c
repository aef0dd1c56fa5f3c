/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread_class.h"
#include "mem/restore.h"
#include "snapshot/dir.h"
#include "snapshot/format.h"
#include "snapshot/handed.h"
#include "snapshot/memory_in.h"
#include "snapshot/records.h"
#include "snapshot/sum.h"

struct snapshot_reader {
	char *path;
	int dir_fd, memory_fd;
	int asked_fd; /* of who hands over its files; else -1 */
	struct snapshot_manifest manifest;
	json_t *config;
	void *state;
	uint64_t *sums;
	struct mem_range *runs; /* of a delta */
	uint64_t num_runs;
	struct snapshot_reader *parent; /* of a delta */
	struct memory_in *memory;
};

/* ---- files ---- */

static int open_named(const struct snapshot_reader *r, const char *name)
{
	int fd;

	if (r->asked_fd >= 0)
		return handed_ask_parent(r->asked_fd, name);
	fd = openat(r->dir_fd, name,
		    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* A regular file, whatever a link or a device of that name would do. */
int snapshot_reader_open_file(const struct snapshot_reader *r, const char *name,
			      uint64_t *ret_size, struct err *err)
{
	_cleanup_close_ int fd = open_named(r, name);
	struct stat st;

	if (fd < 0)
		return err_errno(err, -fd, "%s", name);
	if (fstat(fd, &st))
		return err_errno(err, errno, "%s", name);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "%s: not a regular file", name);
	*ret_size = (uint64_t)st.st_size;
	return take_fd(&fd);
}

int snapshot_reader_read_file(const struct snapshot_reader *r, const char *name,
			      uint64_t max, void **ret, uint64_t *ret_size,
			      struct err *err)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *bytes = NULL;
	int code;

	*ret_size = 0;
	fd = snapshot_reader_open_file(r, name, ret_size, err);
	if (fd < 0)
		return fd;
	if (*ret_size > max)
		return err_set(err, EBADMSG,
			       "%s: has %llu bytes, at most %llu can be", name,
			       (unsigned long long)*ret_size,
			       (unsigned long long)max);
	/* Never nothing. */
	bytes = malloc(*ret_size + 1);
	if (!bytes)
		return err_set(err, ENOMEM, "%s: out of memory", name);
	code = io_pread_full(fd, bytes, *ret_size, 0);
	if (code)
		return err_errno(err, -code, "%s: reading it", name);
	*ret = take_ptr(bytes);
	return 0;
}

/* sum_len: how much of it the manifest's checksum is of; 0: all. */
static int read_checked(const struct snapshot_reader *r,
			enum snapshot_file file, uint64_t sum_len, void **ret,
			uint64_t *ret_size, struct err *err)
{
	const struct snapshot_file_info *info = &r->manifest.files[file];
	const char *name = snapshot_file_names[file];
	void *bytes = NULL;
	int code = snapshot_reader_read_file(r, name, info->bytes, &bytes,
					     ret_size, err);

	if (code)
		return code;
	if (*ret_size != info->bytes)
		code = err_set(err, EBADMSG,
			       "%s: ends at offset %llu; the manifest says "
			       "%llu",
			       name, (unsigned long long)*ret_size,
			       (unsigned long long)info->bytes);
	else if (sum_bytes(bytes, sum_len ? MIN(sum_len, info->bytes)
					  : info->bytes) != info->sum)
		code = err_set(err, EBADMSG,
			       "%s: offset 0: checksum does not match the "
			       "manifest's: the file is damaged",
			       name);
	if (code)
		free(bytes);
	else
		*ret = bytes;
	return code;
}

/* ---- the parts ---- */

static int load_manifest(struct snapshot_reader *r, struct err *err)
{
	_cleanup_free_ void *text = NULL;
	uint64_t size = 0;
	int code = snapshot_reader_read_file(r, SNAPSHOT_MANIFEST,
					     SNAPSHOT_MAX_MANIFEST_BYTES, &text,
					     &size, err);

	return code ? code
		    : snapshot_manifest_parse(&r->manifest, text, size, err);
}

static int load_config(struct snapshot_reader *r, struct err *err)
{
	_cleanup_free_ void *text = NULL;
	json_error_t where;
	uint64_t size = 0;
	int code = read_checked(r, SNAPSHOT_FILE_CONFIG, 0, &text, &size, err);

	if (code)
		return code;
	r->config = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
	if (!json_is_object(r->config))
		return err_set(err, EBADMSG, SNAPSHOT_CONFIG ": offset %d: %s",
			       r->config ? 0 : where.position,
			       r->config ? "not an object" : where.text);
	return 0;
}

static int load_state(struct snapshot_reader *r, struct err *err)
{
	uint64_t size = 0;

	return read_checked(r, SNAPSHOT_FILE_STATE, 0, &r->state, &size, err);
}

static int load_sums(struct snapshot_reader *r, struct err *err)
{
	const struct snapshot_manifest *m = &r->manifest;
	uint64_t units = mem_units(m->ranges, m->num_ranges), size = 0;
	_cleanup_free_ void *bytes = NULL;
	int64_t num;
	int code;

	/* Before anything of the size that the file claims is allocated. */
	if (m->files[SNAPSHOT_FILE_SUMS].bytes !=
	    RECORDS_HEADER_BYTES + units * 8)
		return err_set(
			err, EBADMSG,
			SNAPSHOT_SUMS ": %llu bytes for %llu units",
			(unsigned long long)m->files[SNAPSHOT_FILE_SUMS].bytes,
			(unsigned long long)units);
	code = read_checked(r, SNAPSHOT_FILE_SUMS, RECORDS_HEADER_BYTES, &bytes,
			    &size, err);
	if (code)
		return code;
	num = records_check(&records_sums, bytes, size, units, err);
	if (num < 0)
		return (int)num;
	BUG_ON(!bytes || (uint64_t)num != units); /* of that size */
	r->sums = calloc(units, sizeof(*r->sums));
	if (!r->sums)
		return err_set(err, ENOMEM, SNAPSHOT_SUMS ": out of memory");
	for (uint64_t i = 0; i < units; i++)
		r->sums[i] = le64_load((uint8_t *)bytes + RECORDS_HEADER_BYTES +
				       i * 8);
	return 0;
}

static int load_map(struct snapshot_reader *r, struct err *err)
{
	const struct snapshot_manifest *m = &r->manifest;
	uint64_t pages = mem_ranges_bytes(m->ranges, m->num_ranges) / PAGE_4K;
	_cleanup_free_ void *bytes = NULL;
	uint64_t size = 0;
	int64_t num;
	int code;

	if (m->layout == SNAPSHOT_WHOLE)
		return 0;
	code = read_checked(r, SNAPSHOT_FILE_MAP, RECORDS_HEADER_BYTES, &bytes,
			    &size, err);
	if (code)
		return code;
	num = records_check(&records_map, bytes, size, pages, err);
	if (num < 0)
		return (int)num;
	r->num_runs = (uint64_t)num;
	r->runs = calloc(r->num_runs + 1, sizeof(*r->runs));
	if (!r->runs)
		return err_set(err, ENOMEM, SNAPSHOT_MAP ": out of memory");
	return records_read_map((uint8_t *)bytes + RECORDS_HEADER_BYTES,
				r->num_runs, m->ranges, m->num_ranges, r->runs,
				err);
}

static int open_memory(struct snapshot_reader *r, struct err *err)
{
	uint64_t span = snapshot_manifest_span(&r->manifest), size = 0;

	r->memory_fd = snapshot_reader_open_file(r, SNAPSHOT_MEMORY, &size,
						 err);
	if (r->memory_fd < 0)
		return r->memory_fd;
	if (size != span)
		return err_set(err, EBADMSG,
			       SNAPSHOT_MEMORY
			       ": ends at offset %#llx; the manifest says "
			       "%#llx",
			       (unsigned long long)size,
			       (unsigned long long)span);
	return 0;
}

/* Those that are in here have the size they had. */
static int check_disks(struct snapshot_reader *r, struct err *err)
{
	const struct snapshot_manifest *m = &r->manifest;

	for (unsigned int i = 0; i < m->num_disks; i++) {
		const struct snapshot_disk *disk = &m->disks[i];
		_cleanup_close_ int fd = -1;
		uint64_t size = 0;

		if (!disk->file)
			continue;
		fd = snapshot_reader_open_file(r, disk->file, &size, err);
		if (fd < 0)
			return fd;
		if (size != disk->bytes)
			return err_set(err, EBADMSG,
				       "%s: ends at offset %llu; the manifest "
				       "says %llu",
				       disk->file, (unsigned long long)size,
				       (unsigned long long)disk->bytes);
	}
	return 0;
}

/* ---- the chain ---- */

static int open_chain(struct snapshot_reader **ret, const char *path,
		      unsigned int depth, struct err *err);

static bool same_ranges(const struct snapshot_manifest *a,
			const struct snapshot_manifest *b)
{
	return a->num_ranges == b->num_ranges &&
	       !memcmp(a->ranges, b->ranges,
		       a->num_ranges * sizeof(a->ranges[0]));
}

/* A relative path starts at the directory that names it. */
static char *parent_path(const struct snapshot_reader *r)
{
	char *path;

	if (r->manifest.parent_path[0] == '/')
		return strdup(r->manifest.parent_path);
	return asprintf(&path, "%s/%s", r->path, r->manifest.parent_path) < 0
		       ? NULL
		       : path;
}

static int open_parent_at(struct snapshot_reader *r, const char *path,
			  unsigned int depth, struct err *err)
{
	const struct snapshot_manifest *m;
	int code = open_chain(&r->parent, path, depth + 1, err);

	if (code) {
		err_prefix(err, "its parent");
		return code;
	}
	m = &r->parent->manifest;
	if (strcmp(m->id, r->manifest.parent_id) != 0)
		return err_set(err, EBADMSG,
			       SNAPSHOT_MANIFEST ": parent: %s is %s, not %s",
			       path, m->id, r->manifest.parent_id);
	if (!same_ranges(m, &r->manifest))
		return err_set(err, EBADMSG,
			       SNAPSHOT_MANIFEST
			       ": memory.regions: not those of its parent %s",
			       path);
	return 0;
}

static int open_parent(struct snapshot_reader *r, unsigned int depth,
		       struct err *err)
{
	char *path;
	int code;

	if (r->manifest.layout == SNAPSHOT_WHOLE)
		return 0;
	if (depth == SNAPSHOT_MAX_CHAIN)
		return err_set(err, ELOOP, "more than %d deltas upon another",
			       SNAPSHOT_MAX_CHAIN - 1);
	path = parent_path(r);
	code = path ? open_parent_at(r, path, depth, err)
		    : err_set(err, ENOMEM, "out of memory");
	free(path);
	return code;
}

static int make_memory(struct snapshot_reader *r, struct err *err)
{
	struct memory_layer layers[SNAPSHOT_MAX_CHAIN];
	unsigned int num = 0;
	int code;

	for (const struct snapshot_reader *at = r; at; at = at->parent) {
		BUG_ON(num == SNAPSHOT_MAX_CHAIN);
		layers[num++] = (struct memory_layer){
			.fd = at->memory_fd,
			.path = at->path,
			.runs = at->runs,
			.num_runs = at->num_runs,
		};
	}
	code = memory_in_new(&r->memory, layers, num, r->manifest.ranges,
			     r->manifest.num_ranges, r->sums);
	return code ? err_set(err, ENOMEM, "out of memory") : 0;
}

static int load(struct snapshot_reader *r, unsigned int depth, struct err *err)
{
	int code = load_manifest(r, err);

	if (!code)
		code = load_config(r, err);
	if (!code)
		code = load_state(r, err);
	if (!code)
		code = load_sums(r, err);
	if (!code)
		code = load_map(r, err);
	if (!code)
		code = open_memory(r, err);
	if (!code)
		code = check_disks(r, err);
	if (!code)
		code = open_parent(r, depth, err);
	return code ? code : make_memory(r, err);
}

/* depth: how many the chain has with this one. */
static int open_chain(struct snapshot_reader **ret, const char *path,
		      unsigned int depth, struct err *err)
{
	struct snapshot_reader *r = calloc(1, sizeof(*r));
	int code;

	if (!r)
		return err_set(err, ENOMEM, "snapshot %s: out of memory", path);
	r->dir_fd = r->memory_fd = r->asked_fd = -1;
	r->path = strdup(path);
	r->dir_fd = r->path ? snapshot_dir_open(path, err) : -ENOMEM;
	code = r->dir_fd;
	if (code >= 0) {
		code = load(r, depth, err);
		if (code)
			err_prefix(err, "snapshot %s", path);
	}
	if (code)
		snapshot_reader_free(r);
	else
		*ret = r;
	return code;
}

int snapshot_reader_open(struct snapshot_reader **ret, const char *path,
			 struct err *err)
{
	return open_chain(ret, path, 1, err);
}

static int load_handed(struct snapshot_reader *r, struct err *err)
{
	int code = load_manifest(r, err);

	if (!code)
		code = load_sums(r, err);
	if (!code && r->manifest.layout == SNAPSHOT_WHOLE)
		code = open_memory(r, err);
	/* The connection is not the reader's. */
	r->asked_fd = -1;
	return code;
}

int snapshot_reader_open_handed(struct snapshot_reader **ret, const char *path,
				int asked_fd, struct err *err)
{
	struct snapshot_reader *r = calloc(1, sizeof(*r));
	int code = -ENOMEM;

	if (r) {
		r->dir_fd = r->memory_fd = -1;
		r->asked_fd = asked_fd;
		r->path = strdup(path);
	}
	if (r && r->path)
		code = load_handed(r, err);
	else
		(void)err_set(err, ENOMEM, "out of memory");
	if (code) {
		err_prefix(err, "snapshot %s", path);
		snapshot_reader_free(r);
	} else {
		*ret = r;
	}
	return code;
}

void snapshot_reader_free(struct snapshot_reader *r)
{
	while (r) {
		struct snapshot_reader *parent = r->parent;

		memory_in_free(r->memory);
		close_fd(&r->memory_fd);
		close_fd(&r->dir_fd);
		snapshot_manifest_fini(&r->manifest);
		json_decref(r->config);
		free(r->state);
		free(r->sums);
		free(r->runs);
		free(r->path);
		free(r);
		r = parent;
	}
}

/* ---- what is in it ---- */

const char *snapshot_reader_path(const struct snapshot_reader *r)
{
	return r->path;
}

const struct snapshot_manifest *
snapshot_reader_manifest(const struct snapshot_reader *r)
{
	return &r->manifest;
}

const json_t *snapshot_reader_config(const struct snapshot_reader *r)
{
	return r->config;
}

const void *snapshot_reader_state(const struct snapshot_reader *r,
				  size_t *ret_len)
{
	*ret_len = r->manifest.files[SNAPSHOT_FILE_STATE].bytes;
	return r->state;
}

const uint64_t *snapshot_reader_sums(const struct snapshot_reader *r)
{
	return r->sums;
}

int snapshot_reader_whole_fd(const struct snapshot_reader *r)
{
	return r->manifest.layout == SNAPSHOT_WHOLE ? r->memory_fd : -1;
}

int snapshot_reader_check_depth(const struct snapshot_reader *r,
				struct err *err)
{
	unsigned int depth = 0;

	for (const struct snapshot_reader *at = r->parent; at; at = at->parent)
		depth++;
	if (depth + 2 <= SNAPSHOT_MAX_CHAIN)
		return 0;
	return err_set(err, ELOOP,
		       "snapshot %s: rests on %u others, and more cannot be: "
		       "take a whole snapshot",
		       r->path, depth);
}

bool snapshot_reader_rests_upon(const struct snapshot_reader *r,
				const struct stat *dir)
{
	struct stat own;

	for (; r; r = r->parent) {
		if (r->dir_fd >= 0 && !fstat(r->dir_fd, &own) &&
		    own.st_dev == dir->st_dev && own.st_ino == dir->st_ino)
			return true;
	}
	return false;
}

int snapshot_reader_dir_fd(const struct snapshot_reader *r)
{
	return r->dir_fd;
}

const struct mem_source *snapshot_reader_memory(const struct snapshot_reader *r)
{
	return memory_in_source(r->memory);
}

int snapshot_reader_check_ram(const struct snapshot_reader *r,
			      const struct ram *ram, struct err *err)
{
	const struct snapshot_manifest *m = &r->manifest;
	struct mem_range ranges[RAM_MAX_REGIONS];
	unsigned int num = ram_ranges(ram, ranges);

	if (num == m->num_ranges &&
	    !memcmp(ranges, m->ranges, num * sizeof(ranges[0])))
		return 0;
	return err_set(err, EINVAL,
		       "snapshot %s: has %llu MiB of memory in %u regions, the "
		       "machine has %llu MiB in %u",
		       r->path,
		       (unsigned long long)(mem_ranges_bytes(m->ranges,
							     m->num_ranges) /
					    MIB),
		       m->num_ranges, (unsigned long long)(ram_size(ram) / MIB),
		       num);
}

int snapshot_reader_map(const struct snapshot_reader *r, struct ram *ram,
			struct err *err)
{
	int code = snapshot_reader_check_ram(r, ram, err);

	return code ? code : memory_in_map(r->memory, ram, err);
}

/* ---- checking all ---- */

static int verify_begin(void *ctx, void **ret_own, struct err *err)
{
	*ret_own = malloc(MEM_UNIT_BYTES);
	return *ret_own ? 0 : err_set(err, ENOMEM, "snapshot: out of memory");
}

static int verify_unit(void *ctx, void *own, uint64_t index,
		       const struct mem_range *where, struct err *err)
{
	const struct snapshot_reader *r = ctx;

	return mem_source_read(snapshot_reader_memory(r), GPA(where->start),
			       own, where->len, err);
}

static int verify_end(void *ctx, void *own, struct err *err)
{
	free(own);
	return 0;
}

static const struct thread_call verify_calls[] = {
	CALL(pread64),
};

const struct thread_class snapshot_verify_thread_class = {
	.name = "snapshot-verify",
	.what = "compares the checksums of a snapshot's memory",
	THREAD_CALLS(verify_calls),
};

int snapshot_reader_verify(const struct snapshot_reader *r,
			   unsigned int threads,
			   const struct populate_watch *watch, struct err *err)
{
	const struct unit_job job = {
		.name = "verify",
		.cls = &snapshot_verify_thread_class,
		.ranges = r->manifest.ranges,
		.num_ranges = r->manifest.num_ranges,
		.threads = threads,
		.watch = watch,
		.ctx = (void *)r,
		.begin = verify_begin,
		.unit = verify_unit,
		.end = verify_end,
	};
	int code = unit_job_run(&job, NULL, err);

	if (code == -ECANCELED)
		err_prefix(err, "snapshot %s: verifying", r->path);
	return code;
}
