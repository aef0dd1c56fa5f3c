/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "snapshot/format.h"
#include "snapshot/handed.h"

#define MAX_ATTEMPTS 20

int snapshot_dir_open(const char *path, struct err *err)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? err_errno(err, errno, "snapshot %s", path) : fd;
}

/* "a/b//" is NAME "b" in "a". copy is of path, and scratch. */
static int split_copy(struct snapshot_dir *dir, const char *path, char *copy,
		      struct err *err)
{
	size_t len = strlen(path);
	char *slash;

	while (len > 1 && copy[len - 1] == '/')
		copy[--len] = '\0';
	slash = strrchr(copy, '/');
	dir->name = strdup(slash ? slash + 1 : copy);
	if (!dir->name)
		return err_set(err, ENOMEM, "snapshot %s: out of memory", path);
	if (!*dir->name || !strcmp(dir->name, ".") || !strcmp(dir->name, ".."))
		return err_set(err, EINVAL, "snapshot %s: not a name", path);
	if (slash == copy)
		dir->parent_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	else if (slash)
		*slash = '\0';
	if (dir->parent_fd < 0)
		dir->parent_fd = open(slash ? copy : ".",
				      O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir->parent_fd < 0)
		return err_errno(err, errno, "snapshot %s: directory %s", path,
				 slash ? copy : ".");
	return 0;
}

static int split_path(struct snapshot_dir *dir, const char *path,
		      struct err *err)
{
	char *copy = strdup(path);
	int r = copy ? split_copy(dir, path, copy, err)
		     : err_set(err, ENOMEM, "snapshot %s: out of memory", path);

	free(copy);
	return r;
}

/* ---- removing ---- */

/* Snapshots are flat: a directory inside is not ours, and stays. */
static int remove_files(int fd)
{
	int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *entry;
	int r = 0;

	if (!list) {
		close_fd(&copy);
		return -errno;
	}
	/* The stream is ours alone. */
	/* cppcheck-suppress readdirCalled */
	while ((entry = readdir(list))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (unlinkat(fd, entry->d_name, 0) && errno != ENOENT && !r)
			r = -errno;
	}
	closedir(list);
	return r;
}

static int remove_dir(int parent_fd, const char *name)
{
	_cleanup_close_ int fd = openat(parent_fd, name,
					O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
						O_CLOEXEC);
	int r = fd < 0 ? -errno : remove_files(fd);

	if (!r && unlinkat(parent_fd, name, AT_REMOVEDIR))
		r = -errno;
	return r;
}

int snapshot_dir_remove(const char *path)
{
	return remove_dir(AT_FDCWD, path);
}

/* ".NAME.tmp-": what names of temporary directories begin with. */
static char *tmp_prefix(const struct snapshot_dir *dir)
{
	char *prefix;

	return asprintf(&prefix, ".%s.tmp-", dir->name) < 0 ? NULL : prefix;
}

/* Whose maker is gone: nobody else could lock it. */
static void remove_if_left(const struct snapshot_dir *dir, const char *name)
{
	_cleanup_close_ int fd = openat(dir->parent_fd, name,
					O_RDONLY | O_DIRECTORY | O_NOFOLLOW |
						O_CLOEXEC);
	int r;

	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB))
		return;
	r = remove_dir(dir->parent_fd, name);
	if (r)
		log_warn("snapshot %s: %s, left by a process that died, cannot "
			 "be removed: %s",
			 dir->path, name, strerror(-r));
	else
		log_info("snapshot %s: removed %s, left by a process that died",
			 dir->path, name);
}

static void remove_left(const struct snapshot_dir *dir, const char *prefix)
{
	int copy = openat(dir->parent_fd, ".",
			  O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *entry;

	if (!list) {
		close_fd(&copy);
		return;
	}
	/* The stream is ours alone. */
	/* cppcheck-suppress readdirCalled */
	while ((entry = readdir(list))) {
		if (!strncmp(entry->d_name, prefix, strlen(prefix)))
			remove_if_left(dir, entry->d_name);
	}
	closedir(list);
}

/* ---- making ---- */

static bool same_file(int fd, int parent_fd, const char *name)
{
	struct stat a, b;

	return !fstat(fd, &a) &&
	       !fstatat(parent_fd, name, &b, AT_SYMLINK_NOFOLLOW) &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/*
 * Between mkdir and flock another writer may take the directory for a left one.
 * So look, once it is locked, whether it is still there. 1: try another.
 */
static int try_tmp(struct snapshot_dir *dir, const char *prefix)
{
	uint32_t random;
	char *name;
	int fd;

	if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return -EIO;
	if (asprintf(&name, "%s%08x", prefix, random) < 0)
		return -ENOMEM;
	if (mkdirat(dir->parent_fd, name, 0700)) {
		int code = errno;

		free(name);
		return code == EEXIST ? 1 : -code;
	}
	fd = openat(dir->parent_fd, name,
		    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) ||
	    !same_file(fd, dir->parent_fd, name)) {
		close_fd(&fd);
		free(name);
		return 1;
	}
	dir->fd = fd;
	dir->tmp = name;
	return 0;
}

static int make_tmp(struct snapshot_dir *dir, struct err *err)
{
	_cleanup_free_ char *prefix = tmp_prefix(dir);
	int r = prefix ? 1 : -ENOMEM;

	if (prefix)
		remove_left(dir, prefix);
	for (int i = 0; r > 0 && i < MAX_ATTEMPTS; i++)
		r = try_tmp(dir, prefix);
	if (r)
		return err_errno(err, r < 0 ? -r : EBUSY,
				 "snapshot %s: making a directory beside it",
				 dir->path);
	return 0;
}

/* Replacing removes, so only what is a snapshot is replaced. */
static int check_place(const struct snapshot_dir *dir, bool replace,
		       struct err *err)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (fstatat(dir->parent_fd, dir->name, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0
				       : err_errno(err, errno, "snapshot %s",
						   dir->path);
	if (!replace)
		return err_set(err, EEXIST,
			       "snapshot %s: exists; choose another name, or "
			       "have it replaced",
			       dir->path);
	fd = openat(dir->parent_fd, dir->name,
		    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || faccessat(fd, SNAPSHOT_MANIFEST, F_OK, 0))
		return err_set(err, EEXIST,
			       "snapshot %s: what is there is no snapshot and "
			       "is not replaced",
			       dir->path);
	return 0;
}

static int init(struct snapshot_dir *dir, const char *path, struct err *err)
{
	*dir = (struct snapshot_dir){
		.path = strdup(path),
		.parent_fd = -1,
		.fd = -1,
		.asked_fd = -1,
	};
	return dir->path ? 0
			 : err_set(err, ENOMEM, "snapshot %s: out of memory",
				   path);
}

int snapshot_dir_create(struct snapshot_dir *dir, const char *path,
			bool replace, struct err *err)
{
	int r = init(dir, path, err);

	if (!r)
		r = split_path(dir, path, err);
	if (!r)
		r = check_place(dir, replace, err);
	if (!r)
		r = make_tmp(dir, err);
	if (r)
		snapshot_dir_fini(dir);
	return r;
}

int snapshot_dir_borrow(struct snapshot_dir *dir, const char *path,
			const char *socket, struct err *err)
{
	int r = init(dir, path, err);

	if (r)
		return r;
	r = handed_connect(socket, &dir->asked_fd, err);
	if (r) {
		err_prefix(err, "snapshot %s", path);
		snapshot_dir_fini(dir);
	}
	return r;
}

/* Refused with EINVAL, after it was made, where it cannot be direct. */
int snapshot_dir_make_file(struct snapshot_dir *dir, const char *name,
			   bool direct)
{
	int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, fd;

	if (dir->asked_fd >= 0)
		return handed_ask(dir->asked_fd, name);
	if (direct) {
		fd = openat(dir->fd, name, flags | O_DIRECT, 0600);
		if (fd >= 0 || errno != EINVAL)
			return fd < 0 ? -errno : fd;
		(void)!unlinkat(dir->fd, name, 0);
	}
	fd = openat(dir->fd, name, flags, 0600);
	return fd < 0 ? -errno : fd;
}

bool snapshot_dir_is_over(const struct snapshot_dir *dir)
{
	return dir->asked_fd >= 0 && handed_is_over(dir->asked_fd);
}

/* After an exchange tmp is the name of the old one. */
static int put_in_place(struct snapshot_dir *dir, bool replace, struct err *err)
{
	int r = check_place(dir, replace, err);

	if (r)
		return r;
	if (!renameat2(dir->parent_fd, dir->tmp, dir->parent_fd, dir->name,
		       RENAME_NOREPLACE)) {
		free(take_ptr(dir->tmp));
		return 0;
	}
	if (!replace || errno != EEXIST ||
	    renameat2(dir->parent_fd, dir->tmp, dir->parent_fd, dir->name,
		      RENAME_EXCHANGE))
		return err_errno(err, errno, "snapshot %s: renaming it",
				 dir->path);
	return 0;
}

int snapshot_dir_commit(struct snapshot_dir *dir, bool replace, struct err *err)
{
	int r;

	if (dir->asked_fd >= 0)
		return 0;
	if (fsync(dir->fd))
		return err_errno(err, errno, "snapshot %s", dir->path);
	r = put_in_place(dir, replace, err);
	if (r)
		return r;
	if (fsync(dir->parent_fd))
		log_warn("snapshot %s: it is there, but its directory cannot "
			 "be synced: %s",
			 dir->path, strerror(errno));
	if (!dir->tmp)
		return 0;
	r = remove_dir(dir->parent_fd, dir->tmp);
	if (r)
		log_warn("snapshot %s: the one it replaces cannot be removed "
			 "and is %s now: %s",
			 dir->path, dir->tmp, strerror(-r));
	free(take_ptr(dir->tmp));
	return 0;
}

void snapshot_dir_fini(struct snapshot_dir *dir)
{
	if (dir->tmp && dir->parent_fd >= 0) {
		int r = remove_dir(dir->parent_fd, dir->tmp);

		if (r)
			log_warn("snapshot %s: %s cannot be removed: %s",
				 dir->path, dir->tmp, strerror(-r));
	}
	close_fd(&dir->fd);
	close_fd(&dir->parent_fd);
	close_fd(&dir->asked_fd);
	free(take_ptr(dir->tmp));
	free(take_ptr(dir->name));
	free(take_ptr(dir->path));
}
