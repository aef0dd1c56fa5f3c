/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "snapshot/clone.h"

const char *const snapshot_disk_policy_names[3] = {
	[SNAPSHOT_DISKS_CLONE] = "clone",
	[SNAPSHOT_DISKS_COPY] = "copy",
	[SNAPSHOT_DISKS_REFERENCE] = "reference",
};

/* ---- into a snapshot ---- */

static int image_of(const struct snapshot_disks_request *req, const char *id)
{
	for (unsigned int i = 0; i < req->num_images; i++) {
		if (!strcmp(req->images[i].id, id))
			return req->images[i].fd;
	}
	return -1;
}

static int put_disk(struct snapshot_writer *w, const json_t *config,
		    const struct snapshot_disks_request *req, struct err *err)
{
	const char *id = json_string_value(json_object_get(config, "id"));
	struct snapshot_disk_request disk = {
		.id = id,
		.path = json_string_value(json_object_get(config, "path")),
		.fd = -1,
		.reference = req->policy == SNAPSHOT_DISKS_REFERENCE ||
			     json_is_true(json_object_get(config, "readonly")),
		.may_copy = req->policy == SNAPSHOT_DISKS_COPY,
		.cancelled = req->cancelled,
		.ctx = req->ctx,
	};

	if (!id || !disk.path)
		return err_set(err, EINVAL, "a disk without id or path");
	disk.fd = image_of(req, id);
	return snapshot_writer_add_disk(w, &disk, err);
}

int snapshot_writer_put_disks(struct snapshot_writer *w,
			      const struct snapshot_disks_request *req,
			      struct err *err)
{
	size_t i;
	json_t *disk;

	json_array_foreach(json_object_get(req->config, "disks"), i, disk)
	{
		int r = put_disk(w, disk, req, err);

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

static int note_placed(struct snapshot_placed *placed, const char *path)
{
	char **list = reallocarray(placed->paths, placed->num + 1,
				   sizeof(*list));

	if (!list)
		return -ENOMEM;
	placed->paths = list;
	list[placed->num] = strdup(path);
	if (!list[placed->num])
		return -ENOMEM;
	placed->num++;
	return 0;
}

static int fill_placed(const struct snapshot_disk *disk, const char *path,
		       const struct snapshot_placed *placed, int from, int to,
		       struct err *err)
{
	const struct clone_request clone = {
		.from = from,
		.to = to,
		.bytes = disk->bytes,
		.may_copy = true,
		.cancelled = placed->cancelled,
		.ctx = placed->ctx,
	};
	int r = clone_file(&clone);

	if (r >= 0 && fsync(to))
		r = -errno;
	return r < 0 ? err_errno(err, -r, "disk %s: making %s", disk->id, path)
		     : 0;
}

static int place_disk(const struct snapshot_reader *r,
		      const struct snapshot_disk *disk, const char *path,
		      struct snapshot_placed *placed, struct err *err)
{
	_cleanup_close_ int from = openat(snapshot_reader_dir_fd(r), disk->file,
					  O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_close_ int to = -1;

	if (from < 0)
		return err_errno(err, errno, "snapshot %s: %s",
				 snapshot_reader_path(r), disk->file);
	to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to < 0 && errno == EEXIST)
		return err_set(err, EEXIST,
			       "disk %s: %s is there; move it away, or give "
			       "the restored VM a place of its own: --set "
			       "%s.path=PATH",
			       disk->id, path, disk->id);
	if (to < 0)
		return err_errno(err, errno, "disk %s: %s", disk->id, path);
	if (note_placed(placed, path)) {
		(void)unlink(path);
		return err_set(err, ENOMEM, "out of memory");
	}
	return fill_placed(disk, path, placed, from, to, err);
}

int snapshot_reader_place_disks(const struct snapshot_reader *r,
				const json_t *config,
				struct snapshot_placed *placed, struct err *err)
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
		ret = place_disk(r, disk, path, placed, err);
		if (ret)
			return ret;
	}
	return 0;
}

void snapshot_placed_keep(struct snapshot_placed *placed)
{
	for (unsigned int i = 0; i < placed->num; i++)
		free(placed->paths[i]);
	free(take_ptr(placed->paths));
	placed->num = 0;
}

void snapshot_placed_undo(struct snapshot_placed *placed)
{
	for (unsigned int i = 0; i < placed->num; i++) {
		if (unlink(placed->paths[i]))
			log_warn("disk %s, made for a VM that did not come "
				 "back, cannot be removed: %s",
				 placed->paths[i], strerror(errno));
	}
	snapshot_placed_keep(placed);
}
