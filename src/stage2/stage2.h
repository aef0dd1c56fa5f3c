/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways to fill KVM's second stage (EPT, NPT) ahead of the guest:
 *
 * ioctl  KVM_PRE_FAULT_MEMORY on a vCPU descriptor (Linux 6.11). Also while
 *	  the guest runs, on vCPUs that do not.
 * stub   for kernels with TDP but without the ioctl: each vCPU runs a few
 *	  bytes of touch loop, before it gets its real state.
 * none   shadow paging: KVM follows the guest's page tables, which do not
 *	  exist yet, so nothing can be filled ahead. It is said, not pretended.
 *
 * A method is an entry of stage2_classes[] (stage2.c) and a file.
 *
 * Threads: open and close by one thread; the filler's ports as
 * mem/second_stage.h says.
 */
#ifndef QUIRE_STAGE2_STAGE2_H
#define QUIRE_STAGE2_STAGE2_H

#include <stdbool.h>

#include "base/err.h"
#include "kvm/vcpu.h"
#include "mem/ram.h"
#include "mem/second_stage.h"

enum stage2_method {
	STAGE2_AUTO, /* the first that works here */
	STAGE2_IOCTL,
	STAGE2_STUB,
	STAGE2_NONE,
};

/* "auto", "ioctl", "stub", "none". */
extern const char *const stage2_method_names[4];

struct stage2_env {
	const struct kvm *kvm;
	const struct ram *ram; /* memslots registered */
	/*
	 * The ports: vCPUs with their CPUID set, which nobody runs until
	 * close. All of a VM have the same CPUID, so that KVM keeps one tree
	 * for all of them.
	 */
	struct kvm_vcpu *const *vcpus;
	unsigned int num_vcpus; /* more than STAGE2_MAX_PORTS: the first ones */
};

#define STAGE2_MAX_PORTS 256

struct stage2;

/*
 * Find out by trying what works here. AUTO never fails for want of a method:
 * it becomes NONE. Another method that does not work here is -ENOTSUP. env is
 * copied; what it points to is borrowed until close.
 */
__must_check int stage2_open(struct stage2 **ret, enum stage2_method wanted,
			     const struct stage2_env *env, struct err *err);
/*
 * vCPUs and guest memory are back in the state they were opened in; if not, a
 * negative errno, and the VM must not run. NULL is fine.
 */
__must_check int stage2_close(struct stage2 *s, struct err *err);

enum stage2_method stage2_method(const struct stage2 *s);

/* NULL with NONE. Valid until close. */
const struct second_stage_filler *stage2_filler(const struct stage2 *s);

/* With NONE: why, and what follows, in a line for people. Else "". */
const char *stage2_reason(const struct stage2 *s);

/* May ports be used while other vCPUs of the VM run? */
bool stage2_works_while_running(const struct stage2 *s);

#endif
