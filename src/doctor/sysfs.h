/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the host's small text files (/proc, /sys) below the run's root, and
 * the few formats they come in. Nothing here trusts the text: longer files are
 * cut, numbers are checked.
 */
#ifndef QUIRE_DOCTOR_SYSFS_H
#define QUIRE_DOCTOR_SYSFS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/compiler.h"

struct doctor_env;

/*
 * The file at the formatted path, NUL-terminated, without its last newline.
 * Length or -errno; on an error buf is the empty string.
 */
__must_check ssize_t sysfs_read(const struct doctor_env *env, char *buf,
				size_t size, const char *path, ...)
	__printf_fmt(4, 5);

/* The same for a file that holds one number. */
__must_check int sysfs_read_u64(const struct doctor_env *env, uint64_t *ret,
				const char *path, ...) __printf_fmt(3, 4);

/* The same for a parameter: 1 for "Y" or "1", 0 for "N" or "0", or -errno. */
__must_check int sysfs_read_flag(const struct doctor_env *env, const char *path,
				 ...) __printf_fmt(2, 3);

/* "always [madvise] never" -> "madvise". -EINVAL: nothing is in brackets. */
__must_check int sysfs_choice(const char *text, char *ret, size_t size);

/* The value of the line "key<blanks>value" of a status file. -ENOENT. */
__must_check int sysfs_field(const char *text, const char *key, char *ret,
			     size_t size);

/* Is word one of the blank-separated words of text? */
bool sysfs_has_word(const char *text, const char *word);

/* Where cgroup2 is mounted, from mountinfo's text. -ENOENT: nowhere. */
__must_check int sysfs_cgroup2_mount(const char *mountinfo, char *ret,
				     size_t size);
/* The v2 path ("/" or "/a/b") from the text of /proc/PID/cgroup. -ENOENT. */
__must_check int sysfs_cgroup2_path(const char *cgroup, char *ret, size_t size);

#endif
