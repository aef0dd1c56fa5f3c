/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "snapshot/writer_priv.h"

const char *const snapshot_disk_policy_names[3] = {
	[SNAPSHOT_DISKS_CLONE] = "clone",
	[SNAPSHOT_DISKS_COPY] = "copy",
	[SNAPSHOT_DISKS_REFERENCE] = "reference",
};

#define COPY_BYTES (64 * MIB)

/* ---- files ---- */

/* Data only: holes stay holes. */
static int copy_data(int from, int to, uint64_t bytes)
{
	off_t at = 0, end;

	if (ftruncate(to, (off_t)bytes))
		return -errno;
	while ((at = lseek(from, at, SEEK_DATA)) >= 0) {
		end = lseek(from, at, SEEK_HOLE);
		if (end < 0 || lseek(to, at, SEEK_SET) < 0)
			return -errno;
		while (at < end) {
			ssize_t n = sendfile(to, from, &at,
					     MIN((uint64_t)(end - at),
						 COPY_BYTES));

			if (n <= 0)
				return n ? -errno : -EIO;
		}
	}
	return errno == ENXIO ? 0 : -errno;
}

/* Returns 1: cloned, 0: copied, or a negative errno. Durable. */
static int clone_or_copy(int from, int to, bool may_copy, uint64_t *ret_bytes)
{
	struct stat st;
	int r = 1;

	if (fstat(from, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EOPNOTSUPP;
	*ret_bytes = (uint64_t)st.st_size;
	if (ioctl(to, FICLONE, from)) {
		if (!may_copy)
			return errno == EOPNOTSUPP || errno == EXDEV ||
					       errno == ENOTTY
				       ? -EOPNOTSUPP
				       : -errno;
		r = copy_data(from, to, *ret_bytes);
		if (r)
			return r;
	}
	return fsync(to) ? -errno : r;
}

/* ---- into a snapshot ---- */

static int refuse(const char *id, const char *path, int error, struct err *err)
{
	if (error == -EOPNOTSUPP)
		return err_set(err, EOPNOTSUPP,
			       "disk %s (%s): its blocks cannot be shared with "
			       "the snapshot; use the same file system, one "
			       "with reflinks (XFS, btrfs), or disks=copy",
			       id, path);
	return err_errno(err, -error, "disk %s (%s): copying it", id, path);
}

static int put_content(struct snapshot_writer *w, struct snapshot_disk *disk,
		       bool may_copy, struct err *err)
{
	_cleanup_close_ int from = open(disk->path, O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int to = -1;
	int r;

	if (from < 0)
		return err_errno(err, errno, "disk %s (%s)", disk->id,
				 disk->path);
	to = openat(w->dir.fd, disk->file,
		    O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to < 0)
		return snapshot_writer_say(w, disk->file, -errno, err);
	r = clone_or_copy(from, to, may_copy, &disk->bytes);
	if (r < 0)
		return refuse(disk->id, disk->path, r, err);
	disk->kind = r ? SNAPSHOT_DISK_CLONE : SNAPSHOT_DISK_COPY;
	return 0;
}

static int put_disk(struct snapshot_writer *w, const json_t *config,
		    enum snapshot_disk_policy policy, struct err *err)
{
	char file[80];
	const char *id = json_string_value(json_object_get(config, "id"));
	const char *path = json_string_value(json_object_get(config, "path"));
	struct snapshot_disk disk = {
		.id = (char *)id,
		.path = (char *)path,
		.kind = SNAPSHOT_DISK_REFERENCE,
	};
	int r = 0;

	if (!id || !path)
		return err_set(err, EINVAL, "a disk without id or path");
	if (policy != SNAPSHOT_DISKS_REFERENCE &&
	    !json_is_true(json_object_get(config, "readonly"))) {
		snprintf(file, sizeof(file), "disk-%.64s", id);
		disk.file = file;
		r = put_content(w, &disk, policy == SNAPSHOT_DISKS_COPY, err);
	}
	return r ? r : snapshot_manifest_add_disk(&w->manifest, &disk, err);
}

int snapshot_writer_put_disks(struct snapshot_writer *w, const json_t *config,
			      enum snapshot_disk_policy policy, struct err *err)
{
	size_t i;
	json_t *disk;

	json_array_foreach(json_object_get(config, "disks"), i, disk)
	{
		int r = put_disk(w, disk, policy, err);

		if (r)
			return r;
	}
	return 0;
}

/* ---- and out of it ---- */

static const char *path_of(const json_t *config, const char *id)
{
	size_t i;
	json_t *disk;

	json_array_foreach(json_object_get(config, "disks"), i, disk)
	{
		const char *its = json_string_value(
			json_object_get(disk, "id"));

		if (its && !strcmp(its, id))
			return json_string_value(json_object_get(disk, "path"));
	}
	return NULL;
}

static int place_disk(const struct snapshot_reader *r,
		      const struct snapshot_disk *disk, const char *path,
		      struct err *err)
{
	_cleanup_close_ int from = openat(snapshot_reader_dir_fd(r), disk->file,
					  O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_close_ int to = -1;
	uint64_t bytes;
	int ret;

	if (from < 0)
		return err_errno(err, errno, "snapshot %s: %s",
				 snapshot_reader_path(r), disk->file);
	to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to < 0 && errno == EEXIST)
		return err_set(err, EEXIST,
			       "disk %s: %s is there; give the restored VM a "
			       "place of its own for it: --disk %s=PATH",
			       disk->id, path, disk->id);
	if (to < 0)
		return err_errno(err, errno, "disk %s: %s", disk->id, path);
	ret = clone_or_copy(from, to, true, &bytes);
	if (ret >= 0)
		return 0;
	(void)unlink(path);
	return err_errno(err, -ret, "disk %s: making %s", disk->id, path);
}

int snapshot_reader_place_disks(const struct snapshot_reader *r,
				const json_t *config, struct err *err)
{
	const struct snapshot_manifest *m = snapshot_reader_manifest(r);

	for (unsigned int i = 0; i < m->num_disks; i++) {
		const struct snapshot_disk *disk = &m->disks[i];
		const char *path = path_of(config, disk->id);
		int ret;

		if (disk->kind == SNAPSHOT_DISK_REFERENCE)
			continue;
		if (!path)
			return err_set(err, EINVAL,
				       "snapshot %s: its configuration has no "
				       "disk %s",
				       snapshot_reader_path(r), disk->id);
		ret = place_disk(r, disk, path, err);
		if (ret)
			return ret;
	}
	return 0;
}
