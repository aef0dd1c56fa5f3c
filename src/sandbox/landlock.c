/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

/*
 * The kernel's interface in our own words: the headers of Debian 12 stop at
 * ABI 2. Numbers of rights are bits, in the order in which they came.
 */
#define FS_EXECUTE     (1ull << 0)
#define FS_WRITE_FILE  (1ull << 1)
#define FS_READ_FILE   (1ull << 2)
#define FS_READ_DIR    (1ull << 3)
#define FS_REMOVE_DIR  (1ull << 4)
#define FS_REMOVE_FILE (1ull << 5)
#define FS_MAKE_CHAR   (1ull << 6)
#define FS_MAKE_DIR    (1ull << 7)
#define FS_MAKE_REG    (1ull << 8)
#define FS_MAKE_SOCK   (1ull << 9)
#define FS_MAKE_SYM    (1ull << 12)
#define FS_ALL_1       ((1ull << 13) - 1)
#define FS_REFER       (1ull << 13) /* ABI 2 */
#define FS_TRUNCATE    (1ull << 14) /* ABI 3 */
#define FS_IOCTL_DEV   (1ull << 15) /* ABI 5 */

#define NET_BIND_TCP	1ull /* ABI 4 */
#define NET_CONNECT_TCP 2ull

#define SCOPE_ABSTRACT_SOCKETS 1ull /* ABI 6 */

#define CREATE_VERSION 1u
#define RULE_PATH      1
#define FS_OF_A_FILE \
	(FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV)

struct ruleset_attr {
	uint64_t handled_fs, handled_net, scoped;
};

struct path_rule {
	uint64_t allowed;
	int32_t parent_fd;
} __packed_struct;

int sandbox_landlock_abi(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0,
			   CREATE_VERSION);

	return abi < 0 ? -errno : (int)abi;
}

/* The size grew with the ABI; an older kernel refuses a larger one. */
static size_t fill_attr(struct ruleset_attr *attr, int abi)
{
	*attr = (struct ruleset_attr){ .handled_fs = FS_ALL_1 };
	if (abi >= 2)
		attr->handled_fs |= FS_REFER;
	if (abi >= 3)
		attr->handled_fs |= FS_TRUNCATE;
	if (abi >= 4)
		attr->handled_net = NET_BIND_TCP | NET_CONNECT_TCP;
	if (abi >= 5)
		attr->handled_fs |= FS_IOCTL_DEV;
	if (abi < 4)
		return sizeof(uint64_t);
	if (abi < 6)
		return 2 * sizeof(uint64_t);
	/*
	 * Not signals: virtiofsd, which was there before, is to die with us
	 * (PR_SET_PDEATHSIG is a signal of ours). Those are the filters'
	 * matter.
	 */
	attr->scoped = SCOPE_ABSTRACT_SOCKETS;
	return sizeof(*attr);
}

static uint64_t rights(unsigned int access)
{
	uint64_t r = 0;

	if (access & SANDBOX_READ)
		r |= FS_READ_FILE | FS_READ_DIR;
	if (access & SANDBOX_WRITE)
		r |= FS_WRITE_FILE | FS_TRUNCATE;
	if (access & SANDBOX_MAKE)
		r |= FS_MAKE_REG | FS_MAKE_SOCK | FS_REMOVE_FILE |
		     FS_WRITE_FILE | FS_TRUNCATE | FS_REFER;
	if (access & SANDBOX_REMOVE)
		r |= FS_REMOVE_FILE;
	if (access & SANDBOX_RMDIR)
		r |= FS_REMOVE_DIR;
	if (access & SANDBOX_MKDIR)
		r |= FS_MAKE_DIR;
	if (access & SANDBOX_IOCTL)
		r |= FS_IOCTL_DEV;
	return r;
}

static int add_path(int ruleset, uint64_t handled,
		    const struct sandbox_path *path, struct err *err)
{
	_cleanup_close_ int fd = open(path->path, O_PATH | O_CLOEXEC);
	struct path_rule rule = { .parent_fd = fd };
	struct stat st;

	if (fd < 0 && path->optional)
		return 0;
	if (fd < 0 || fstat(fd, &st))
		return err_errno(err, errno, "landlock: %s", path->path);
	rule.allowed = rights(path->access) & handled;
	if (!S_ISDIR(st.st_mode))
		rule.allowed &= FS_OF_A_FILE;
	if (syscall(SYS_landlock_add_rule, ruleset, RULE_PATH, &rule, 0))
		return err_errno(err, errno, "landlock: %s", path->path);
	return 0;
}

int sandbox_landlock_enter(int abi, const struct sandbox_paths *paths,
			   struct err *err)
{
	_cleanup_close_ int ruleset = -1;
	struct ruleset_attr attr;
	size_t size = fill_attr(&attr, abi);
	int r = 0;

	ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
	if (ruleset < 0)
		return err_errno(err, errno, "landlock: making a rule set");
	for (size_t i = 0; !r && i < paths->num; i++)
		r = add_path(ruleset, attr.handled_fs, &paths->list[i], err);
	if (!r && syscall(SYS_landlock_restrict_self, ruleset, 0))
		r = err_errno(err, errno, "landlock: entering");
	return r;
}
