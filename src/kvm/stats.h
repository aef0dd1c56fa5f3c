/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's binary statistics (KVM_GET_STATS_FD, api.rst 4.133): exact event counts
 * per VM and per vCPU, by the names debugfs uses ("pf_taken", "exits",
 * "pages_4k"...). A reader is one thread's; several readers may be open.
 */
#ifndef QUIRE_KVM_STATS_H
#define QUIRE_KVM_STATS_H

#include <stdint.h>

#include "base/compiler.h"

struct kvm_stats;

/*
 * Open the statistics of a VM or vCPU fd. -ENOTTY: the kernel has none. Of a
 * vCPU only while it is out of KVM_RUN, which the call would wait for: use
 * kvm_stats_fd() in time, and kvm_stats_open_fd() whenever one likes.
 */
__must_check int kvm_stats_open(int vm_or_vcpu_fd, struct kvm_stats **ret);

/* The descriptor alone, which is the caller's to close, or -errno. */
__must_check int kvm_stats_fd(int vm_or_vcpu_fd);
/* Read from such a descriptor; it is duplicated. */
__must_check int kvm_stats_open_fd(int stats_fd, struct kvm_stats **ret);
void kvm_stats_close(struct kvm_stats *stats);

/* Current value of a one-element statistic. -ENOENT: no such name. */
__must_check int kvm_stats_read(struct kvm_stats *stats, const char *name,
				uint64_t *ret_value);

/* Each one-element statistic, in the kernel's order. name is valid in fn. */
__must_check int kvm_stats_each(struct kvm_stats *stats,
				void (*fn)(void *ctx, const char *name,
					   uint64_t value),
				void *ctx);

#endif
