/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls of the control thread: the event loop, and all it takes to
 * build a machine, for a reboot builds a new one in the same process. That is
 * much; what it lacks is to start a program or a process, to signal, trace or
 * look into others, to become another user, to mount, to load code, to make an
 * IP or packet socket. Which files it opens is Landlock's matter. What only
 * devices need, where they are added later, stands beside their code
 * (virtio_class.control_calls).
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "kvm/uapi.h"
#include "mem/pagemap_scan.h"
#include "vm/confine.h"

/* All of KVM: system, VM and vCPUs; an ioctl's number has the driver's in it.
 */
#define KVM_IOCTLS CALL_MASK(ioctl, 1, 0xff00, KVMIO << 8, "KVM_*")

#define PAGING	"a restored VM whose memory comes later"
#define CHARDEV "a serial port or console on a file, socket or terminal"

static const struct thread_call calls[] = {
	/* The event loop and its timers. */
	CALL(epoll_wait),
	CALL(epoll_ctl),
	CALL(eventfd2),
	CALL(timerfd_create),
	CALL(timerfd_settime),
	CALL(poll),

	/* Building and taking down a machine. */
	KVM_IOCTLS,
	CALL(openat),
	CALL(close),
	CALL(newfstatat),
	CALL(access),
	CALL(pread64),
	CALL_FCNTL(F_DUPFD_CLOEXEC),
	CALL(membarrier),
	CALL(sched_getaffinity),
	CALL(getrandom),
	RARE("a newer C library", fstat),
	RARE("a file of /proc is not read to its end", lseek),
	RARE("a worker, disk or passt is waited for", clock_nanosleep),
	/* stage2/trial.c: what this KVM does is tried, with a deadline. */
	RARE("populate, and no KVM_PRE_FAULT_MEMORY", timer_create),
	RARE("populate, and no KVM_PRE_FAULT_MEMORY", timer_settime),
	RARE("populate, and no KVM_PRE_FAULT_MEMORY", timer_delete),
	RARE("populate, and no KVM_PRE_FAULT_MEMORY", rt_sigtimedwait),
	RARE("--memory shared=on", memfd_create),
	RARE_FCNTL("--memory shared=on", F_ADD_SEALS),
	RARE("--memory shared=on, output to a file", ftruncate),
	RARE("--memory numa", mbind),
	RARE("--memory numa", get_mempolicy),
	RARE("--memory numa", sched_setaffinity),
	RARE("--memory numa", getdents64),

	/* The pager: its descriptors were asked for before. */
	RARE("--vsock; --console; " PAGING, epoll_create1),
	RARE_IOCTL(PAGING, USERFAULTFD_IOC_NEW),
	RARE_IOCTL(PAGING, UFFDIO_API),
	RARE_IOCTL(PAGING, UFFDIO_REGISTER),
	RARE_IOCTL(PAGING, UFFDIO_UNREGISTER),
	RARE_IOCTL(PAGING ", after a failure", UFFDIO_WAKE),
	RARE("vm.receive-migration, mode local", fstatfs),
	RARE_FCNTL("vm.receive-migration, mode local", F_GET_SEALS),
	RARE_FCNTL("vm.send-migration or vm.receive-migration", F_GETSIG),
	RARE_FCNTL("vm.receive-migration, mode local", F_SETSIG),
	RARE_IOCTL("vm.snapshot with live", UFFDIO_WRITEPROTECT),
	RARE_IOCTL("vm.snapshot with live", PAGEMAP_SCAN_IOCTL),

	/* Where consoles of any kind lead to. */
	RARE_FCNTL(CHARDEV, F_GETFD),
	RARE_FCNTL(CHARDEV, F_GETFL),
	RARE_FCNTL(CHARDEV, F_SETFL),
	RARE_IOCTL(CHARDEV, TCGETS),
	RARE_ARG(CHARDEV, socket, 0, AF_UNIX),
	RARE(CHARDEV, bind),
	RARE(CHARDEV, fchmod),
	RARE(CHARDEV, listen),
	RARE(CHARDEV, accept4),
	RARE(CHARDEV, connect),
	RARE(CHARDEV, shutdown),

	/* The end: sockets, the entry of quire ps, the summary. */
	CALL(unlink),
	CALL(unlinkat),
	RARE("--summary-json", rename),
};

const struct thread_class vm_control_class = {
	.name = "control",
	.what = "the event loop; builds machines, opens files",
	THREAD_CALLS(calls),
};
