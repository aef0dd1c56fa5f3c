/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "snapshot/format.h"
#include "snapshot/reader.h"
#include "snapshot/records.h"
#include "snapshot/sum.h"
#include "snapshot/writer_priv.h"
#include "version.h"

/* A random UUID (RFC 9562, version 4). */
static int make_id(char ret[SNAPSHOT_ID_CHARS + 1])
{
	uint8_t b[16];

	if (getrandom(b, sizeof(b), 0) != (ssize_t)sizeof(b))
		return -EIO;
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	snprintf(ret, SNAPSHOT_ID_CHARS + 1,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
		 "%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9],
		 b[10], b[11], b[12], b[13], b[14], b[15]);
	return 0;
}

/* Bytes before the last slash; 0: there is none, or nothing before it. */
static size_t up_to_slash(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? (size_t)(slash - path) : 0;
}

/* The same by the paths alone: a process that is handed files sees no more. */
static char *path_by_name(const struct snapshot_writer *w)
{
	const char *parent = snapshot_reader_path(w->cfg.parent);
	size_t len = up_to_slash(parent);
	char *path;

	if (!len || len != up_to_slash(w->dir.path) ||
	    memcmp(parent, w->dir.path, len) != 0)
		return strdup(parent);
	return asprintf(&path, "..%s", parent + len) < 0 ? NULL : path;
}

/*
 * Where the parent is, seen from the snapshot: relative if both are in one
 * directory, so that they can be moved together; absolute otherwise.
 */
static char *path_to_parent(const struct snapshot_writer *w)
{
	_cleanup_free_ char *real = NULL;
	struct stat beside, ours;
	char *slash, *path;

	if (w->dir.asked_fd >= 0)
		return path_by_name(w);
	real = realpath(snapshot_reader_path(w->cfg.parent), NULL);
	if (!real)
		return NULL;
	slash = strrchr(real, '/');
	if (!slash || slash == real)
		return take_ptr(real);
	*slash = '\0';
	if (!stat(real, &beside) && !fstat(w->dir.parent_fd, &ours) &&
	    beside.st_dev == ours.st_dev && beside.st_ino == ours.st_ino)
		return asprintf(&path, "../%s", slash + 1) < 0 ? NULL : path;
	*slash = '/';
	return take_ptr(real);
}

/*
 * A delta upon what it replaces, or upon what rests on that, would have lost
 * its parent.
 */
static bool is_parents_place(const struct snapshot_writer *w)
{
	struct stat there;

	if (w->dir.asked_fd >= 0)
		return !strcmp(snapshot_reader_path(w->cfg.parent),
			       w->dir.path);
	return !fstatat(w->dir.parent_fd, w->dir.name, &there, 0) &&
	       snapshot_reader_rests_upon(w->cfg.parent, &there);
}

static int open_parent(struct snapshot_writer *w, struct err *err)
{
	const char *path = w->cfg.parent_path;
	int r = 0;

	if (path && w->dir.asked_fd >= 0)
		r = snapshot_reader_open_handed(&w->own_parent, path,
						w->dir.asked_fd, err);
	else if (path)
		r = snapshot_reader_open(&w->own_parent, path, err);
	if (path)
		w->cfg.parent = w->own_parent;
	if (r)
		err_prefix(err, "its parent");
	else if (w->cfg.parent)
		w->replaces_parent = w->cfg.replace && is_parents_place(w);
	return r;
}

static int fill_manifest(struct snapshot_writer *w, struct err *err)
{
	struct snapshot_manifest *m = &w->manifest;

	if (make_id(m->id))
		return err_set(err, EIO, "snapshot %s: no random id",
			       w->dir.path);
	snprintf(m->quire, sizeof(m->quire), "%s", QUIRE_VERSION);
	m->created_unix = (uint64_t)time(NULL);
	if (!w->cfg.parent)
		return 0;
	memcpy(m->parent_id, snapshot_reader_manifest(w->cfg.parent)->id,
	       sizeof(m->parent_id));
	m->parent_path = path_to_parent(w);
	return m->parent_path ? 0
			      : err_errno(err, errno, "snapshot %s: its parent",
					  w->dir.path);
}

int snapshot_writer_new(struct snapshot_writer **ret,
			const struct snapshot_writer_config *cfg,
			struct err *err)
{
	struct snapshot_writer *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return err_set(err, ENOMEM, "snapshot %s: out of memory",
			       cfg->path);
	w->cfg = *cfg;
	r = cfg->files
		    ? snapshot_dir_borrow(&w->dir, cfg->path, cfg->files, err)
		    : snapshot_dir_create(&w->dir, cfg->path, cfg->replace,
					  err);
	if (!r)
		r = open_parent(w, err);
	/* The caller's. */
	w->cfg.path = w->cfg.files = w->cfg.parent_path = NULL;
	if (!r)
		r = fill_manifest(w, err);
	if (r)
		snapshot_writer_free(w);
	else
		*ret = w;
	return r;
}

void snapshot_writer_free(struct snapshot_writer *w)
{
	if (!w)
		return;
	snapshot_writer_drop_memory(w);
	for (unsigned int i = 0; i < w->num_written; i++) {
		close_fd(&w->written[i].fd);
		free(w->written[i].name);
	}
	free(w->written);
	snapshot_dir_fini(&w->dir);
	snapshot_manifest_fini(&w->manifest);
	snapshot_reader_free(w->own_parent);
	free(w->sums);
	free(w);
}

bool snapshot_writer_is_over(const struct snapshot_writer *w)
{
	return snapshot_dir_is_over(&w->dir);
}

const char *snapshot_writer_id(const struct snapshot_writer *w)
{
	return w->manifest.id;
}

const char *snapshot_writer_parent_id(const struct snapshot_writer *w)
{
	return w->cfg.parent ? w->manifest.parent_id : NULL;
}

int snapshot_writer_say(const struct snapshot_writer *w, const char *file,
			int error, struct err *err)
{
	return err_errno(err, -error, "snapshot %s: writing %s", w->dir.path,
			 file);
}

int snapshot_writer_keep(struct snapshot_writer *w, int *fd, const char *name,
			 struct err *err)
{
	struct written_file *list = reallocarray(w->written, w->num_written + 1,
						 sizeof(*list));
	char *copy;

	if (!list)
		return snapshot_writer_say(w, name, -ENOMEM, err);
	w->written = list;
	copy = strdup(name);
	if (!copy)
		return snapshot_writer_say(w, name, -ENOMEM, err);
	list[w->num_written++] = (struct written_file){
		.fd = take_fd(fd),
		.name = copy,
	};
	return 0;
}

static int sync_written(struct snapshot_writer *w, struct err *err)
{
	for (unsigned int i = 0; i < w->num_written; i++) {
		if (fsync(w->written[i].fd))
			return snapshot_writer_say(w, w->written[i].name,
						   -errno, err);
	}
	return 0;
}

/* The parts of a file, one after the other. */
static int write_file(struct snapshot_writer *w, const char *name,
		      const void *head, size_t head_len, const void *body,
		      size_t body_len, struct err *err)
{
	_cleanup_close_ int fd = snapshot_dir_make_file(&w->dir, name, false);
	int r = fd < 0 ? fd : io_write_full(fd, head, head_len);

	if (!r)
		r = io_write_full(fd, body, body_len);
	return r ? snapshot_writer_say(w, name, r, err)
		 : snapshot_writer_keep(w, &fd, name, err);
}

static int put_file(struct snapshot_writer *w, enum snapshot_file file,
		    const void *bytes, size_t len, struct err *err)
{
	int r = write_file(w, snapshot_file_names[file], bytes, len, NULL, 0,
			   err);

	if (!r)
		w->manifest.files[file] = (struct snapshot_file_info){
			.exists = true,
			.bytes = len,
			.sum = sum_bytes(bytes, len),
		};
	return r;
}

int snapshot_writer_put_records(struct snapshot_writer *w,
				enum snapshot_file file,
				const struct records_kind *kind,
				const void *records, uint64_t num,
				struct err *err)
{
	uint8_t head[RECORDS_HEADER_BYTES];
	size_t len = num * kind->record_bytes;
	int r;

	records_header(kind, records, num, head);
	r = write_file(w, kind->name, head, sizeof(head), records, len, err);
	/* The header has the sum of the records; the manifest that of it. */
	if (!r)
		w->manifest.files[file] = (struct snapshot_file_info){
			.exists = true,
			.bytes = sizeof(head) + len,
			.sum = sum_bytes(head, sizeof(head)),
		};
	return r;
}

int snapshot_writer_put_config(struct snapshot_writer *w, const json_t *config,
			       struct err *err)
{
	_cleanup_free_ char *text = json_dumps(config, JSON_INDENT(2));

	if (!text)
		return err_set(err, ENOMEM, "snapshot %s: out of memory",
			       w->dir.path);
	if (strlen(text) > SNAPSHOT_MAX_CONFIG_BYTES)
		return err_set(err, E2BIG,
			       "snapshot %s: configuration of %zu "
			       "bytes, at most %u can be",
			       w->dir.path, strlen(text),
			       SNAPSHOT_MAX_CONFIG_BYTES);
	return put_file(w, SNAPSHOT_FILE_CONFIG, text, strlen(text), err);
}

int snapshot_writer_put_state(struct snapshot_writer *w, const void *bytes,
			      size_t len, struct err *err)
{
	if (len > SNAPSHOT_MAX_STATE_BYTES)
		return err_set(err, E2BIG,
			       "snapshot %s: state of %zu bytes, at most %u "
			       "can be",
			       w->dir.path, len, SNAPSHOT_MAX_STATE_BYTES);
	return put_file(w, SNAPSHOT_FILE_STATE, bytes, len, err);
}

int snapshot_writer_commit(struct snapshot_writer *w, struct err *err)
{
	const struct snapshot_file_info *files = w->manifest.files;
	_cleanup_free_ char *text = NULL;
	int r;

	BUG_ON(!files[SNAPSHOT_FILE_CONFIG].exists ||
	       !files[SNAPSHOT_FILE_STATE].exists ||
	       !files[SNAPSHOT_FILE_SUMS].exists);
	text = snapshot_manifest_format(&w->manifest);
	if (!text)
		return err_set(err, ENOMEM, "snapshot %s: out of memory",
			       w->dir.path);
	/* What it vouches for is there before it is. */
	r = sync_written(w, err);
	if (!r)
		r = write_file(w, SNAPSHOT_MANIFEST, text, strlen(text), NULL,
			       0, err);
	if (!r && fsync(w->written[w->num_written - 1].fd))
		r = snapshot_writer_say(w, SNAPSHOT_MANIFEST, -errno, err);
	return r ? r : snapshot_dir_commit(&w->dir, w->cfg.replace, err);
}
