/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/clone.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"

/* In one go, for a signal or who cancels to be heard. */
#define COPY_BYTES (16 * MIB)

static int copy_range(const struct clone_request *req, off_t at, off_t end)
{
	off_t to_at = at;

	while (at < end) {
		ssize_t n;

		if (req->cancelled && req->cancelled(req->ctx))
			return -ECANCELED;
		n = copy_file_range(req->from, &at, req->to, &to_at,
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

static int copy_data(const struct clone_request *req)
{
	off_t at = 0, hole, size = (off_t)req->bytes;
	int r = ftruncate(req->to, size) ? -errno : 0;

	while (!r && at < size) {
		at = lseek(req->from, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(req->from, at, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		hole = MIN(hole, size);
		r = copy_range(req, at, hole);
		at = hole;
	}
	return r;
}

/* What FICLONE says where blocks cannot be shared. */
static bool cannot_share(int error)
{
	return error == EOPNOTSUPP || error == EXDEV || error == ENOTTY ||
	       error == EINVAL || error == ENOSYS;
}

int clone_file(const struct clone_request *req)
{
	if (!ioctl(req->to, FICLONE, req->from))
		return 1;
	if (!cannot_share(errno))
		return -errno;
	return req->may_copy ? copy_data(req) : -EOPNOTSUPP;
}
