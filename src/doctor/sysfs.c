/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor/sysfs.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "doctor/doctor.h"

/* The path below the run's root. */
static int full_path(const struct doctor_env *env, const char *path, va_list ap,
		     char full[PATH_MAX])
{
	size_t root_len = strlen(env->root);
	int len;

	if (root_len >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(full, env->root, root_len);
	len = vsnprintf(full + root_len, PATH_MAX - root_len, path, ap);
	return len < 0 || (size_t)len >= PATH_MAX - root_len ? -ENAMETOOLONG
							     : 0;
}

ssize_t sysfs_read(const struct doctor_env *env, char *buf, size_t size,
		   const char *path, ...)
{
	char full[PATH_MAX];
	va_list ap;
	ssize_t r;

	va_start(ap, path);
	r = full_path(env, path, ap, full);
	va_end(ap);
	if (!r)
		r = io_read_text(full, buf, size);
	if (r < 0)
		buf[0] = '\0';
	return r;
}

int sysfs_read_u64(const struct doctor_env *env, uint64_t *ret,
		   const char *path, ...)
{
	char full[PATH_MAX];
	va_list ap;
	int r;

	va_start(ap, path);
	r = full_path(env, path, ap, full);
	va_end(ap);
	return r ? r : io_read_u64(full, ret);
}

int sysfs_read_flag(const struct doctor_env *env, const char *path, ...)
{
	char full[PATH_MAX];
	va_list ap;
	int r;

	va_start(ap, path);
	r = full_path(env, path, ap, full);
	va_end(ap);
	return r ? r : io_read_flag(full);
}

/* Copy [start, start + len) if it fits. */
static int copy_span(char *ret, size_t size, const char *start, size_t len)
{
	if (len >= size)
		return -ENAMETOOLONG;
	memcpy(ret, start, len);
	ret[len] = '\0';
	return 0;
}

int sysfs_choice(const char *text, char *ret, size_t size)
{
	const char *start = strchr(text, '[');
	const char *end = start ? strchr(start, ']') : NULL;

	if (!end)
		return -EINVAL;
	return copy_span(ret, size, start + 1, (size_t)(end - start - 1));
}

int sysfs_field(const char *text, const char *key, char *ret, size_t size)
{
	size_t key_len = strlen(key);

	while (text && *text) {
		if (!strncmp(text, key, key_len)) {
			text += key_len;
			text += strspn(text, " \t");
			return copy_span(ret, size, text, strcspn(text, "\n"));
		}
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	return -ENOENT;
}

bool sysfs_has_word(const char *text, const char *word)
{
	size_t word_len = strlen(word), len;

	for (;;) {
		text += strspn(text, " \t\n");
		len = strcspn(text, " \t\n");
		if (len == 0)
			return false;
		if (len == word_len && !memcmp(text, word, len))
			return true;
		text += len;
	}
}

/* One line of mountinfo: field 5 is the mount point, " - " precedes the type.
 */
static bool cgroup2_line(const char *line, size_t len, const char **ret_point,
			 size_t *ret_len)
{
	static const char mark[] = " - cgroup2 ";
	const char *end = line + len, *p = line;

	if (!memmem(line, len, mark, sizeof(mark) - 1))
		return false;
	for (int field = 1; field < 5; field++) {
		p = memchr(p, ' ', (size_t)(end - p));
		if (!p)
			return false;
		p++;
	}
	*ret_point = p;
	*ret_len = strcspn(p, " \n");
	return true;
}

int sysfs_cgroup2_mount(const char *mountinfo, char *ret, size_t size)
{
	while (*mountinfo) {
		size_t len = strcspn(mountinfo, "\n"), point_len;
		const char *point;

		if (cgroup2_line(mountinfo, len, &point, &point_len))
			return copy_span(ret, size, point, point_len);
		mountinfo += len;
		if (*mountinfo)
			mountinfo++;
	}
	return -ENOENT;
}

int sysfs_cgroup2_path(const char *cgroup, char *ret, size_t size)
{
	return sysfs_field(cgroup, "0::", ret, size);
}
