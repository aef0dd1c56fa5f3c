/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole-buffer reads and writes that retry EINTR and short transfers.
 * Any thread. Return 0 or a negative errno; a file that ends early is -ENODATA.
 */
#ifndef QUIRE_BASE_IO_H
#define QUIRE_BASE_IO_H

#include <stdint.h>
#include <sys/types.h>

#include "base/compiler.h"

__must_check int io_read_full(int fd, void *buf, size_t len);
__must_check int io_write_full(int fd, const void *buf, size_t len);
__must_check int io_pread_full(int fd, void *buf, size_t len, uint64_t offset);
__must_check int io_pwrite_full(int fd, const void *buf, size_t len,
				uint64_t offset);

/*
 * Read a small text file (/sys, /proc) into a NUL-terminated buffer, trailing
 * newline removed; longer files are cut. Returns the length or -errno.
 */
__must_check ssize_t io_read_text(const char *path, char *buf, size_t size);

/* The same from the start of an open file, to be read again and again. */
__must_check ssize_t io_pread_text(int fd, char *buf, size_t size);

/* The number in a small text file. -EINVAL: it holds none. */
__must_check int io_read_u64(const char *path, uint64_t *ret);

/* A kernel parameter's file: 1 for "Y" or "1", 0 for "N" or "0", or -errno. */
__must_check int io_read_flag(const char *path);

/* Add 1 to an eventfd. A full counter means the reader is already pending. */
void io_eventfd_signal(int fd);

/* Clear an eventfd; returns its count (0 if there was none). */
uint64_t io_eventfd_drain(int fd);

#endif
