/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"

#define DEVICE "/dev/userfaultfd"

static int from_device(int device)
{
	return ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

static int from_call(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

/* The call failed with code, the device with device_code. */
static int say_none(int code, int device_code, struct err *err)
{
	if (code == ENOSYS)
		return err_set(err, ENOTSUP,
			       "this kernel has no userfaultfd: memory can be "
			       "restored eagerly or privately only");
	return err_set(err, code,
		       "userfaultfd: %s (" DEVICE
		       ": %s); grant read and write on " DEVICE
		       ", or CAP_SYS_PTRACE, or set "
		       "vm.unprivileged_userfaultfd=1",
		       strerror(code), strerror(device_code));
}

int uffd_opener_init(struct uffd_opener *o, struct err *err)
{
	int code = 0;

	*o = (struct uffd_opener){
		.device = open(DEVICE, O_RDWR | O_CLOEXEC),
	};
	if (o->device >= 0)
		return 0;
	code = errno;
	while (o->num_spares < UFFD_SPARES) {
		int fd = from_call();

		if (fd < 0) {
			int r = say_none(errno, code, err);

			uffd_opener_fini(o);
			return r;
		}
		o->spares[o->num_spares++] = fd;
	}
	return 0;
}

void uffd_opener_fini(struct uffd_opener *o)
{
	close_fd(&o->device);
	while (o->num_spares)
		close_fd(&o->spares[--o->num_spares]);
}

static int open_any(struct err *err)
{
	_cleanup_close_ int device = open(DEVICE, O_RDWR | O_CLOEXEC);
	int device_code = errno, fd = -1;

	if (device >= 0) {
		fd = from_device(device);
		device_code = errno;
	}
	if (fd < 0)
		fd = from_call();
	return fd >= 0 ? fd : say_none(errno, device_code, err);
}

static int open_kept(struct uffd_opener *o, struct err *err)
{
	int fd;

	if (o->device < 0 && o->num_spares)
		return o->spares[--o->num_spares];
	if (o->device < 0)
		return err_set(err, EMFILE,
			       "this process has no userfaultfd left, and the "
			       "host has no " DEVICE
			       ": memory can be restored privately or eagerly, "
			       "or by a quire of its own");
	fd = from_device(o->device);
	return fd >= 0 ? fd : err_errno(err, errno, DEVICE);
}

int uffd_open(struct uffd_opener *opener, bool shmem, bool hugetlb,
	      struct err *err)
{
	_cleanup_close_ int fd = opener ? open_kept(opener, err)
					: open_any(err);
	struct uffdio_api api = { .api = UFFD_API };

	if (fd < 0)
		return fd;
	if (shmem)
		api.features |= UFFD_FEATURE_MISSING_SHMEM;
	if (hugetlb)
		api.features |= UFFD_FEATURE_MISSING_HUGETLBFS;
	if (ioctl(fd, UFFDIO_API, &api))
		return err_set(err, ENOTSUP,
			       "this kernel's userfaultfd cannot serve %s "
			       "memory: %s",
			       hugetlb ? "hugetlb"
			       : shmem ? "shared"
				       : "private",
			       strerror(errno));
	return take_fd(&fd);
}

static bool takes_features(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return !ioctl(fd, UFFDIO_API, &api);
}

int uffd_open_protecting(struct uffd_opener *opener, bool *ret_all,
			 struct err *err)
{
	const uint64_t private = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	_cleanup_close_ int fd = opener ? open_kept(opener, err)
					: open_any(err);

	if (fd < 0)
		return fd;
	*ret_all = takes_features(fd,
				  private | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	/* One that refused may be asked again. */
	if (!*ret_all && !takes_features(fd, private))
		return err_set(err, ENOTSUP,
			       "this kernel's userfaultfd cannot protect "
			       "memory from being written (Linux 5.7 can)");
	return take_fd(&fd);
}

int uffd_register_protecting(int fd, void *hva, uint64_t len)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)hva, .len = len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		return -errno;
	return (reg.ioctls & 1ull << _UFFDIO_WRITEPROTECT) ? 0 : -EINVAL;
}

int uffd_protect(int fd, void *hva, uint64_t len, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)hva, .len = len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	int r;

	/* The mapping is just being changed by somebody. */
	while ((r = ioctl(fd, UFFDIO_WRITEPROTECT, &wp)) && errno == EAGAIN)
		sched_yield();
	return r ? -errno : 0;
}

int uffd_register(int fd, void *hva, uint64_t len)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)hva, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int uffd_unregister(int fd, void *hva, uint64_t len)
{
	struct uffdio_range range = { .start = (uintptr_t)hva, .len = len };

	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int uffd_next(int fd, struct uffd_fault *ret)
{
	struct uffd_msg msg;
	ssize_t n;

	do
		n = read(fd, &msg, sizeof(msg));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	/* No other event was asked for. */
	if (n != (ssize_t)sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
		return -EPROTO;
	*ret = (struct uffd_fault){
		.address = msg.arg.pagefault.address,
		.write = msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
	};
	return 1;
}

/*
 * What one call did of the rest: bytes done, or a negative errno. A call that
 * ends early says EAGAIN and how far it came; why it ended, the next one says.
 */
static int64_t copy_some(int fd, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_copy copy = { .dst = dst, .src = src, .len = len };

	if (!ioctl(fd, UFFDIO_COPY, &copy))
		return (int64_t)len;
	return copy.copy ? copy.copy : -errno;
}

static int64_t zero_some(int fd, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_zeropage zero = { .range = { .start = dst, .len = len } };

	if (!ioctl(fd, UFFDIO_ZEROPAGE, &zero))
		return (int64_t)len;
	return zero.zeropage ? zero.zeropage : -errno;
}

static int64_t fill(int fd, uint64_t dst, uint64_t src, uint64_t len,
		    uint64_t page,
		    int64_t (*some)(int, uint64_t, uint64_t, uint64_t))
{
	int64_t installed = 0;

	while (len) {
		int64_t n = some(fd, dst, src, len);

		/* The mapping is just being changed by somebody. */
		if (n == -EAGAIN) {
			sched_yield();
			continue;
		}
		if (n == -ENOENT && installed)
			return installed; /* it left after these */
		if (n < 0 && n != -EEXIST)
			return n;
		if (n < 0)
			n = (int64_t)page;
		else
			installed += n;
		dst += (uint64_t)n;
		src += (uint64_t)n;
		len -= MIN(len, (uint64_t)n);
	}
	return installed;
}

int64_t uffd_copy(int fd, void *dst, const void *src, uint64_t len,
		  uint64_t page)
{
	return fill(fd, (uintptr_t)dst, (uintptr_t)src, len, page, copy_some);
}

int64_t uffd_zero(int fd, void *dst, uint64_t len)
{
	return fill(fd, (uintptr_t)dst, 0, len, PAGE_4K, zero_some);
}

void uffd_wake(int fd, void *hva, uint64_t len)
{
	struct uffdio_range range = { .start = (uintptr_t)hva, .len = len };

	/* Fails only where nothing is registered, and so nobody waits. */
	(void)!ioctl(fd, UFFDIO_WAKE, &range);
}
