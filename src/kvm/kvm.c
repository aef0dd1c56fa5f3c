/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"

#define KVM_API_STABLE 12 /* api.rst section 4.1: fixed since 2.6.22 */

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int r;

	do
		r = ioctl(fd, request, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

int kvm_ioctl_val(int fd, unsigned long request, unsigned long arg)
{
	return kvm_ioctl(fd, request, (void *)arg);
}

static int open_error(int code, const char *path, struct err *err)
{
	switch (code) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return err_set(err, code,
			       "%s: no KVM on this host; load the module "
			       "(modprobe kvm_intel or kvm_amd) and enable "
			       "virtualization in the firmware, or use lab/run",
			       path);
	case EACCES:
	case EPERM:
		return err_set(err, code,
			       "%s: permission denied; add yourself to group "
			       "kvm or run as root",
			       path);
	default:
		return err_errno(err, code, "%s: cannot open", path);
	}
}

int kvm_open(struct kvm *kvm, const char *path, struct err *err)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
	int version, bytes;

	if (fd < 0)
		return open_error(errno, path, err);
	version = kvm_ioctl_val(fd, KVM_GET_API_VERSION, 0);
	if (version < 0)
		return err_errno(err, -version, "%s: not a KVM device", path);
	if (version != KVM_API_STABLE)
		return err_set(err, ENOTSUP, "%s: API version %d, need %d",
			       path, version, KVM_API_STABLE);
	bytes = kvm_ioctl_val(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (bytes < 0)
		return err_errno(err, -bytes, "%s: KVM_GET_VCPU_MMAP_SIZE",
				 path);
	kvm->fd = take_fd(&fd);
	kvm->vcpu_mmap_bytes = bytes;
	return 0;
}

void kvm_close(struct kvm *kvm)
{
	close_fd(&kvm->fd);
}

int kvm_cap(int fd, unsigned int cap)
{
	int r = kvm_ioctl_val(fd, KVM_CHECK_EXTENSION, cap);

	return r < 0 ? 0 : r;
}

/* api.rst 4.4: what to assume where a capability is not there. */
unsigned int kvm_max_vcpus(const struct kvm *kvm)
{
	int max = kvm_cap(kvm->fd, KVM_CAP_MAX_VCPUS);

	if (max <= 0)
		max = kvm_cap(kvm->fd, KVM_CAP_NR_VCPUS);
	return max > 0 ? (unsigned int)max : 4;
}

int kvm_vm_create(struct kvm_vm *vm, const struct kvm *kvm, struct err *err)
{
	int fd = kvm_ioctl_val(kvm->fd, KVM_CREATE_VM, 0);

	if (fd < 0)
		return err_errno(err, -fd, "KVM_CREATE_VM");
	vm->kvm = kvm;
	vm->fd = fd;
	return 0;
}

void kvm_vm_close(struct kvm_vm *vm)
{
	close_fd(&vm->fd);
}

/* api.rst 4.40, 4.41. */
int kvm_vm_place_pages(const struct kvm_vm *vm, uint64_t identity, uint64_t tss,
		       struct err *err)
{
	int r;

	if (kvm_cap(vm->fd, KVM_CAP_SET_IDENTITY_MAP_ADDR)) {
		r = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
		if (r < 0)
			return err_errno(err, -r, "KVM_SET_IDENTITY_MAP_ADDR");
	}
	if (kvm_cap(vm->fd, KVM_CAP_SET_TSS_ADDR)) {
		r = kvm_ioctl_val(vm->fd, KVM_SET_TSS_ADDR, tss);
		if (r < 0)
			return err_errno(err, -r, "KVM_SET_TSS_ADDR");
	}
	return 0;
}

int kvm_vm_enable_cap(const struct kvm_vm *vm, unsigned int cap, uint64_t arg0,
		      uint64_t arg1)
{
	struct kvm_enable_cap enable = {
		.cap = cap,
		.args = { arg0, arg1 },
	};

	return kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &enable);
}

int kvm_vm_get_clock(const struct kvm_vm *vm, uint64_t *ret_ns)
{
	struct kvm_clock_data data = { .clock = 0 };
	int r = kvm_ioctl(vm->fd, KVM_GET_CLOCK, &data);

	if (r >= 0)
		*ret_ns = data.clock;
	return r;
}

int kvm_vm_set_clock(const struct kvm_vm *vm, uint64_t ns)
{
	struct kvm_clock_data data = { .clock = ns };

	return kvm_ioctl(vm->fd, KVM_SET_CLOCK, &data);
}

int kvm_vm_set_slot(const struct kvm_vm *vm, unsigned int slot, uint64_t gpa,
		    uint64_t size, void *hva, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};

	return kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

int kvm_vm_ioeventfd(const struct kvm_vm *vm, uint64_t addr, uint32_t len,
		     bool pio, int fd, bool assign)
{
	struct kvm_ioeventfd ioev = {
		.addr = addr,
		.len = len,
		.fd = fd,
		.flags = (pio ? KVM_IOEVENTFD_FLAG_PIO : 0u) |
			 (assign ? 0u : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};

	return kvm_ioctl(vm->fd, KVM_IOEVENTFD, &ioev);
}
