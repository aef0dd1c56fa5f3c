/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chardev "file": output only, to a file that is created or emptied, or to
 * a FIFO or device that is there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "device/chardev_priv.h"
#include "device/outq.h"

struct file {
	struct chardev chr;
	int fd;
	struct outq *out;
	char *created; /* path of a file that is ours and not yet started */
};

static struct file *to_file(struct chardev *chr)
{
	return container_of(chr, struct file, chr);
}

static int file_sink(void *ctx, const uint8_t *data, size_t len)
{
	struct file *file = ctx;
	int r = io_write_full(file->fd, data, len);

	/* A full disk may get room again; anything else is for good. */
	return r == 0 || r == -ENOSPC || r == -EDQUOT ? r : -EPIPE;
}

static int file_start(struct chardev *chr, struct evloop *loop, struct err *err)
{
	struct file *file = to_file(chr);
	int r;

	/* Only now: a VM that could not be built costs no earlier log. */
	if (ftruncate(file->fd, 0) && errno != EINVAL) /* FIFO, device */
		return err_errno(err, errno, "console to a file");
	r = outq_start(file->out);
	if (r)
		return err_errno(err, -r, "console to a file");
	free(take_ptr(file->created));
	return 0;
}

static void file_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	outq_put(to_file(chr)->out, data, len, true);
}

static int file_flush(struct chardev *chr, uint64_t stall_ns)
{
	return outq_flush(to_file(chr)->out, stall_ns);
}

static void file_set_waiting(struct chardev *chr, bool waiting)
{
	outq_set_waiting(to_file(chr)->out, waiting);
}

static uint64_t file_dropped(struct chardev *chr)
{
	return outq_dropped(to_file(chr)->out);
}

static void file_free(struct chardev *chr)
{
	struct file *file = to_file(chr);

	if (file->out) {
		/* Output lost now is counted by nobody any more. */
		(void)outq_flush(file->out, CHARDEV_FINAL_STALL_NS);
		if (outq_free(file->out))
			return; /* its thread still uses it, see outq.h */
	}
	if (file->created)
		unlink(file->created);
	free(file->created);
	close_fd(&file->fd);
	free(file);
}

static const struct chardev_ops file_ops = {
	.start = file_start,
	.write = file_write,
	.flush = file_flush,
	.set_waiting = file_set_waiting,
	.dropped = file_dropped,
	.free = file_free,
};

/* Not blocking: a FIFO without a reader is an error, not a silent wait. */
static int open_output(const struct chardev_config *cfg, bool *ret_created,
		       struct err *err)
{
	int how = O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	int fd = open(cfg->path, how | O_CREAT | O_EXCL, 0666);
	int flags;

	*ret_created = fd >= 0;
	if (fd < 0 && errno == EEXIST)
		fd = open(cfg->path, how);
	if (fd < 0 && errno == ENXIO)
		return err_set(err, ENXIO,
			       "%s file=%s: nobody reads this FIFO; start its "
			       "reader first",
			       cfg->option, cfg->path);
	if (fd < 0)
		return err_errno(err, errno, "%s file=%s", cfg->option,
				 cfg->path);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
		int code = errno;

		close(fd);
		return err_errno(err, code, "%s file=%s", cfg->option,
				 cfg->path);
	}
	return fd;
}

int chardev_file_new(struct chardev **ret, const struct chardev_config *cfg,
		     struct err *err)
{
	struct file *file = calloc(1, sizeof(*file));
	bool created;
	int r;

	if (!file)
		return err_set(err, ENOMEM, "%s file=%s: out of memory",
			       cfg->option, cfg->path);
	file->chr.ops = &file_ops;
	file->fd = open_output(cfg, &created, err);
	r = file->fd < 0 ? file->fd : 0;
	if (!r && created) {
		file->created = strdup(cfg->path);
		if (!file->created)
			r = err_set(err, ENOMEM, "out of memory");
	}
	if (!r) {
		r = outq_new(&file->out, OUTQ_WAIT, file_sink, file);
		if (r)
			r = err_errno(err, -r, "%s file=%s", cfg->option,
				      cfg->path);
	}
	if (r) {
		file_free(&file->chr);
		return r;
	}
	*ret = &file->chr;
	return 0;
}
