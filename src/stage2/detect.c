/* SPDX-License-Identifier: Apache-2.0 */
#include "stage2/detect.h"

#include <cpuid.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "base/io.h"
#include "stage2/trial.h"

const char *const second_stage_names[3] = {
	[SECOND_STAGE_UNKNOWN] = "unknown",
	[SECOND_STAGE_SHADOW] = "shadow",
	[SECOND_STAGE_TDP] = "tdp",
};

/* The vendor module's parameter, by CPU: both modules may be built in. */
static void read_parameter(const char *root, struct second_stage_evidence *ev)
{
	unsigned int eax, ebx = 0, ecx = 0, edx = 0;
	const char *file = "/sys/module/kvm_amd/parameters/npt";
	char path[PATH_MAX];
	int flag;

	ev->parameter = "kvm_amd npt";
	if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) &&
	    ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx) {
		ev->parameter = "kvm_intel ept";
		file = "/sys/module/kvm_intel/parameters/ept";
	}
	if (snprintf(path, sizeof(path), "%s%s", root, file) >= PATH_MAX)
		return;
	flag = io_read_flag(path);
	if (flag >= 0)
		ev->module = flag ? SECOND_STAGE_TDP : SECOND_STAGE_SHADOW;
}

void second_stage_gather(struct trial *trial, const char *root,
			 struct second_stage_evidence *ret)
{
	struct second_stage_evidence ev = { .prefault = SECOND_STAGE_UNKNOWN };
	uint64_t faults;

	trial_prefault(trial);
	if (trial->prefault_result > 0)
		ev.prefault = SECOND_STAGE_TDP;
	else if (trial->prefault_result == -EOPNOTSUPP)
		ev.prefault = SECOND_STAGE_SHADOW;
	if (!trial_guest_faults(trial, &faults))
		ev.faults = faults ? SECOND_STAGE_SHADOW : SECOND_STAGE_TDP;
	read_parameter(root, &ev);
	*ret = ev;
}

enum second_stage
second_stage_judge(const struct second_stage_evidence *evidence)
{
	if (evidence->prefault != SECOND_STAGE_UNKNOWN)
		return evidence->prefault;
	if (evidence->faults != SECOND_STAGE_UNKNOWN)
		return evidence->faults;
	return evidence->module;
}

enum second_stage stage2_detect(const struct kvm *kvm)
{
	struct second_stage_evidence ev = { .prefault = SECOND_STAGE_UNKNOWN };
	struct trial trial;

	if (trial_start(&trial, kvm, NULL)) {
		read_parameter("", &ev);
	} else {
		second_stage_gather(&trial, "", &ev);
		trial_stop(&trial);
	}
	return second_stage_judge(&ev);
}
