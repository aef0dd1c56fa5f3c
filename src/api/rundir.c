/* SPDX-License-Identifier: Apache-2.0 */
#include "api/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"

#define LOCK_NAME   "lock"
#define SOCKET_NAME "api.sock"
#define CLAIM_TRIES 100 /* against others that clean up in between */

struct rundir_claim {
	char name[VM_MAX_NAME];
	char socket[RUNDIR_MAX_PATH];
	int root_fd, dir_fd, lock_fd;
};

bool rundir_name_ok(const char *name)
{
	return !vm_config_check_name(name, NULL);
}

static int check_name(const char *name, struct err *err)
{
	int r = vm_config_check_name(name, err);

	if (r)
		err_prefix(err, "'%.80s'", name);
	return r;
}

/* ---- the folder ---- */

static bool is_folder(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

static int root_path(char *buf, size_t size, struct err *err)
{
	const char *own = getenv("QUIRE_RUNTIME_DIR");
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	unsigned int uid = geteuid();
	char run[64];
	int n;

	snprintf(run, sizeof(run), "/run/user/%u", uid);
	if (own && *own)
		n = snprintf(buf, size, "%s", own);
	else if (!uid)
		n = snprintf(buf, size, "/run/quire");
	else if (xdg && *xdg == '/')
		n = snprintf(buf, size, "%s/quire", xdg);
	else if (is_folder(run))
		n = snprintf(buf, size, "%s/quire", run);
	else
		n = snprintf(buf, size, "/tmp/quire-%u", uid);
	if ((size_t)n >= size)
		return err_set(err, ENAMETOOLONG,
			       "the runtime directory's path is too long");
	return 0;
}

static int check_root(int fd, const char *path, struct err *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return err_errno(err, errno, "%s", path);
	if (st.st_uid != geteuid() || (st.st_mode & 077))
		return err_set(err, EPERM,
			       "%s: the runtime directory has to belong to "
			       "user %u and be closed to others (mode 0700); "
			       "QUIRE_RUNTIME_DIR names another",
			       path, geteuid());
	return 0;
}

/* -ENOENT without create: there is none, so nobody has claimed anything. */
static int open_root(bool create, char *path, size_t size, int *ret_fd,
		     struct err *err)
{
	_cleanup_close_ int fd = -1;
	int r = root_path(path, size, err);

	if (r)
		return r;
	if (create && mkdir(path, 0700) && errno != EEXIST)
		return err_errno(err, errno,
				 "%s: cannot make the runtime directory", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return err_errno(err, errno,
				 "%s: cannot open the runtime directory", path);
	r = check_root(fd, path, err);
	if (!r)
		*ret_fd = take_fd(&fd);
	return r;
}

/* ---- one entry ---- */

static int open_dir(int root_fd, const char *name)
{
	int fd = openat(root_fd, name,
			O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* Was it removed between opening and locking? */
static bool is_still_there(int dir_fd, int lock_fd)
{
	struct stat mine, there;

	return !fstat(lock_fd, &mine) &&
	       !fstatat(dir_fd, LOCK_NAME, &there, AT_SYMLINK_NOFOLLOW) &&
	       mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

/* The holder of the entry, or nobody any more, does this. */
static void remove_entry(int root_fd, int dir_fd, const char *name)
{
	unlinkat(dir_fd, SOCKET_NAME, 0);
	unlinkat(dir_fd, LOCK_NAME, 0);
	unlinkat(root_fd, name, AT_REMOVEDIR);
}

static pid_t read_pid(int lock_fd)
{
	char text[32];
	long pid;

	if (io_pread_text(lock_fd, text, sizeof(text)) <= 0)
		return 0;
	pid = strtol(text, NULL, 10);
	return pid > 0 && pid <= INT_MAX ? (pid_t)pid : 0;
}

/*
 * The process that holds the entry. -ENOENT: nobody does, and it is removed;
 * what is no entry stays.
 */
static int look_at(int root_fd, const char *name, pid_t *ret_pid)
{
	_cleanup_close_ int dir_fd = open_dir(root_fd, name);
	_cleanup_close_ int lock_fd = -1;

	if (dir_fd < 0)
		return -ENOENT;
	lock_fd = openat(dir_fd, LOCK_NAME, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (lock_fd < 0) {
		/* Not quite made, or not quite removed. */
		unlinkat(root_fd, name, AT_REMOVEDIR);
		return -ENOENT;
	}
	if (!flock(lock_fd, LOCK_EX | LOCK_NB)) {
		if (is_still_there(dir_fd, lock_fd))
			remove_entry(root_fd, dir_fd, name);
		return -ENOENT;
	}
	*ret_pid = read_pid(lock_fd);
	return 0;
}

/* ---- claiming ---- */

static int refuse_taken(const struct rundir_claim *c, int lock_fd,
			struct err *err)
{
	return err_set(err, EEXIST,
		       "a VM called '%s' is running (process %d); choose "
		       "another --name, or end that one",
		       c->name, (int)read_pid(lock_fd));
}

/* -EAGAIN: somebody cleaned up under us. */
static int try_claim(struct rundir_claim *c, struct err *err)
{
	_cleanup_close_ int dir_fd = -1;
	_cleanup_close_ int lock_fd = -1;

	if (mkdirat(c->root_fd, c->name, 0700) && errno != EEXIST)
		return err_errno(err, errno, "making the entry '%s'", c->name);
	dir_fd = open_dir(c->root_fd, c->name);
	if (dir_fd < 0)
		return dir_fd == -ENOENT ? -EAGAIN
					 : err_errno(err, -dir_fd,
						     "the entry '%s'", c->name);
	lock_fd = openat(dir_fd, LOCK_NAME,
			 O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (lock_fd < 0)
		return errno == ENOENT ? -EAGAIN
				       : err_errno(err, errno,
						   "the lock of '%s'", c->name);
	if (flock(lock_fd, LOCK_EX | LOCK_NB))
		return errno == EWOULDBLOCK
			       ? refuse_taken(c, lock_fd, err)
			       : err_errno(err, errno, "locking '%s'", c->name);
	if (!is_still_there(dir_fd, lock_fd))
		return -EAGAIN;
	c->dir_fd = take_fd(&dir_fd);
	c->lock_fd = take_fd(&lock_fd);
	return 0;
}

static int write_pid(struct rundir_claim *c, struct err *err)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid()), r;

	if (ftruncate(c->lock_fd, 0))
		return err_errno(err, errno, "the lock of '%s'", c->name);
	r = io_pwrite_full(c->lock_fd, text, (size_t)n, 0);
	if (r)
		return err_errno(err, -r, "the lock of '%s'", c->name);
	/* Of a predecessor that was killed. */
	unlinkat(c->dir_fd, SOCKET_NAME, 0);
	return 0;
}

static int claim(struct rundir_claim *c, struct err *err)
{
	char root[PATH_MAX];
	int r = open_root(true, root, sizeof(root), &c->root_fd, err);

	if (r)
		return r;
	if (snprintf(c->socket, sizeof(c->socket), "%s/%s/" SOCKET_NAME, root,
		     c->name) >= (int)sizeof(c->socket))
		return err_set(err, ENAMETOOLONG,
			       "%s/%s/" SOCKET_NAME ": too long for a socket",
			       root, c->name);
	r = -EAGAIN;
	for (int i = 0; r == -EAGAIN && i < CLAIM_TRIES; i++)
		r = try_claim(c, err);
	if (r == -EAGAIN)
		return err_set(err, EBUSY, "the entry '%s' comes and goes",
			       c->name);
	return r ? r : write_pid(c, err);
}

int rundir_claim(struct rundir_claim **ret, const char *name, struct err *err)
{
	struct rundir_claim *c;
	int r = name ? check_name(name, err) : 0;

	if (r)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_set(err, ENOMEM, "out of memory");
	c->root_fd = c->dir_fd = c->lock_fd = -1;
	if (name)
		snprintf(c->name, sizeof(c->name), "%s", name);
	else
		snprintf(c->name, sizeof(c->name), "vm-%d", (int)getpid());
	r = claim(c, err);
	if (r)
		rundir_release(c);
	else
		*ret = c;
	return r;
}

const char *rundir_claim_socket(const struct rundir_claim *c)
{
	return c->socket;
}

const char *rundir_claim_name(const struct rundir_claim *c)
{
	return c->name;
}

/* The folder of path without links in it; the socket need not be there yet. */
static char *whole_path(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *folder, *real, *whole = NULL;

	folder = slash ? strndup(path, (size_t)(slash - path) + 1)
		       : strdup(".");
	real = folder ? realpath(folder, NULL) : NULL;
	if (real &&
	    asprintf(&whole, "%s/%s", real, slash ? slash + 1 : path) < 0)
		whole = NULL;
	free(real);
	free(folder);
	return whole;
}

int rundir_claim_link(struct rundir_claim *c, const char *path, struct err *err)
{
	char *whole = whole_path(path);
	int r = 0;

	if (!whole || symlinkat(whole, c->dir_fd, SOCKET_NAME))
		r = err_errno(err, errno, "linking to it from %s", c->socket);
	free(whole);
	return r;
}

void rundir_release(struct rundir_claim *c)
{
	if (!c)
		return;
	/* Still locked: nobody takes it in between. */
	if (c->lock_fd >= 0)
		remove_entry(c->root_fd, c->dir_fd, c->name);
	close_fd(&c->lock_fd);
	close_fd(&c->dir_fd);
	close_fd(&c->root_fd);
	free(c);
}

/* ---- finding ---- */

static int compare(const void *a, const void *b)
{
	const struct rundir_entry *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static int add_entry(struct rundir_entry **list, size_t *num,
		     const struct rundir_entry *e)
{
	struct rundir_entry *more = realloc(*list, (*num + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	more[(*num)++] = *e;
	*list = more;
	return 0;
}

static int read_root(int root_fd, const char *root, DIR *dir,
		     struct rundir_entry **list, size_t *num)
{
	const struct dirent *d;
	int r = 0;

	/* glibc deprecates readdir_r(); this stream is ours alone. */
	/* cppcheck-suppress readdirCalled */
	while (!r && (d = readdir(dir))) {
		struct rundir_entry e = { .pid = 0 };

		if (!rundir_name_ok(d->d_name) ||
		    look_at(root_fd, d->d_name, &e.pid))
			continue;
		snprintf(e.name, sizeof(e.name), "%.63s", d->d_name);
		if (snprintf(e.socket, sizeof(e.socket), "%s/%s/" SOCKET_NAME,
			     root, e.name) < (int)sizeof(e.socket))
			r = add_entry(list, num, &e);
	}
	return r;
}

int rundir_list(struct rundir_entry **ret, size_t *ret_num, struct err *err)
{
	struct rundir_entry *list = NULL;
	_cleanup_close_ int root_fd = -1;
	char root[PATH_MAX];
	size_t num = 0;
	DIR *dir;
	int r = open_root(false, root, sizeof(root), &root_fd, err);

	if (!r) {
		int fd = dup(root_fd);

		dir = fd < 0 ? NULL : fdopendir(fd);
		if (!dir) {
			close_fd(&fd);
			return err_errno(err, errno ? errno : EIO, "%s", root);
		}
		r = read_root(root_fd, root, dir, &list, &num);
		closedir(dir);
	} else if (r == -ENOENT) {
		r = 0;
	}
	if (r) {
		free(list);
		return err && err->text[0] ? r : err_errno(err, -r, "%s", root);
	}
	if (num)
		qsort(list, num, sizeof(*list), compare);
	*ret = list;
	*ret_num = num;
	return 0;
}

static int refuse_missing(const char *name, const struct rundir_entry *list,
			  size_t num, struct err *err)
{
	char names[300];
	size_t used = 0;

	if (!num)
		return err_set(err, ENOENT,
			       "no VM is called '%s'; none is running", name);
	names[0] = '\0';
	for (size_t i = 0; i < num && used < sizeof(names) - 80; i++)
		used += (size_t)snprintf(names + used, sizeof(names) - used,
					 "%s%s", i ? ", " : "", list[i].name);
	return err_set(err, ENOENT, "no VM is called '%s'; running: %s%s", name,
		       names, used < sizeof(names) - 80 ? "" : ", ...");
}

int rundir_find(const char *name, struct rundir_entry *ret, struct err *err)
{
	struct rundir_entry *list = NULL;
	size_t num = 0;
	int r = check_name(name, err);

	if (!r)
		r = rundir_list(&list, &num, err);
	if (r)
		return r;
	r = -ENOENT;
	for (size_t i = 0; r && i < num; i++) {
		if (!strcmp(list[i].name, name)) {
			*ret = list[i];
			r = 0;
		}
	}
	if (r)
		r = refuse_missing(name, list, num, err);
	free(list);
	return r;
}
