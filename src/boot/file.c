/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel and initramfs files: opened once, read straight into guest memory.
 *
 * pread() into the guest's pages rather than a mapping of the file: the bytes
 * are copied once, and no page of the file ever counts as quire's own memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/size.h"
#include "boot/boot_priv.h"

int boot_file_err(const struct boot_file *file, struct err *err, int code,
		  const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return err_set(err, code, "%s %s: %s", file->what, file->path, text);
}

int boot_file_no_room(const struct boot_file *file, uint64_t gpa, uint64_t len,
		      uint64_t ram_end, struct err *err)
{
	char all_text[32], have_text[32], len_text[32];
	uint64_t all;

	if (!add_u64(gpa, len, &all))
		all = UINT64_MAX;
	return boot_file_err(
		file, err, ENOMEM,
		"needs %s of memory at %#llx, %s in all, and the guest has %s"
		" below 4 GiB; give it more (--memory size=)",
		size_format(len, len_text, sizeof(len_text)),
		(unsigned long long)gpa,
		size_format(all, all_text, sizeof(all_text)),
		size_format(ram_end, have_text, sizeof(have_text)));
}

static const char *file_kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a FIFO";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
	case S_IFBLK:
		return "a device";
	default:
		return "no file";
	}
}

static const char *open_remedy(int code)
{
	switch (code) {
	case ENOENT:
	case ENOTDIR:
		return "; check the path";
	case EACCES:
		return "; make it readable for the user who runs quire";
	case ENXIO:
		return "; give a regular file";
	default:
		return "";
	}
}

int boot_file_init(int fd, const char *what, const char *path,
		   struct boot_file *ret_file, struct err *err)
{
	_cleanup_close_ int owned = fd;
	struct boot_file file = { .fd = fd, .what = what, .path = path };
	struct stat st;

	if (fstat(fd, &st))
		return boot_file_err(&file, err, errno, "cannot stat: %s",
				     strerror(errno));
	if (!S_ISREG(st.st_mode))
		return boot_file_err(&file, err,
				     S_ISDIR(st.st_mode) ? EISDIR : EINVAL,
				     "is %s; give a regular file",
				     file_kind(st.st_mode));
	if (st.st_size <= 0)
		return boot_file_err(&file, err, ENODATA, "is empty");
	file.size = (uint64_t)st.st_size;
	*ret_file = file;
	take_fd(&owned);
	return 0;
}

int boot_file_open(const char *what, const char *path,
		   struct boot_file *ret_file, struct err *err)
{
	struct boot_file file = { .fd = -1, .what = what, .path = path };
	/* Without O_NONBLOCK a FIFO would hold us up until it has a writer. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0) {
		int code = errno;

		return boot_file_err(&file, err, code, "cannot open: %s%s",
				     strerror(code), open_remedy(code));
	}
	return boot_file_init(fd, what, path, ret_file, err);
}

void boot_file_close(struct boot_file *file)
{
	close_fd(&file->fd);
}

int boot_file_read(const struct boot_file *file, uint64_t offset, void *buf,
		   uint64_t len, struct err *err)
{
	int rc;

	if (!range_ok(offset, len, file->size))
		return boot_file_err(file, err, ENODATA,
				     "truncated: %llu bytes at %#llx wanted,"
				     " the file has %llu",
				     (unsigned long long)len,
				     (unsigned long long)offset,
				     (unsigned long long)file->size);
	rc = io_pread_full(file->fd, buf, len, offset);
	if (rc == -ENODATA)
		return boot_file_err(file, err, ENODATA,
				     "became shorter while it was read");
	if (rc)
		return boot_file_err(file, err, -rc, "cannot read: %s",
				     strerror(-rc));
	return 0;
}

int boot_file_read_ram(const struct boot_file *file, uint64_t offset,
		       uint64_t len, const struct ram *ram, struct gpa gpa,
		       struct err *err)
{
	void *to;

	if (!len)
		return 0;
	to = mem_map_range(ram, gpa, len, MEM_WRITE);
	if (!to)
		return boot_file_err(file, err, EFAULT,
				     "no guest memory at %#llx for %llu bytes",
				     (unsigned long long)gpa.v,
				     (unsigned long long)len);
	return boot_file_read(file, offset, to, len, err);
}
