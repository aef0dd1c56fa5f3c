/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How this host's KVM translates guest-physical addresses: with the hardware's
 * second stage (EPT, NPT), or with shadow page tables that it keeps in step
 * with the guest's own. The same fault counts mean different things in the two,
 * so whoever prints one says which it is.
 *
 * KVM does not say so directly, and the number of the pre-fault capability is
 * no proof: it has clashed with others, and kernels before 6.11 have TDP
 * without it. So it is tried on a trial machine what KVM does, and only what
 * cannot be tried is believed from the vendor module's parameter.
 *
 * Threads: the calling one, see stage2/trial.h.
 */
#ifndef QUIRE_STAGE2_DETECT_H
#define QUIRE_STAGE2_DETECT_H

#include <stdint.h>

#include "kvm/kvm.h"

struct trial;

enum second_stage {
	SECOND_STAGE_UNKNOWN,
	SECOND_STAGE_SHADOW,
	SECOND_STAGE_TDP,
};

/* "unknown", "shadow", "tdp", indexed by enum second_stage. */
extern const char *const second_stage_names[3];

/* What each source says; SECOND_STAGE_UNKNOWN: nothing. */
struct second_stage_evidence {
	enum second_stage prefault; /* the ioctl worked, or refused this MMU */
	enum second_stage faults;   /* does KVM see the guest's own faults? */
	enum second_stage module;
	const char *parameter; /* "kvm_intel ept", "kvm_amd npt" */
};

/* Try it all on trial. root is put before /sys: normally "". */
void second_stage_gather(struct trial *trial, const char *root,
			 struct second_stage_evidence *ret);

/* The verdict: what was tried outweighs what was configured. */
enum second_stage
second_stage_judge(const struct second_stage_evidence *evidence);

/* Both, on a machine made for it; without one, from the parameter alone. */
enum second_stage stage2_detect(const struct kvm *kvm);

#endif
