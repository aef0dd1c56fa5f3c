/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

int sandbox_paths_add(struct sandbox_paths *paths, const char *path,
		      unsigned int access, bool optional, struct err *err)
{
	struct sandbox_path *list;
	char *copy;

	for (size_t i = 0; i < paths->num; i++) {
		if (strcmp(paths->list[i].path, path) != 0)
			continue;
		paths->list[i].access |= access;
		paths->list[i].optional &= optional;
		return 0;
	}
	list = reallocarray(paths->list, paths->num + 1, sizeof(*list));
	if (!list)
		return err_set(err, ENOMEM, "out of memory");
	paths->list = list;
	copy = strdup(path);
	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	list[paths->num++] = (struct sandbox_path){
		.path = copy,
		.access = access,
		.optional = optional,
	};
	return 0;
}

int sandbox_paths_add_parent(struct sandbox_paths *paths, const char *path,
			     unsigned int access, bool optional,
			     struct err *err)
{
	const char *slash = strrchr(path, '/');
	char *dir;
	int r;

	if (!slash)
		return sandbox_paths_add(paths, ".", access, optional, err);
	dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
	if (!dir)
		return err_set(err, ENOMEM, "out of memory");
	r = sandbox_paths_add(paths, dir, access, optional, err);
	free(dir);
	return r;
}

int sandbox_paths_join(struct sandbox_paths *paths,
		       const struct sandbox_paths *from, struct err *err)
{
	int r = 0;

	for (size_t i = 0; !r && from && i < from->num; i++)
		r = sandbox_paths_add(paths, from->list[i].path,
				      from->list[i].access,
				      from->list[i].optional, err);
	return r;
}

void sandbox_paths_fini(struct sandbox_paths *paths)
{
	for (size_t i = 0; i < paths->num; i++)
		free(paths->list[i].path);
	free(take_ptr(paths->list));
	paths->num = 0;
}

static int check_path(const struct sandbox_path *path, struct err *err)
{
	int mode = F_OK;

	if (path->access & SANDBOX_READ)
		mode |= R_OK;
	if (path->access & (SANDBOX_WRITE | SANDBOX_MAKE))
		mode |= W_OK;
	if (path->optional ||
	    !faccessat(AT_FDCWD, path->path, mode, AT_EACCESS))
		return 0;
	return err_errno(err, errno,
			 "%s: quire as it runs (uid %d, gid %d, no "
			 "capabilities) may not %s it; change its owner or "
			 "mode, or the user",
			 path->path, (int)geteuid(), (int)getegid(),
			 mode & W_OK ? "write to" : "read");
}

int sandbox_paths_check(const struct sandbox_paths *paths, struct err *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < paths->num; i++)
		r = check_path(&paths->list[i], err);
	return r;
}
