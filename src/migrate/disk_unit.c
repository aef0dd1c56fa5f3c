/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/disk_unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/zero.h"

int disk_unit_init(struct disk_unit *u)
{
	memset(u, 0, sizeof(*u));
	u->buffer = aligned_alloc(PAGE_4K, WIRE_UNIT_BYTES);
	return u->buffer ? 0 : -ENOMEM;
}

void disk_unit_fini(struct disk_unit *u)
{
	free(take_ptr(u->buffer));
}

void disk_unit_forget(struct disk_unit *u)
{
	u->hole_start = u->hole_end = 0;
}

/* Where holes are not told, there are none. */
static bool is_hole(struct disk_unit *u, const struct blockdev *dev,
		    uint64_t offset, uint64_t len)
{
	off_t data;

	if (offset >= u->hole_start && offset + len <= u->hole_end)
		return true;
	data = lseek(blockdev_fd(dev), (off_t)offset, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return false;
	u->hole_start = offset;
	u->hole_end = data < 0 ? blockdev_size(dev) : (uint64_t)data;
	return offset + len <= u->hole_end;
}

static void add_run(struct disk_unit *u, uint64_t offset, uint64_t len,
		    const char *data)
{
	struct disk_run *last = u->num_runs ? &u->runs[u->num_runs - 1] : NULL;

	if (last && last->offset + last->len == offset &&
	    !last->data == !data) {
		last->len += len; /* the buffer goes on as the image does */
		return;
	}
	u->runs[u->num_runs++] = (struct disk_run){ offset, len, data };
}

int disk_unit_read(struct disk_unit *u, const struct blockdev *dev,
		   uint64_t start, uint32_t bits, struct err *err)
{
	u->num_runs = 0;
	for (unsigned int i = 0; i < DISK_UNIT_CLUSTERS; i++) {
		uint64_t at = start + i * WIRE_CLUSTER_BYTES, len;
		char *to = u->buffer + (at - start);
		int r;

		if (!(bits >> i & 1))
			continue;
		len = MIN(WIRE_CLUSTER_BYTES, blockdev_size(dev) - at);
		if (is_hole(u, dev, at, len)) {
			add_run(u, at, len, NULL);
			continue;
		}
		r = io_pread_full(blockdev_fd(dev), to, len, at);
		if (r)
			return err_errno(err, -r, "reading disk %s at %#llx",
					 blockdev_path(dev),
					 (unsigned long long)at);
		add_run(u, at, len, zero_is_all(to, len) ? NULL : to);
	}
	return 0;
}

static int write_zeroes(struct disk_unit *u, const struct blockdev *dev,
			uint64_t offset, uint64_t len)
{
	static const int ways[] = {
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
	};

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		if (!fallocate(blockdev_fd(dev), ways[i], (off_t)offset,
			       (off_t)len))
			return 0;
		if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
			return -errno;
	}
	memset(u->buffer, 0, len);
	return io_pwrite_full(blockdev_fd(dev), u->buffer, len, offset);
}

int disk_unit_write(struct disk_unit *u, const struct blockdev *dev,
		    uint64_t offset, uint64_t len, bool data, struct err *err)
{
	int r = data ? io_pwrite_full(blockdev_fd(dev), u->buffer, len, offset)
		     : write_zeroes(u, dev, offset, len);

	return r ? err_errno(err, -r, "writing disk %s at %#llx",
			     blockdev_path(dev), (unsigned long long)offset)
		 : 0;
}
