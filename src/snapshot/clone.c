/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/clone.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"

/* In one go, for a signal or who cancels to be heard. */
#define COPY_BYTES (16 * MIB)
#define BUF_BYTES  MIB

/* What FICLONE and copy_file_range() say where it cannot be. */
static bool cannot_share(int error)
{
	return error == EOPNOTSUPP || error == EXDEV || error == ENOTTY ||
	       error == EINVAL || error == ENOSYS;
}

static bool is_cancelled(const struct clone_request *req)
{
	return req->cancelled && req->cancelled(req->ctx);
}

/* Where the kernel does not copy between the two: of different kinds. */
static int copy_by_hand(const struct clone_request *req, off_t at, off_t end)
{
	/* Aligned as files are that are open for direct I/O. */
	_cleanup_free_ char *buf = aligned_alloc(PAGE_4K, BUF_BYTES);

	if (!buf)
		return -ENOMEM;
	while (at < end) {
		size_t want = MIN((uint64_t)(end - at), BUF_BYTES);
		ssize_t n = pread(req->from, buf, align_up(want, PAGE_4K), at);
		int r;

		if (is_cancelled(req))
			return -ECANCELED;
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		n = (ssize_t)MIN((size_t)n, want);
		r = io_pwrite_full(req->to, buf, (size_t)n, (uint64_t)at);
		if (r)
			return r;
		at += n;
	}
	return 0;
}

static int copy_range(const struct clone_request *req, off_t at, off_t end)
{
	off_t to_at = at;

	while (at < end) {
		ssize_t n;

		if (is_cancelled(req))
			return -ECANCELED;
		n = copy_file_range(req->from, &at, req->to, &to_at,
				    MIN((uint64_t)(end - at), COPY_BYTES), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && cannot_share(errno))
			return copy_by_hand(req, at, end);
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

int clone_file(const struct clone_request *req)
{
	if (!ioctl(req->to, FICLONE, req->from))
		return 1;
	if (!cannot_share(errno))
		return -errno;
	return req->may_copy ? copy_data(req) : -EOPNOTSUPP;
}
