/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening an image: which files are accepted, the lock, and what the host can
 * do with them. Everything a user can get wrong about a disk is told here.
 */
#include "block/blockdev.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/size.h"
#include "block/blockdev_priv.h"

#define SECTOR 512u

#define RETRY_FOR_MS   500u
#define RETRY_PAUSE_MS 10u

static int check_type(const char *path, mode_t mode, struct err *err)
{
	if (S_ISREG(mode) || S_ISBLK(mode))
		return 0;
	if (S_ISDIR(mode))
		return err_set(err, EISDIR,
			       "disk %s: is a directory; give an image file "
			       "or a block device",
			       path);
	return err_set(err, EINVAL,
		       "disk %s: neither a regular file nor a block device",
		       path);
}

static int open_failed(const struct blockdev *dev, int code, struct err *err)
{
	switch (code) {
	case ENOENT:
		return err_set(err, code,
			       "disk %s: no such file; create one with: "
			       "truncate -s 10G %s",
			       dev->path, dev->path);
	case EACCES:
	case EPERM:
	case EROFS:
		return err_errno(
			err, code, "disk %s: cannot open for %s%s", dev->path,
			dev->readonly ? "reading" : "reading and writing",
			dev->readonly ? ""
				      : " (readonly=on asks for reading only)");
	case EBUSY:
	case ETXTBSY:
		return err_set(err, code,
			       "disk %s: is in use by the host (mounted, or "
			       "part of another device); unmount it, or use "
			       "readonly=on",
			       dev->path);
	case EINVAL:
		if (dev->direct)
			return err_set(err, code,
				       "disk %s: its file system has no direct "
				       "I/O; drop direct=on",
				       dev->path);
		break;
	default:
		break;
	}
	return err_errno(err, code, "disk %s: cannot open", dev->path);
}

/*
 * The end of an io_uring is asynchronous, and it holds its file until its last
 * request is done. So what a quire had claimed that was killed a moment ago may
 * still be taken: come back for a while. False: long enough. Keeps errno.
 */
static bool pause_ms(unsigned int *waited_ms)
{
	const struct timespec pause = { .tv_nsec = RETRY_PAUSE_MS * 1000000L };
	int saved_errno = errno;

	if (*waited_ms >= RETRY_FOR_MS)
		return false;
	nanosleep(&pause, NULL);
	*waited_ms += RETRY_PAUSE_MS;
	errno = saved_errno;
	return true;
}

/*
 * Look before opening: opening a FIFO can block and opening some character
 * devices has effects. The descriptor is checked once more, for the file may be
 * replaced between the two.
 */
static int open_file(struct blockdev *dev, struct err *err)
{
	int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	unsigned int waited_ms = 0;
	struct stat st;
	int r;

	if (stat(dev->path, &st))
		return open_failed(dev, errno, err);
	r = check_type(dev->path, st.st_mode, err);
	if (r)
		return r;
	flags |= dev->readonly ? O_RDONLY : O_RDWR;
	flags |= dev->direct ? O_DIRECT : 0;
	/* On a block device: fail when it is mounted or otherwise claimed. */
	if (S_ISBLK(st.st_mode) && !dev->readonly)
		flags |= O_EXCL;
	do
		dev->fd = open(dev->path, flags);
	while (dev->fd < 0 && errno == EBUSY && pause_ms(&waited_ms));
	if (dev->fd < 0)
		return open_failed(dev, errno, err);
	if (fstat(dev->fd, &st))
		return err_errno(err, errno, "disk %s: fstat", dev->path);
	r = check_type(dev->path, st.st_mode, err);
	if (r)
		return r;
	dev->is_bdev = S_ISBLK(st.st_mode);
	/* io_uring takes O_NONBLOCK as a wish to see EAGAIN. */
	if (fcntl(dev->fd, F_SETFL, flags & O_DIRECT))
		return err_errno(err, errno, "disk %s: fcntl", dev->path);
	return 0;
}

/*
 * Locks belong to the open file description: the kernel drops them when the
 * process ends in whatever way.
 *
 * A writer locks the whole file exclusively, so that nobody else has any lock.
 * A reader follows QEMU (block/file-posix.c), whose processes tell each other
 * what they do and what they suffer by shared locks on single bytes: byte
 * 100 + n for a permission n in use, byte 200 + n for one that others must not
 * use. Each sets its own first and looks for those of others then, so that of
 * two that start at once not both can miss the other.
 */
enum {
	PERM_READ = 0,
	PERM_WRITE = 1,
	PERM_RESIZE = 3,
	LOCK_USED = 100,
	LOCK_DENIED = 200,
};

static int set_lock(const struct blockdev *dev, short type, off_t start,
		    off_t len)
{
	struct flock fl = {
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = start,
		.l_len = len,
	};

	return fcntl(dev->fd, F_OFD_SETLK, &fl) ? -errno : 0;
}

/* -EAGAIN when somebody else holds a lock on this byte in QEMU's way. */
static int look_for_lock(const struct blockdev *dev, off_t byte)
{
	struct flock fl = {
		.l_type = F_WRLCK,
		.l_whence = SEEK_SET,
		.l_start = byte,
		.l_len = 1,
	};

	if (fcntl(dev->fd, F_OFD_GETLK, &fl))
		return -errno;
	/* Shared and over the whole file: a reader with simpler rules. */
	if (fl.l_type == F_RDLCK && fl.l_start == 0 && fl.l_len == 0)
		return 0;
	return fl.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int lock_for_reading(const struct blockdev *dev)
{
	static const off_t set[] = {
		LOCK_USED + PERM_READ,
		LOCK_DENIED + PERM_WRITE,
		LOCK_DENIED + PERM_RESIZE,
	};
	static const off_t look[] = {
		LOCK_DENIED + PERM_READ,
		LOCK_USED + PERM_WRITE,
		LOCK_USED + PERM_RESIZE,
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(set) && !r; i++)
		r = set_lock(dev, F_RDLCK, set[i], 1);
	for (size_t i = 0; i < ARRAY_SIZE(look) && !r; i++)
		r = look_for_lock(dev, look[i]);
	if (r)
		(void)set_lock(dev, F_UNLCK, 0, 0);
	return r;
}

static int try_lock(const struct blockdev *dev)
{
	unsigned int waited_ms = 0;
	int r;

	do
		r = dev->readonly ? lock_for_reading(dev)
				  : set_lock(dev, F_WRLCK, 0, 0);
	while ((r == -EAGAIN || r == -EACCES) && pause_ms(&waited_ms));
	return r;
}

/* A file system that cannot lock is no reason to refuse, but worth a line. */
static int lock_file(const struct blockdev *dev, struct err *err)
{
	int r = try_lock(dev);

	if (r == -EAGAIN || r == -EACCES)
		return err_set(err, EBUSY,
			       "disk %s: is in use by another quire or QEMU "
			       "(locked)%s; stop that one, or use a copy",
			       dev->path,
			       dev->readonly ? ", which may write to it" : "");
	if (r)
		log_warn("disk %s: the file system cannot lock it (%s): make "
			 "sure nothing else uses it",
			 dev->path, strerror(-r));
	return 0;
}

static void unlock_file(const struct blockdev *dev)
{
	/* A queue's ring may keep the description open a little longer. */
	(void)set_lock(dev, F_UNLCK, 0, 0);
}

static uint64_t sysfs_queue_u64(dev_t rdev, const char *name)
{
	/* A partition's queue is its parent's. */
	static const char *const places[] = { "queue", "../queue" };
	char path[128], text[32];
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s",
			 major(rdev), minor(rdev), places[i], name);
		if (io_read_text(path, text, sizeof(text)) > 0 &&
		    size_parse_u64(text, &v) == 0)
			return v;
	}
	return 0;
}

static int probe_bdev(struct blockdev *dev, const struct stat *st,
		      struct err *err)
{
	unsigned int physical;
	int logical;

	if (ioctl(dev->fd, BLKGETSIZE64, &dev->size) ||
	    ioctl(dev->fd, BLKSSZGET, &logical))
		return err_errno(err, errno, "disk %s: cannot get its size",
				 dev->path);
	if (logical < (int)SECTOR || logical > 65536 ||
	    !is_pow2((uint64_t)logical))
		return err_set(err, EINVAL,
			       "disk %s: sectors of %d bytes are not supported",
			       dev->path, logical);
	dev->block_bytes = (uint32_t)logical;
	dev->physical_bytes = dev->block_bytes;
	if (!ioctl(dev->fd, BLKPBSZGET, &physical) && is_pow2(physical) &&
	    physical <= 65536)
		dev->physical_bytes = MAX(physical, dev->block_bytes);
	dev->discard_bytes = (uint32_t)MIN(
		sysfs_queue_u64(st->st_rdev, "discard_granularity"), GIB);
	dev->can_discard = !dev->readonly &&
			   sysfs_queue_u64(st->st_rdev, "discard_max_bytes") >
				   0;
	dev->can_write_zeroes = !dev->readonly;
	return 0;
}

static int probe_file(struct blockdev *dev, const struct stat *st,
		      struct err *err)
{
	uint64_t io = (uint64_t)st->st_blksize;

	dev->size = (uint64_t)st->st_size;
	dev->block_bytes = SECTOR;
	dev->physical_bytes = is_pow2(io)
				      ? (uint32_t)MIN(MAX(io, SECTOR), PAGE_4K)
				      : SECTOR;
	dev->discard_bytes = dev->physical_bytes;
	/* Past the end: tells whether holes are known, and changes nothing. */
	dev->can_discard =
		!dev->readonly &&
		!fallocate(dev->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			   st->st_size, PAGE_4K);
	/* Zeroes can be written if nothing better is there. */
	dev->can_write_zeroes = !dev->readonly;
	return 0;
}

/* The smallest alignment, 512 or 4096, that a direct read at 0 is fine with. */
static uint32_t try_direct_read(const struct blockdev *dev, char *buf,
				uint32_t len, bool vary_len)
{
	static const uint32_t aligns[] = { 512, 4096 };

	for (size_t i = 0; i < ARRAY_SIZE(aligns); i++) {
		char *p = vary_len ? buf : buf + aligns[i];
		ssize_t n = pread(dev->fd, p, vary_len ? aligns[i] : len, 0);

		if (n >= 0 || errno != EINVAL)
			return aligns[i];
	}
	return 4096;
}

static int probe_direct(struct blockdev *dev, struct err *err)
{
	_cleanup_free_ char *buf = NULL;
	uint32_t offset_align = 0;

#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(dev->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) &&
	    (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align) {
		offset_align = stx.stx_dio_offset_align;
		dev->mem_align = stx.stx_dio_mem_align;
	}
#endif
	/* Always so with headers that lack STATX_DIOALIGN. */
	/* cppcheck-suppress knownConditionTrueFalse */
	if (!offset_align) {
		buf = aligned_alloc(PAGE_4K, 64 * KIB + PAGE_4K);
		if (!buf)
			return err_set(err, ENOMEM, "out of memory");
		offset_align = dev->is_bdev
				       ? dev->block_bytes
				       : try_direct_read(dev, buf, 0, true);
		dev->mem_align = try_direct_read(dev, buf, offset_align, false);
	}
	if (!is_pow2(offset_align) || offset_align > PAGE_4K ||
	    !is_pow2(dev->mem_align) || dev->mem_align > PAGE_4K)
		return err_set(err, EINVAL,
			       "disk %s: direct I/O needs an alignment of %u "
			       "bytes here; drop direct=on",
			       dev->path, MAX(offset_align, dev->mem_align));
	if (offset_align > dev->block_bytes) {
		log_info("disk %s: direct I/O works in units of %u bytes: the "
			 "guest sees sectors of that size",
			 dev->path, offset_align);
		dev->block_bytes = offset_align;
	}
	return 0;
}

static int check_size(const struct blockdev *dev, struct err *err)
{
	uint64_t rounded = align_up(dev->size, dev->block_bytes);

	if (dev->size == 0)
		return err_set(err, EINVAL,
			       "disk %s: is empty; give it a size with: "
			       "truncate -s 10G %s",
			       dev->path, dev->path);
	if (rounded != dev->size)
		return err_set(err, EINVAL,
			       "disk %s: its size, %" PRIu64
			       " bytes, is not a multiple of %u; extend it "
			       "with: truncate -s %" PRIu64 " %s",
			       dev->path, dev->size, dev->block_bytes, rounded,
			       dev->path);
	return 0;
}

static int probe(struct blockdev *dev, struct err *err)
{
	struct stat st;
	int r;

	if (fstat(dev->fd, &st))
		return err_errno(err, errno, "disk %s: fstat", dev->path);
	dev->mem_align = 1;
	r = dev->is_bdev ? probe_bdev(dev, &st, err)
			 : probe_file(dev, &st, err);
	if (!r && dev->direct)
		r = probe_direct(dev, err);
	if (r)
		return r;
	dev->physical_bytes = MAX(dev->physical_bytes, dev->block_bytes);
	dev->discard_bytes = MAX(dev->discard_bytes, dev->block_bytes);
	return check_size(dev, err);
}

int blockdev_open(struct blockdev **ret, const struct blockdev_config *cfg,
		  struct err *err)
{
	struct blockdev *dev = calloc(1, sizeof(*dev));
	int r;

	if (!dev)
		return err_set(err, ENOMEM, "disk %s: out of memory",
			       cfg->path);
	dev->fd = -1;
	dev->readonly = cfg->readonly;
	dev->direct = cfg->direct;
	dev->path = strdup(cfg->path);
	if (!dev->path)
		r = err_set(err, ENOMEM, "disk %s: out of memory", cfg->path);
	else
		r = open_file(dev, err);
	if (!r && !cfg->unlocked)
		r = lock_file(dev, err);
	if (!r)
		r = probe(dev, err);
	if (r) {
		blockdev_close(dev);
		return r;
	}
	*ret = dev;
	return 0;
}

void blockdev_close(struct blockdev *dev)
{
	if (!dev)
		return;
	if (dev->fd >= 0)
		unlock_file(dev);
	close_fd(&dev->fd);
	block_track_fini(&dev->track);
	free(dev->path);
	free(dev);
}

int blockdev_leave(struct blockdev *dev, struct err *err)
{
	if (!dev->readonly && fsync(dev->fd))
		return err_errno(err, errno, "disk %s: fsync", dev->path);
	unlock_file(dev);
	return 0;
}

int blockdev_lock(struct blockdev *dev, struct err *err)
{
	return lock_file(dev, err);
}

uint64_t blockdev_size(const struct blockdev *dev)
{
	return dev->size;
}

uint32_t blockdev_block_bytes(const struct blockdev *dev)
{
	return dev->block_bytes;
}

uint32_t blockdev_physical_bytes(const struct blockdev *dev)
{
	return dev->physical_bytes;
}

uint32_t blockdev_discard_bytes(const struct blockdev *dev)
{
	return dev->discard_bytes;
}

struct block_track *blockdev_track(struct blockdev *dev)
{
	return &dev->track;
}

const char *blockdev_path(const struct blockdev *dev)
{
	return dev->path;
}

int blockdev_fd(const struct blockdev *dev)
{
	return dev->fd;
}

bool blockdev_readonly(const struct blockdev *dev)
{
	return dev->readonly;
}

bool blockdev_can_discard(const struct blockdev *dev)
{
	return dev->can_discard;
}

bool blockdev_can_write_zeroes(const struct blockdev *dev)
{
	return dev->can_write_zeroes;
}
