/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Probes of the host around memory: processors and nodes, cgroups and pressure,
 * disk I/O and file system, sandboxing.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/numlist.h"
#include "base/size.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"

#define CPU_DIR	 "/sys/devices/system/cpu"
#define NODE_DIR "/sys/devices/system/node"

void doctor_probe_cpus(struct doctor *doc, const struct doctor_check *check)
{
	char status[8192], allowed[256], online[256];
	unsigned int num_online, num_allowed;
	uint64_t smt;

	if (sysfs_read(doc->env, online, sizeof(online), CPU_DIR "/online") < 0)
		online[0] = '\0';
	if (sysfs_read(doc->env, status, sizeof(status), "/proc/self/status") <
		    0 ||
	    sysfs_field(status, "Cpus_allowed_list:", allowed, sizeof(allowed)))
		snprintf(allowed, sizeof(allowed), "%s", online);
	if (sysfs_read_u64(doc->env, &smt, CPU_DIR "/smt/active"))
		smt = 0;
	num_online = numlist_count(online);
	num_allowed = numlist_count(allowed);
	if (num_allowed < num_online)
		doctor_say(
			doc, check->name, DOCTOR_DEGRADED,
			"guests with more vCPUs than allowed CPUs share them",
			"%u online (%s), %u allowed (%s)%s", num_online, online,
			num_allowed, allowed, smt ? ", SMT on" : "");
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "guests with more vCPUs than that share them",
			   "%u online (%s), all allowed%s", num_online, online,
			   smt ? ", SMT on" : "");
}

/* "Node 0 MemTotal:  123 kB" -> bytes. 0 when it is not there. */
static uint64_t node_bytes(const char *meminfo, unsigned int node,
			   const char *what)
{
	unsigned long long kib;
	char key[48], value[48];

	snprintf(key, sizeof(key), "Node %u %s:", node, what);
	if (sysfs_field(meminfo, key, value, sizeof(value)) ||
	    sscanf(value, "%llu", &kib) != 1)
		return 0;
	return kib * 1024;
}

void doctor_probe_numa(struct doctor *doc, const struct doctor_check *check)
{
	char online[256], meminfo[4096], fact[200] = "";
	unsigned int first, last, num;
	const char *p = online;
	size_t used = 0;

	if (sysfs_read(doc->env, online, sizeof(online), NODE_DIR "/online") <
	    0) {
		doctor_say(doc, check->name, DOCTOR_OK,
			   "memory is equally far from all CPUs",
			   "the kernel knows no nodes");
		return;
	}
	num = numlist_count(online);
	while (numlist_next(&p, &first, &last)) {
		for (unsigned int n = first; n <= last; n++) {
			char total[32], avail[32];

			if (used >= sizeof(fact) ||
			    sysfs_read(doc->env, meminfo, sizeof(meminfo),
				       NODE_DIR "/node%u/meminfo", n) < 0)
				continue;
			size_format(node_bytes(meminfo, n, "MemTotal"), total,
				    sizeof(total));
			size_format(node_bytes(meminfo, n, "MemFree"), avail,
				    sizeof(avail));
			used += (size_t)snprintf(fact + used,
						 sizeof(fact) - used,
						 "%s node%u %s (%s free)",
						 used ? "," : ":", n, total,
						 avail);
		}
	}
	doctor_say(doc, check->name, DOCTOR_OK,
		   num > 1 ? "population threads and pages belong on the node "
			     "that runs the vCPUs"
			   : "memory is equally far from all CPUs",
		   "%u%s", num, fact);
}

void doctor_probe_hypervisor(struct doctor *doc,
			     const struct doctor_check *check)
{
	uint32_t regs[4] = { 0 };
	char name[13] = "";

	__cpuid(1, regs[0], regs[1], regs[2], regs[3]);
	if (!(regs[2] >> 31)) {
		doctor_say(doc, check->name, DOCTOR_OK, "",
			   "no hypervisor below this host");
		return;
	}
	__cpuid(0x40000000, regs[0], regs[1], regs[2], regs[3]);
	memcpy(name, &regs[1], 12);
	for (char *c = name; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	doctor_say(doc, check->name, DOCTOR_DEGRADED,
		   "guests are nested: exits and second-stage faults cost "
		   "several times more than on bare metal",
		   "this host is a virtual machine (\"%s\")", name);
}

/* The controllers quire has a use for: limits, weights, placement. */
static const char *const wanted_controllers[] = { "cpu", "cpuset", "io",
						  "memory" };

/* The process's own cgroup directory; controllers is what it may use. */
static int own_cgroup(struct doctor *doc, char *ret_dir, size_t size,
		      char *ret_controllers, size_t controllers_size)
{
	char text[16384], mount[256], path[256];
	int r;

	if (sysfs_read(doc->env, text, sizeof(text), "/proc/self/mountinfo") <
	    0)
		return -ENOENT;
	r = sysfs_cgroup2_mount(text, mount, sizeof(mount));
	if (r)
		return r;
	if (sysfs_read(doc->env, text, sizeof(text), "/proc/self/cgroup") < 0 ||
	    sysfs_cgroup2_path(text, path, sizeof(path)))
		return -ENOENT;
	snprintf(ret_dir, size, "%s%s", mount, strcmp(path, "/") ? path : "");
	if (sysfs_read(doc->env, ret_controllers, controllers_size,
		       "%s/cgroup.controllers", ret_dir) < 0)
		ret_controllers[0] = '\0';
	return 0;
}

void doctor_probe_cgroup(struct doctor *doc, const struct doctor_check *check)
{
	char dir[520], controllers[256], lacking[64] = "", then[200];
	size_t used = 0, num = 0;

	if (own_cgroup(doc, dir, sizeof(dir), controllers,
		       sizeof(controllers))) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no limits, weights or accounting per VM",
			   "no cgroup2 file system is mounted");
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(wanted_controllers); i++) {
		if (sysfs_has_word(controllers, wanted_controllers[i]))
			continue;
		used += (size_t)snprintf(lacking + used, sizeof(lacking) - used,
					 "%s%s", num++ ? ", " : "",
					 wanted_controllers[i]);
	}
	if (num)
		snprintf(then, sizeof(then),
			 "per VM there is no control of: %s (held by cgroup v1 "
			 "or not delegated)",
			 lacking);
	else
		snprintf(then, sizeof(then), "%s",
			 access(dir, W_OK)
				 ? "VMs share this group's limits: it is not "
				   "writable, so no groups can be made in it"
				 : "each VM can have its own limits and "
				   "accounting");
	doctor_say(doc, check->name,
		   num == ARRAY_SIZE(wanted_controllers) ? DOCTOR_MISSING
		   : num				 ? DOCTOR_DEGRADED
							 : DOCTOR_OK,
		   then, "own group %s: %s", dir,
		   *controllers ? controllers : "no controllers");
}

void doctor_probe_psi(struct doctor *doc, const struct doctor_check *check)
{
	static const char *const kinds[] = { "memory", "io", "cpu" };
	char text[256], fact[160] = "";
	size_t used = 0;
	int found = 0;

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		double avg10;

		if (sysfs_read(doc->env, text, sizeof(text),
			       "/proc/pressure/%s", kinds[i]) < 0 ||
		    sscanf(text, "some avg10=%lf", &avg10) != 1)
			continue;
		used += (size_t)snprintf(fact + used, sizeof(fact) - used,
					 "%s%s %.2f %%", found++ ? ", " : "",
					 kinds[i], avg10);
	}
	if (found)
		doctor_say(doc, check->name,
			   found == (int)ARRAY_SIZE(kinds) ? DOCTOR_OK
							   : DOCTOR_DEGRADED,
			   "reclaim from guests can follow the host's pressure",
			   "stalled over 10 s: %s", fact);
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "memory pressure is guessed from free memory; boot "
			   "with psi=1 if the kernel has it",
			   "no /proc/pressure");
}

/* As src/block sets it up; kernels before 5.10 know no R_DISABLED. */
void doctor_probe_io_uring(struct doctor *doc, const struct doctor_check *check)
{
	const char *hint = "";
	struct io_uring ring;
	uint64_t disabled;
	char then[200];
	int r;

	r = io_uring_queue_init(8, &ring, IORING_SETUP_R_DISABLED);
	if (!r) {
		doctor_say(doc, check->name, DOCTOR_OK,
			   "disk I/O is asynchronous", "set up; features 0x%x",
			   ring.features);
		io_uring_queue_exit(&ring);
		return;
	}
	if (sysfs_read_u64(doc->env, &disabled,
			   "/proc/sys/kernel/io_uring_disabled"))
		disabled = 0;
	if (disabled)
		hint = "; set kernel.io_uring_disabled=0, or 1 with "
		       "kernel.io_uring_group";
	else if (r == -ENOMEM)
		hint = "; raise the memlock limit";
	else if (r == -EPERM)
		hint = "; a sandbox (seccomp filter) forbids it";
	snprintf(then, sizeof(then),
		 "disk requests run one after the other, which is slower%s",
		 hint);
	doctor_say(doc, check->name, DOCTOR_DEGRADED, then,
		   "set-up fails: %s; kernel.io_uring_disabled=%llu",
		   strerror(-r), (unsigned long long)disabled);
}

static const char *fs_name(const char *directory)
{
	static const struct {
		unsigned long magic;
		const char *name;
	} known[] = {
		{ 0x58465342, "xfs" },
		{ BTRFS_SUPER_MAGIC, "btrfs" },
		{ EXT4_SUPER_MAGIC, "ext4" },
		{ TMPFS_MAGIC, "tmpfs" },
		{ OVERLAYFS_SUPER_MAGIC, "overlay" },
		{ FUSE_SUPER_MAGIC, "fuse" },
		{ NFS_SUPER_MAGIC, "nfs" },
		{ 0x2fc12fc1, "zfs" },
		{ 0xca451a4e, "bcachefs" },
		{ RAMFS_MAGIC, "ramfs" },
	};
	struct statfs fs;

	if (statfs(directory, &fs))
		return "unknown file system";
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if ((unsigned long)fs.f_type == known[i].magic)
			return known[i].name;
	return "other file system";
}

/* A file without a name, so that nothing stays even after a crash. */
static int scratch_file(const char *directory)
{
	char path[PATH_MAX];
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0)
		return fd;
	if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)
		return -errno;
	if (snprintf(path, sizeof(path), "%s/.quire-doctor-XXXXXX",
		     directory) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(path);
	return fd;
}

/* 0: works; -errno of FICLONE; *ret_tried false when there were no files. */
static int try_reflink(const char *directory, bool *ret_tried)
{
	_cleanup_close_ int from = scratch_file(directory);
	_cleanup_close_ int to = from < 0 ? -1 : scratch_file(directory);
	char block[4096];
	int r;

	*ret_tried = false;
	if (from < 0 || to < 0)
		return from < 0 ? from : to;
	memset(block, 'q', sizeof(block));
	r = io_write_full(from, block, sizeof(block));
	if (r)
		return r;
	*ret_tried = true;
	return ioctl(to, FICLONE, from) ? -errno : 0;
}

void doctor_probe_reflink(struct doctor *doc, const struct doctor_check *check)
{
	const char *fs = fs_name(doc->env->directory);
	bool tried;
	int r = try_reflink(doc->env->directory, &tried);

	if (!tried)
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "run doctor in the directory that shall hold images "
			   "and snapshots",
			   "cannot be tried in this directory (%s): %s", fs,
			   strerror(-r));
	else if (r)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "clones and incremental snapshots in this directory "
			   "copy all data; use XFS (reflink=1) or btrfs",
			   "FICLONE on %s: %s", fs, strerror(-r));
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "clones and incremental snapshots share blocks",
			   "FICLONE works on %s", fs);
}

void doctor_probe_landlock(struct doctor *doc, const struct doctor_check *check)
{
	const unsigned long version_flag = 1;
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, version_flag);

	if (abi > 0)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "quire can confine itself to a VM's own files",
			   "ABI %ld", abi);
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "file access cannot be confined; seccomp and user "
			   "separation remain",
			   "%s", strerror(errno));
}

void doctor_probe_seccomp(struct doctor *doc, const struct doctor_check *check)
{
	uint32_t action = SECCOMP_RET_KILL_PROCESS;

	if (!syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action))
		doctor_say(doc, check->name, DOCTOR_OK,
			   "system calls can be confined per thread",
			   "filters, with KILL_PROCESS");
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "system calls cannot be confined", "%s",
			   strerror(errno));
}
