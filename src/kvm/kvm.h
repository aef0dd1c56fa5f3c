/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /dev/kvm and the VM descriptor: thin checked wrappers.
 *
 * A wrapper returns 0 (or a value) or a negative errno, and fills err where the
 * call is made at start-up and a person has to act on a failure. Source:
 * Documentation/virt/kvm/api.rst.
 */
#ifndef QUIRE_KVM_KVM_H
#define QUIRE_KVM_KVM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kvm/uapi.h"

/* ioctl(2) that retries EINTR and returns -errno. Not for KVM_RUN. */
int kvm_ioctl(int fd, unsigned long request, void *arg);
/* The same for requests whose argument is a number. */
int kvm_ioctl_val(int fd, unsigned long request, unsigned long arg);

#define KVM_DEVICE_PATH "/dev/kvm"

struct kvm {
	int fd;
	int vcpu_mmap_bytes;
};

/* Open path (normally KVM_DEVICE_PATH), check the API version. */
__must_check int kvm_open(struct kvm *kvm, const char *path, struct err *err);
void kvm_close(struct kvm *kvm);

/* KVM_CHECK_EXTENSION on the system or a VM fd; errors count as 0. */
int kvm_cap(int fd, unsigned int cap);

/* How many vCPUs a VM may have; at least 1. */
unsigned int kvm_max_vcpus(const struct kvm *kvm);

struct kvm_vm {
	const struct kvm *kvm;
	int fd;
};

__must_check int kvm_vm_create(struct kvm_vm *vm, const struct kvm *kvm,
			       struct err *err);
void kvm_vm_close(struct kvm_vm *vm);

/*
 * Tell KVM where in guest space to keep the identity map (one page) and the TSS
 * (three) that Intel processors without unrestricted guest need; no RAM may be
 * there. Before the first vCPU. Elsewhere it does nothing.
 */
__must_check int kvm_vm_place_pages(const struct kvm_vm *vm, uint64_t identity,
				    uint64_t tss, struct err *err);

/* KVM_ENABLE_CAP with up to two arguments. */
__must_check int kvm_vm_enable_cap(const struct kvm_vm *vm, unsigned int cap,
				   uint64_t arg0, uint64_t arg1);

/*
 * kvmclock, in ns: what the guest reads now, and what it is to read from now on
 * (api.rst 4.29, 4.30). No vCPU runs.
 */
__must_check int kvm_vm_get_clock(const struct kvm_vm *vm, uint64_t *ret_ns);
__must_check int kvm_vm_set_clock(const struct kvm_vm *vm, uint64_t ns);

/*
 * Register [gpa, gpa + size) at hva as memslot number slot. flags: KVM_MEM_*.
 * Called again after the guest started to change the flags and nothing else: a
 * deleted slot zaps the second stage.
 */
__must_check int kvm_vm_set_slot(const struct kvm_vm *vm, unsigned int slot,
				 uint64_t gpa, uint64_t size, void *hva,
				 uint32_t flags);

/*
 * Attach eventfd fd to a write of exactly len bytes (1, 2, 4, 8; 0 = any
 * length) at addr. pio selects the port space. assign=false detaches the same.
 */
__must_check int kvm_vm_ioeventfd(const struct kvm_vm *vm, uint64_t addr,
				  uint32_t len, bool pio, int fd, bool assign);

#endif
