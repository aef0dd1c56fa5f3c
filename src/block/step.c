/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request as a sequence of steps.
 *
 * A step transfers from iov[iov_index] + iov_skip on, or covers some of what
 * remains of [offset + transferred, offset + len). Its size is bounded, for a
 * queue can be cancelled between steps only, and the kernel may do less than
 * asked: the rest is the next step. EINTR and EAGAIN repeat a step, a few times
 * at most.
 *
 * The entries a step starts and ends in are cut in place while the step runs
 * (the kernel wants one contiguous array) and restored afterwards, so that
 * done() finds the iov as it was submitted.
 *
 * Direct I/O: a buffer that is not aligned as the host wants goes through a
 * bounce buffer, in pieces. Otherwise all entries' bases and lengths are
 * multiples of the host's unit; a partial transfer is rounded down to it, and
 * then every step starts aligned in file and memory.
 *
 * Zeroing prefers methods that leave no data to write: punching a hole (only
 * where unmapping is allowed), then zero range, then writing zeroes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/arith.h"
#include "block/blockdev_priv.h"

#define MAX_RETRIES  100
#define ZERO_ENTRIES 16u

#define ZERO_BYTES (64 * KIB)

/* Read only by the kernel; never written, so it costs no memory. */
static char zeroes[ZERO_BYTES] __attribute__((aligned(4096)));
static const struct iovec zero_iov[ZERO_ENTRIES] = {
	[0 ... ZERO_ENTRIES - 1] = { zeroes, ZERO_BYTES },
};

static enum block_method first_method(const struct blockdev *dev,
				      const struct block_caps *caps,
				      enum block_op op)
{
	switch (op) {
	case BLOCK_READ:
	case BLOCK_WRITE:
		return METHOD_RW;
	case BLOCK_FLUSH:
		return METHOD_SYNC;
	case BLOCK_DISCARD:
		return caps->no_punch && dev->is_bdev ? METHOD_DISCARD
						      : METHOD_PUNCH;
	case BLOCK_WRITE_ZEROES:
		if (!caps->no_punch)
			return METHOD_PUNCH;
		break;
	case BLOCK_WRITE_ZEROES_NOMAP:
		break;
	}
	return caps->no_zero_range ? METHOD_ZERO_WRITE : METHOD_ZERO_RANGE;
}

/* Where a step may start, in file and buffer; divides BLOCK_STEP_BYTES. */
static uint32_t direct_unit(const struct blockdev *dev)
{
	return MAX(dev->block_bytes, dev->mem_align);
}

static bool needs_bounce(const struct blockdev *dev,
			 const struct block_req *req)
{
	if (!dev->direct)
		return false;
	for (unsigned int i = 0; i < req->num_iov; i++)
		if (!is_aligned((uintptr_t)req->iov[i].iov_base,
				dev->mem_align) ||
		    !is_aligned(req->iov[i].iov_len, direct_unit(dev)))
			return true;
	return false;
}

int block_step_init(const struct blockdev *dev, const struct block_caps *caps,
		    struct block_req *req)
{
	req->next = NULL;
	req->transferred = 0;
	req->step = 0;
	req->iov_index = 0;
	req->iov_skip = 0;
	req->iov_last = 0;
	req->iov_rest = 0;
	req->retries = 0;
	req->bounced = false;
	req->method = (uint8_t)first_method(dev, caps, req->op);
	if (req->op == BLOCK_FLUSH)
		return 0;
	if (req->op != BLOCK_READ && dev->readonly)
		return -EROFS;
	if (!range_ok(req->offset, req->len, dev->size) ||
	    !is_aligned(req->offset, dev->block_bytes) ||
	    !is_aligned(req->len, dev->block_bytes))
		return -EINVAL;
	if (req->method == METHOD_RW)
		req->bounced = needs_bounce(dev, req);
	return 0;
}

/* Skip n bytes: move on to the entry and byte behind them. */
static void iov_advance(struct block_req *req, uint64_t n)
{
	while (n) {
		size_t left = req->iov[req->iov_index].iov_len - req->iov_skip;

		if (n < left) {
			req->iov_skip += (size_t)n;
			return;
		}
		n -= left;
		req->iov_index++;
		req->iov_skip = 0;
	}
}

/* Leave max bytes at the most from where the request stands; how many? */
static size_t iov_cut(struct block_req *req, size_t max)
{
	struct iovec *first = &req->iov[req->iov_index];
	unsigned int i = req->iov_index;
	size_t total = 0;

	first->iov_base = (char *)first->iov_base + req->iov_skip;
	first->iov_len -= req->iov_skip;
	while (i < req->num_iov && total < max)
		total += req->iov[i++].iov_len;
	req->iov_last = i - 1;
	req->iov_rest = total > max ? total - max : 0;
	req->iov[req->iov_last].iov_len -= req->iov_rest;
	return total - req->iov_rest;
}

static void iov_uncut(struct block_req *req)
{
	struct iovec *first = &req->iov[req->iov_index];

	req->iov[req->iov_last].iov_len += req->iov_rest;
	first->iov_base = (char *)first->iov_base - req->iov_skip;
	first->iov_len += req->iov_skip;
}

/* Between the request's buffers, from where it stands, and the bounce buffer.
 */
static void bounce_copy(const struct block_req *req, char *bounce, size_t len,
			bool to_bounce)
{
	unsigned int i = req->iov_index;
	size_t skip = req->iov_skip;

	while (len) {
		char *p = (char *)req->iov[i].iov_base + skip;
		size_t n = MIN(len, req->iov[i].iov_len - skip);

		memcpy(to_bounce ? bounce : p, to_bounce ? p : bounce, n);
		bounce += n;
		len -= n;
		i++;
		skip = 0;
	}
}

static void prepare_rw(struct block_req *req, void *bounce,
		       struct block_step *ret)
{
	uint64_t left = req->len - req->transferred;

	ret->write = req->op == BLOCK_WRITE;
	if (req->bounced) {
		req->step = (size_t)MIN(left, BLOCK_BOUNCE_BYTES);
		if (ret->write)
			bounce_copy(req, bounce, req->step, true);
		ret->buf = bounce;
	} else {
		req->step = iov_cut(req, BLOCK_STEP_BYTES);
		ret->iov = req->iov + req->iov_index;
		ret->num_iov = req->iov_last - req->iov_index + 1;
	}
}

static void prepare_zeroes(struct block_req *req, uint64_t left,
			   struct block_step *ret)
{
	ret->write = true;
	if (left < ZERO_BYTES) {
		ret->buf = zeroes;
		req->step = (size_t)left;
	} else {
		ret->iov = zero_iov;
		ret->num_iov = (unsigned int)MIN(left / ZERO_BYTES,
						 ZERO_ENTRIES);
		req->step = ret->num_iov * ZERO_BYTES;
	}
}

/*
 * A step ends at a multiple of what the host frees in one piece, or pieces at
 * the steps' borders would stay. A device that cannot zero by itself gets its
 * zeroes from the kernel, which then does not stop before the range's end.
 */
static void prepare_range(const struct blockdev *dev, struct block_req *req,
			  const struct block_step *step)
{
	uint64_t unit = MAX(dev->discard_bytes, 1u);
	uint64_t most = div_round_up(BLOCK_RANGE_BYTES, unit) * unit;

	most = align_down(most, dev->block_bytes);
	if (step->method == METHOD_ZERO_RANGE && dev->is_bdev)
		most = BLOCK_STEP_BYTES;
	req->step = (size_t)MIN(most - step->offset % most,
				req->len - req->transferred);
}

void block_step_prepare(const struct blockdev *dev, struct block_req *req,
			void *bounce, struct block_step *ret)
{
	*ret = (struct block_step){
		.method = (enum block_method)req->method,
		.force_async = req->retries > 0,
		.offset = req->offset + req->transferred,
	};
	req->step = 0;
	switch (ret->method) {
	case METHOD_RW:
		prepare_rw(req, bounce, ret);
		break;
	case METHOD_PUNCH:
		prepare_range(dev, req, ret);
		ret->fallocate_mode = FALLOC_FL_PUNCH_HOLE |
				      FALLOC_FL_KEEP_SIZE;
		break;
	case METHOD_ZERO_RANGE:
		prepare_range(dev, req, ret);
		ret->fallocate_mode = FALLOC_FL_ZERO_RANGE |
				      FALLOC_FL_KEEP_SIZE;
		break;
	case METHOD_ZERO_WRITE:
		prepare_zeroes(req, req->len - req->transferred, ret);
		break;
	case METHOD_DISCARD:
		prepare_range(dev, req, ret);
		break;
	case METHOD_SYNC:
		break;
	}
	ret->len = req->step;
}

/* The host cannot do it that way: 1 = another way is chosen, else the result.
 */
static int next_method(const struct blockdev *dev, struct block_caps *caps,
		       struct block_req *req)
{
	switch ((enum block_method)req->method) {
	case METHOD_PUNCH:
		caps->no_punch = true;
		if (req->op != BLOCK_DISCARD)
			req->method = caps->no_zero_range ? METHOD_ZERO_WRITE
							  : METHOD_ZERO_RANGE;
		else if (dev->is_bdev)
			req->method = METHOD_DISCARD;
		else
			return -EOPNOTSUPP;
		return 1;
	case METHOD_ZERO_RANGE:
		caps->no_zero_range = true;
		req->method = METHOD_ZERO_WRITE;
		return 1;
	case METHOD_RW:
	case METHOD_SYNC:
	case METHOD_DISCARD:
	case METHOD_ZERO_WRITE:
		break;
	}
	return -EOPNOTSUPP;
}

/* n bytes are done: 1 = some are left, else the result. */
static int progress(struct block_req *req, uint64_t n)
{
	req->transferred += n;
	req->retries = 0;
	return req->transferred < req->len;
}

/* n bytes were transferred: 1 = some are left, else the result. */
static int transferred(const struct blockdev *dev, struct block_req *req,
		       void *bounce, uint64_t n)
{
	bool in_place = req->method == METHOD_RW && !req->bounced;

	n = MIN(n, req->step);
	if (dev->direct)
		n = align_down(n,
			       in_place ? direct_unit(dev) : dev->block_bytes);
	/* Nothing: the file was cut behind our back, or the device is gone. */
	if (n == 0)
		return -EIO;
	if (req->method == METHOD_RW) {
		if (req->bounced && req->op == BLOCK_READ)
			bounce_copy(req, bounce, (size_t)n, false);
		iov_advance(req, n);
	}
	return progress(req, n);
}

int block_step_result(const struct blockdev *dev, struct block_caps *caps,
		      struct block_req *req, void *bounce, int64_t res)
{
	if (req->method == METHOD_RW && !req->bounced)
		iov_uncut(req);
	switch (res) {
	case -EINTR:
	case -EAGAIN:
		return req->retries++ < MAX_RETRIES ? 1 : (int)res;
	case -EOPNOTSUPP:
	case -ENOSYS:
	case -ENOTTY:
		return next_method(dev, caps, req);
	default:
		break;
	}
	if (res < 0)
		return (int)res;
	if (req->method == METHOD_RW || req->method == METHOD_ZERO_WRITE)
		return transferred(dev, req, bounce, (uint64_t)res);
	return req->method == METHOD_SYNC ? 0 : progress(req, req->step);
}

static ssize_t run_transfer(int fd, const struct block_step *s)
{
	if (s->iov)
		return s->write ? pwritev(fd, s->iov, (int)s->num_iov,
					  (off_t)s->offset)
				: preadv(fd, s->iov, (int)s->num_iov,
					 (off_t)s->offset);
	return s->write ? pwrite(fd, s->buf, s->len, (off_t)s->offset)
			: pread(fd, s->buf, s->len, (off_t)s->offset);
}

int64_t block_step_run(const struct blockdev *dev, const struct block_step *s)
{
	uint64_t range[2] = { s->offset, s->len };
	ssize_t r = -1;

	switch (s->method) {
	case METHOD_RW:
	case METHOD_ZERO_WRITE:
		r = run_transfer(dev->fd, s);
		break;
	case METHOD_SYNC:
		r = fdatasync(dev->fd);
		break;
	case METHOD_PUNCH:
	case METHOD_ZERO_RANGE:
		r = fallocate(dev->fd, s->fallocate_mode, (off_t)s->offset,
			      (off_t)s->len);
		break;
	case METHOD_DISCARD:
		r = ioctl(dev->fd, BLKDISCARD, range);
		break;
	}
	return r < 0 ? -errno : r;
}
