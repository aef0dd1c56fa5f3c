/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. Sources are opened with O_PATH inside the new mount
 * namespace, by the new user, before the tmpfs that becomes the root is
 * mounted: so it may hide any of them. Each is bound to its old name below the
 * tmpfs, which is then pivoted to, made read-only, and the old root let go.
 *
 * There is no process namespace: it would take a fork, and what it is good for
 * is achieved otherwise. The processes of others are in no /proc of ours and of
 * another user, and no thread's filter lets it signal, trace or create any.
 */
#include "sandbox/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "sandbox/privileges.h"

#define NOBODY	     65534
#define DEFAULT_ROOT "/tmp"
#define PROC_SELF    "/proc/self"
#define KVM_DEVICE   "/dev/kvm"

#define NAMESPACES                                                   \
	(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | \
	 CLONE_NEWUTS)

struct source {
	char name[PATH_MAX]; /* absolute, in the jail */
	unsigned int access;
	int fd; /* O_PATH */
	bool is_dir;
};

struct jail {
	const char *root; /* where the tmpfs is mounted */
	struct source *sources;
	size_t num;
	char cwd[PATH_MAX];
};

/* ---- the user ---- */

/* The group that may use KVM stays with us; all others go. */
static size_t groups_to_keep(gid_t groups[1])
{
	struct stat st;

	if (stat(KVM_DEVICE, &st) || !st.st_gid)
		return 0;
	groups[0] = st.st_gid;
	return 1;
}

static int become_user(uid_t uid, gid_t gid, struct err *err)
{
	gid_t groups[1];
	int r;

	if (setgroups(groups_to_keep(groups), groups))
		return err_errno(err, errno, "--jail: setgroups");
	/* Where only root may make user namespaces, be root for that. */
	prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return err_errno(err, errno, "--jail: becoming uid %u, gid %u",
				 uid, gid);
	r = sandbox_raise_capabilities();
	return r ? err_errno(err, -r, "--jail: capabilities") : 0;
}

static int choose_user(const struct sandbox_config *cfg, struct err *err)
{
	uid_t uid = cfg->has_uid ? cfg->uid : NOBODY;
	gid_t gid = cfg->has_gid ? cfg->gid : cfg->has_uid ? cfg->uid : NOBODY;

	if (!geteuid())
		return become_user(uid, gid, err);
	if ((cfg->has_uid && uid != geteuid()) ||
	    (cfg->has_gid && gid != getegid()))
		return err_set(err, EPERM,
			       "--jail uid=,gid=: only root can become another "
			       "user; leave them out to stay uid %u, gid %u",
			       geteuid(), getegid());
	return 0;
}

/* ---- namespaces ---- */

static int write_file(const char *path, const char *text, struct err *err)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	int r = fd < 0 ? -errno : io_write_full(fd, text, strlen(text));

	return r ? err_errno(err, -r, "--jail: %s", path) : 0;
}

/* The one user and group we are, under the same numbers. */
static int map_user(uid_t uid, gid_t gid, struct err *err)
{
	char text[64];
	int r = write_file("/proc/self/setgroups", "deny", err);

	if (r)
		return r;
	snprintf(text, sizeof(text), "%u %u 1", gid, gid);
	r = write_file("/proc/self/gid_map", text, err);
	if (r)
		return r;
	snprintf(text, sizeof(text), "%u %u 1", uid, uid);
	return write_file("/proc/self/uid_map", text, err);
}

static int enter_namespaces(struct err *err)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();

	/* A change of user took our own files in /proc from us. */
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	if (unshare(NAMESPACES))
		return err_errno(
			err, errno,
			"--jail: this host lets us make no user namespace (see "
			"sysctl user.max_user_namespaces, kernel."
			"unprivileged_userns_clone, kernel.apparmor_restrict_"
			"unprivileged_userns); allow it, start quire as root, "
			"or run without --jail");
	return map_user(uid, gid, err);
}

/* ---- what goes in ---- */

/*
 * The name as it will be used, made absolute: a symbolic link on the way is not
 * in the jail. With ".." in it, the true one.
 */
static int name_source(const struct jail *jail, const char *path,
		       struct source *ret)
{
	bool dots = strstr(path, "..") != NULL;
	int n;

	if (dots)
		return realpath(path, ret->name) ? 0 : -errno;
	if (path[0] == '/')
		n = snprintf(ret->name, sizeof(ret->name), "%s", path);
	else
		n = snprintf(ret->name, sizeof(ret->name), "%s/%s", jail->cwd,
			     strcmp(path, ".") ? path : "");
	while (n > 1 && n < PATH_MAX && ret->name[n - 1] == '/')
		ret->name[--n] = '\0';
	return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

/* Of /proc the process's own directory, under its number. */
static bool is_proc_self(const char *path)
{
	return !strcmp(path, PROC_SELF);
}

static int add_source(struct jail *jail, const struct sandbox_path *path,
		      struct err *err)
{
	struct source *s = &jail->sources[jail->num];
	struct stat st;
	int r;

	if (path->access == SANDBOX_REMOVE)
		return 0;
	if (is_proc_self(path->path)) {
		snprintf(s->name, sizeof(s->name), "/proc/%d", getpid());
		r = 0;
	} else {
		r = name_source(jail, path->path, s);
	}
	s->fd = r ? -1 : open(s->name, O_PATH | O_CLOEXEC);
	if (!r && s->fd < 0)
		r = -errno;
	if (r && path->optional)
		return 0;
	if (r || fstat(s->fd, &st))
		return err_errno(err, r ? -r : errno, "--jail: %s", path->path);
	s->access = path->access;
	s->is_dir = S_ISDIR(st.st_mode);
	jail->num++;
	return 0;
}

/* Parents before what is in them. */
static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct source *)a)->name,
		      ((const struct source *)b)->name);
}

static int open_sources(struct jail *jail, const struct sandbox_paths *paths,
			struct err *err)
{
	int r = 0;

	jail->sources = calloc(paths->num + 1, sizeof(*jail->sources));
	if (!jail->sources)
		return err_set(err, ENOMEM, "--jail: out of memory");
	if (!getcwd(jail->cwd, sizeof(jail->cwd)))
		return err_errno(err, errno, "--jail: current directory");
	for (size_t i = 0; !r && i < paths->num; i++)
		r = add_source(jail, &paths->list[i], err);
	qsort(jail->sources, jail->num, sizeof(*jail->sources), by_name);
	return r;
}

/* ---- the new root ---- */

/* Directories down to path, that one included or not. */
static int make_dirs(const char *path, size_t from, bool last)
{
	char part[2 * PATH_MAX];
	size_t len = strlen(path);

	for (size_t i = from + 1; i <= len; i++) {
		if (path[i] && path[i] != '/')
			continue;
		if (!path[i] && !last)
			break;
		snprintf(part, sizeof(part), "%.*s", (int)i, path);
		if (mkdir(part, 0755) && errno != EEXIST)
			return -errno;
	}
	return 0;
}

static int make_target(const char *path, size_t from, bool is_dir)
{
	int fd, r = make_dirs(path, from, is_dir);

	if (r || is_dir)
		return r;
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) /* it may be there, inside of an earlier one */
		return access(path, F_OK) ? -errno : 0;
	close(fd);
	return 0;
}

static int restrict_mount(const char *path, unsigned int access)
{
	struct mount_attr attr = {
		.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
	};

	if (!(access & (SANDBOX_WRITE | SANDBOX_MAKE | SANDBOX_RMDIR)))
		attr.attr_set |= MOUNT_ATTR_RDONLY;
	return mount_setattr(AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof(attr))
		       ? -errno
		       : 0;
}

static int bind_source(const struct jail *jail, const struct source *s,
		       struct err *err)
{
	char target[2 * PATH_MAX], from[32];
	int r;

	snprintf(target, sizeof(target), "%s%s", jail->root, s->name);
	snprintf(from, sizeof(from), "/proc/self/fd/%d", s->fd);
	r = make_target(target, strlen(jail->root), s->is_dir);
	if (!r && mount(from, target, NULL, MS_BIND | MS_REC, NULL))
		r = -errno;
	if (!r)
		r = restrict_mount(target, s->access);
	return r ? err_errno(err, -r, "--jail: putting %s into it", s->name)
		 : 0;
}

static int make_root(struct jail *jail, struct err *err)
{
	char path[2 * PATH_MAX], pid[16];
	int r = 0;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("quire-jail", jail->root, "tmpfs", MS_NOSUID | MS_NODEV,
		  "mode=0755,size=64k"))
		return err_errno(err, errno, "--jail: mounting its root on %s",
				 jail->root);
	for (size_t i = 0; !r && i < jail->num; i++)
		r = bind_source(jail, &jail->sources[i], err);
	if (r)
		return r;
	snprintf(path, sizeof(path), "%s%s", jail->root, PROC_SELF);
	snprintf(pid, sizeof(pid), "%d", getpid());
	r = make_dirs(path, strlen(jail->root), false);
	if (!r && symlink(pid, path))
		r = -errno;
	if (!r) {
		snprintf(path, sizeof(path), "%s%s", jail->root, jail->cwd);
		r = make_dirs(path, strlen(jail->root), true);
	}
	return r ? err_errno(err, -r, "--jail: %s", path) : 0;
}

static int change_root(const struct jail *jail, struct err *err)
{
	if (chdir(jail->root) || syscall(SYS_pivot_root, ".", ".") ||
	    umount2(".", MNT_DETACH) || chdir("/"))
		return err_errno(err, errno, "--jail: changing to its root");
	if (mount(NULL, "/", NULL,
		  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV |
			  MS_NOEXEC,
		  NULL))
		return err_errno(err, errno, "--jail: its root read-only");
	if (chdir(jail->cwd))
		return err_errno(err, errno, "--jail: %s", jail->cwd);
	return 0;
}

int sandbox_jail_enter(const struct sandbox_config *cfg,
		       const struct sandbox_paths *paths, struct err *err)
{
	struct jail jail = {
		.root = cfg->chroot ? cfg->chroot : DEFAULT_ROOT,
	};
	int r = choose_user(cfg, err);

	if (!r)
		r = enter_namespaces(err);
	if (!r)
		r = open_sources(&jail, paths, err);
	if (!r)
		r = make_root(&jail, err);
	if (!r)
		r = change_root(&jail, err);
	for (size_t i = 0; i < jail.num; i++)
		close_fd(&jail.sources[i].fd);
	free(jail.sources);
	return r;
}
