/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks in a snapshot: cloned, or copied where that was asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "snapshot/clone.h"
#include "snapshot/writer_priv.h"

static int fill_disk(struct snapshot_writer *w,
		     const struct snapshot_disk_request *req,
		     struct snapshot_disk *disk, int from, int to,
		     struct err *err)
{
	const struct clone_request clone = {
		.from = from,
		.to = to,
		.bytes = disk->bytes,
		.may_copy = req->may_copy,
		.cancelled = req->cancelled,
		.ctx = req->ctx,
	};
	int r = clone_file(&clone);

	if (r == -EOPNOTSUPP && !req->may_copy)
		return err_set(err, EOPNOTSUPP,
			       "snapshot %s: disk %s (%s) cannot be cloned "
			       "here; have it copied (--disks copy), or put "
			       "both on one file system that shares blocks "
			       "(XFS, btrfs)",
			       w->dir.path, req->id, req->path);
	if (r == -ECANCELED)
		return err_set(err, ECANCELED, "snapshot %s: cancelled",
			       w->dir.path);
	if (r < 0)
		return snapshot_writer_say(w, disk->file, r, err);
	disk->kind = r ? SNAPSHOT_DISK_CLONE : SNAPSHOT_DISK_COPY;
	return 0;
}

static int put_disk(struct snapshot_writer *w,
		    const struct snapshot_disk_request *req,
		    struct snapshot_disk *disk, int from, struct err *err)
{
	_cleanup_close_ int to = snapshot_dir_make_file(&w->dir, disk->file,
							false);
	int r;

	if (to < 0)
		return snapshot_writer_say(w, disk->file, to, err);
	r = fill_disk(w, req, disk, from, to, err);
	return r ? r : snapshot_writer_keep(w, &to, disk->file, err);
}

/* What there is to know before it is copied. */
static int look_at(const struct snapshot_writer *w,
		   const struct snapshot_disk_request *req,
		   struct snapshot_disk *disk, int from, struct err *err)
{
	struct stat st;

	if (from < 0 || fstat(from, &st))
		return err_errno(err, errno, "snapshot %s: disk %s: %s",
				 w->dir.path, req->id, req->path);
	if (S_ISREG(st.st_mode))
		disk->bytes = (uint64_t)st.st_size;
	else if (!req->reference)
		return err_set(err, EOPNOTSUPP,
			       "snapshot %s: disk %s: %s is no regular file "
			       "and can be referred to only (--disks "
			       "reference)",
			       w->dir.path, req->id, req->path);
	return 0;
}

static int add_disk(struct snapshot_writer *w,
		    const struct snapshot_disk_request *req, int from,
		    struct err *err)
{
	_cleanup_free_ char *file = NULL;
	struct snapshot_disk disk = {
		.id = (char *)req->id,
		.path = (char *)req->path,
		.kind = SNAPSHOT_DISK_REFERENCE,
	};
	int r = look_at(w, req, &disk, from, err);

	if (r)
		return r;
	if (asprintf(&file, "disk-%s", req->id) < 0)
		return err_set(err, ENOMEM, "snapshot %s: out of memory",
			       w->dir.path);
	if (!req->reference) {
		disk.kind = SNAPSHOT_DISK_COPY;
		disk.file = file;
	}
	/* The id becomes a file's name, so it is checked before. */
	r = snapshot_manifest_add_disk(&w->manifest, &disk, err);
	if (r) {
		err_prefix(err, "snapshot %s", w->dir.path);
		return r;
	}
	if (req->reference)
		return 0;
	r = put_disk(w, req, &disk, from, err);
	w->manifest.disks[w->manifest.num_disks - 1].kind = disk.kind;
	return r;
}

int snapshot_writer_add_disk(struct snapshot_writer *w,
			     const struct snapshot_disk_request *req,
			     struct err *err)
{
	_cleanup_close_ int opened = -1;

	if (req->fd >= 0)
		return add_disk(w, req, req->fd, err);
	opened = open(req->path, O_RDONLY | O_CLOEXEC);
	return add_disk(w, req, opened, err);
}
