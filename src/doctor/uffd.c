/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Probes of userfaultfd, what lazy restore, post-copy and swapping rest on.
 *
 * KVM resolves guest faults from kernel mode. A descriptor limited to user-mode
 * faults (UFFD_USER_MODE_ONLY, all an unprivileged process gets by default)
 * never sees those: the guest's access fails instead. So that one counts as
 * none.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"

/* Newer than Debian 12's headers. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* 6.4 */
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14) /* 6.6 */
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15) /* 6.7 */
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16) /* 6.8 */
#endif
#ifndef UFFD_FEATURE_RWP
#define UFFD_FEATURE_RWP (1 << 17) /* 7.3 */
#endif
#ifndef UFFD_FEATURE_RWP_ASYNC
#define UFFD_FEATURE_RWP_ASYNC (1 << 18) /* 7.3 */
#endif

#define UFFD_DEVICE_PATH "/dev/userfaultfd"

static const struct {
	uint64_t bits; /* all of them */
	const char *name;
	const char *with;
	const char *without;
} features[] = {
	{ UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS,
	  "missing, shared memory",
	  "lazy restore and post-copy for shared=on and hugetlb",
	  "no lazy restore or post-copy for shared=on and hugetlb" },
	{ UFFD_FEATURE_MINOR_SHMEM, "minor, shmem",
	  "pages received through a second mapping only have to be mapped",
	  "each page of shared memory is copied in by the fault handler" },
	{ UFFD_FEATURE_MINOR_HUGETLBFS, "minor, hugetlb",
	  "the same for hugetlb pages",
	  "each hugetlb page is copied in by the fault handler" },
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write protection",
	  "snapshots and eviction while the guest writes",
	  "memory is saved with the guest paused" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write protection, shared",
	  "the same for shared=on and hugetlb", "private memory only" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "write protection, untouched",
	  "untouched pages need no page to be protected",
	  "memory has to be populated before it can be write-protected" },
	{ UFFD_FEATURE_WP_ASYNC, "write protection, async",
	  "writes are tracked by the kernel, without a handler",
	  "each first write costs a fault message" },
	{ UFFD_FEATURE_MOVE, "move",
	  "prepared pages move in without a copy (private memory)",
	  "pages are copied in" },
	{ UFFD_FEATURE_POISON, "poison", "lost pages can be marked bad",
	  "a lost page ends the VM" },
	{ UFFD_FEATURE_SIGBUS, "sigbus",
	  "a vCPU can learn of a missing page without a message",
	  "every missing page costs a message" },
	{ UFFD_FEATURE_EXACT_ADDRESS, "exact address",
	  "faults name the address inside the page",
	  "faults name the page only, which is enough" },
	{ UFFD_FEATURE_THREAD_ID, "thread id", "faults can be counted per vCPU",
	  "faults are counted per VM" },
	{ UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC, "access protection (RWP)",
	  "working sets are measured and pages evicted in place",
	  "working sets come from other sources (DAMON, idle bits)" },
};

/* A descriptor that sees kernel-mode faults too, or -errno. */
static int open_full(const char **ret_how, int *ret_device_errno)
{
	_cleanup_close_ int device = open(UFFD_DEVICE_PATH, O_RDWR | O_CLOEXEC);
	int fd;

	*ret_device_errno = device < 0 ? errno : 0;
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		*ret_how = UFFD_DEVICE_PATH;
		if (fd >= 0)
			return fd;
		*ret_device_errno = errno;
	}
	*ret_how = "the system call";
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static bool user_mode_only_works(void)
{
	_cleanup_close_ int fd = (int)syscall(
		SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	return fd >= 0;
}

static void say_no_access(struct doctor *doc, const char *name, int code,
			  int device_code)
{
	uint64_t sysctl;

	if (code == ENOSYS && device_code == ENOENT) {
		doctor_say(doc, name, DOCTOR_MISSING,
			   "no lazy restore, post-copy or swapping",
			   "the kernel has none");
		return;
	}
	if (sysfs_read_u64(doc->env, &sysctl,
			   "/proc/sys/vm/unprivileged_userfaultfd"))
		sysctl = 0;
	doctor_say(doc, name, DOCTOR_MISSING,
		   "no lazy restore, post-copy or swapping: KVM faults from "
		   "kernel mode, so user-mode-only access is not enough. Grant "
		   "read and write on " UFFD_DEVICE_PATH
		   " (preferred), or CAP_SYS_PTRACE, or set "
		   "vm.unprivileged_userfaultfd=1",
		   "%s; " UFFD_DEVICE_PATH ": %s; system call: %s; "
		   "vm.unprivileged_userfaultfd=%llu",
		   user_mode_only_works() ? "user-mode faults only"
					  : "no access",
		   strerror(device_code), strerror(code),
		   (unsigned long long)sysctl);
}

void doctor_probe_uffd(struct doctor *doc, const struct doctor_check *check)
{
	struct uffdio_api api = { .api = UFFD_API };
	const char *how;
	int device_code;
	_cleanup_close_ int fd = open_full(&how, &device_code);

	if (fd < 0) {
		say_no_access(doc, check->name, -fd, device_code);
		return;
	}
	if (ioctl(fd, UFFDIO_API, &api)) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no lazy restore, post-copy or swapping",
			   "opened, but UFFDIO_API fails: %s", strerror(errno));
		return;
	}
	doctor_say(
		doc, check->name, DOCTOR_OK,
		"lazy restore, post-copy and swapping can serve KVM's faults",
		"kernel-mode faults too, through %s; features 0x%llx", how,
		(unsigned long long)api.features);
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		uint64_t lacking = features[i].bits & ~api.features;

		if (lacking)
			doctor_say(doc, features[i].name, DOCTOR_MISSING,
				   features[i].without,
				   "not offered (bits 0x%llx)",
				   (unsigned long long)lacking);
		else
			doctor_say(doc, features[i].name, DOCTOR_OK,
				   features[i].with, "offered");
	}
}
