/* SPDX-License-Identifier: Apache-2.0 */
#include "stage2/helpers.h"

#include "base/arith.h"
#include "x86/cpu.h"

void stage2_helpers_init(struct stage2_helpers *h, const struct kvm_vm *vm,
			 const struct cpu_model *model, unsigned int first_id,
			 unsigned int num)
{
	unsigned int max = kvm_max_vcpus(vm->kvm);

	h->num = 0;
	num = MIN(num, (unsigned int)STAGE2_MAX_HELPERS);
	num = MIN(num, max > first_id ? max - first_id : 0);
	while (h->num < num) {
		struct kvm_vcpu *vcpu = &h->vcpus[h->num];

		if (kvm_vcpu_create(vcpu, vm, first_id + h->num, NULL))
			break;
		if (cpu_model_apply_idle(model, vcpu, NULL)) {
			kvm_vcpu_close(vcpu);
			break;
		}
		h->list[h->num++] = vcpu;
	}
}

void stage2_helpers_fini(struct stage2_helpers *h)
{
	while (h->num)
		kvm_vcpu_close(&h->vcpus[--h->num]);
}
