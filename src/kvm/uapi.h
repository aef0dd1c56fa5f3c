/* SPDX-License-Identifier: Apache-2.0 */
/*
 * <linux/kvm.h> plus what Debian 12's 6.1 headers lack. Numbers from
 * Documentation/virt/kvm/api.rst of newer kernels; each is guarded, so newer
 * headers win.
 */
#ifndef QUIRE_KVM_UAPI_H
#define QUIRE_KVM_UAPI_H

#include <linux/kvm.h>

#ifndef KVM_CAP_PRE_FAULT_MEMORY /* 6.11 */
#define KVM_CAP_PRE_FAULT_MEMORY 236
struct kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

#ifndef KVM_CAP_MEMORY_FAULT_INFO /* 6.8 */
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL /* 6.1 */
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL /* 6.12 */
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7)
#endif

#endif
