/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks in a snapshot. A clone (FICLONE) takes no time and no room, on file
 * systems that share blocks; a copy takes both, so it is made only where it was
 * asked for. Holes stay holes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "snapshot/writer_priv.h"

/* In one go, for a signal to be heard. */
#define COPY_BYTES (16 * MIB)

static int copy_range(int from, int to, off_t at, off_t end)
{
	off_t to_at = at;

	while (at < end) {
		ssize_t n = copy_file_range(
			from, &at, to, &to_at,
			MIN((uint64_t)(end - at), COPY_BYTES), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
	}
	return 0;
}

static int copy_data(int from, int to, off_t size)
{
	off_t at = 0, hole;
	int r = ftruncate(to, size) ? -errno : 0;

	while (!r && at < size) {
		at = lseek(from, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(from, at, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		r = copy_range(from, to, at, hole);
		at = hole;
	}
	return r;
}

static int fill_disk(struct snapshot_writer *w,
		     const struct snapshot_disk_request *req,
		     struct snapshot_disk *disk, int from, int to,
		     struct err *err)
{
	int r;

	disk->kind = SNAPSHOT_DISK_CLONE;
	r = ioctl(to, FICLONE, from) ? -errno : 0;
	if (r && !req->may_copy)
		return err_set(err, ENOTSUP,
			       "snapshot %s: disk %s: %s cannot be cloned here "
			       "(%s); both have to be on one file system that "
			       "shares blocks (XFS, btrfs), or it has to be "
			       "copied",
			       w->dir.path, req->id, req->path, strerror(-r));
	if (r) {
		disk->kind = SNAPSHOT_DISK_COPY;
		r = copy_data(from, to, (off_t)disk->bytes);
	}
	if (!r && fsync(to))
		r = -errno;
	return r ? snapshot_writer_say(w, disk->file, r, err) : 0;
}

static int put_disk(struct snapshot_writer *w,
		    const struct snapshot_disk_request *req,
		    struct snapshot_disk *disk, int from, struct err *err)
{
	_cleanup_close_ int to = openat(w->dir.fd, disk->file,
					O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
					0600);

	if (to < 0)
		return snapshot_writer_say(w, disk->file, -errno, err);
	return fill_disk(w, req, disk, from, to, err);
}

int snapshot_writer_add_disk(struct snapshot_writer *w,
			     const struct snapshot_disk_request *req,
			     struct err *err)
{
	_cleanup_close_ int from = open(req->path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *file = NULL;
	struct snapshot_disk disk = {
		.id = (char *)req->id,
		.path = (char *)req->path,
		.kind = SNAPSHOT_DISK_REFERENCE,
	};
	struct stat st;
	int r;

	if (from < 0 || fstat(from, &st))
		return err_errno(err, errno, "snapshot %s: disk %s: %s",
				 w->dir.path, req->id, req->path);
	if (!req->reference && !S_ISREG(st.st_mode))
		return err_set(err, ENOTSUP,
			       "snapshot %s: disk %s: %s is no regular file "
			       "and can be referred to only",
			       w->dir.path, req->id, req->path);
	if (asprintf(&file, "disk-%s", req->id) < 0)
		return err_set(err, ENOMEM, "snapshot %s: out of memory",
			       w->dir.path);
	disk.bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
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
