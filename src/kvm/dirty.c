/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm/dirty.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

void kvm_dirty_probe(const struct kvm_vm *vm, struct kvm_dirty_offer *ret)
{
	/* ACQ_REL says aloud what entries' flags need; x86 always had it. */
	static const uint32_t ring_caps[] = {
		KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		KVM_CAP_DIRTY_LOG_RING,
	};
	unsigned int flags = (unsigned int)kvm_cap(
		vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	*ret = (struct kvm_dirty_offer){
		.bitmap = flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
		.initially_set = flags & KVM_DIRTY_LOG_INITIALLY_SET,
	};
	for (size_t i = 0; i < sizeof(ring_caps) / sizeof(ring_caps[0]); i++) {
		unsigned int bytes = (unsigned int)kvm_cap(vm->fd,
							   ring_caps[i]);

		if (bytes < sizeof(struct kvm_dirty_gfn))
			continue;
		ret->ring_cap = ring_caps[i];
		ret->ring_max_entries =
			(uint32_t)(bytes / sizeof(struct kvm_dirty_gfn));
		return;
	}
}

int kvm_dirty_get_log(const struct kvm_vm *vm, unsigned int slot,
		      uint64_t *bitmap)
{
	struct kvm_dirty_log log = {
		.slot = slot,
		.dirty_bitmap = bitmap,
	};

	return kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
}

int kvm_dirty_clear_log(const struct kvm_vm *vm, unsigned int slot,
			uint64_t first, uint32_t num, const uint64_t *bitmap)
{
	struct kvm_clear_dirty_log log = {
		.slot = slot,
		.num_pages = num,
		.first_page = first,
		.dirty_bitmap = (void *)bitmap,
	};

	return kvm_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &log);
}

int kvm_dirty_reset_rings(const struct kvm_vm *vm)
{
	return kvm_ioctl_val(vm->fd, KVM_RESET_DIRTY_RINGS, 0);
}

int kvm_dirty_map_ring(const struct kvm_vcpu *vcpu, uint32_t entries,
		       struct kvm_dirty_gfn **ret, struct err *err)
{
	off_t at = KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE);
	void *ring = mmap(NULL, entries * sizeof(**ret), PROT_READ | PROT_WRITE,
			  MAP_SHARED, vcpu->fd, at);

	if (ring == MAP_FAILED)
		return err_errno(err, errno,
				 "mapping the dirty ring of vCPU %u", vcpu->id);
	*ret = ring;
	return 0;
}

void kvm_dirty_unmap_ring(struct kvm_dirty_gfn *ring, uint32_t entries)
{
	munmap(ring, entries * sizeof(*ring));
}
