/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU's state after power-on, as far as it is not CPUID or general
 * registers. One path serves a new vCPU and one that has run: everything is
 * written, whatever KVM's own defaults are.
 *
 * Sources: Intel SDM 3A chapter 10 (reset values), chapter 11 (LAPIC; 10.4.7.1
 * for its reset state), 12.11 (MTRR).
 */
#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "x86/cpu.h"
#include "x86/cpuid.h"
#include "x86/layout.h"

#define MSR_MISC_ENABLE		 0x1a0u
#define MISC_ENABLE_FAST_STRINGS (1u << 0)
#define MSR_MTRR_DEF_TYPE	 0x2ffu
#define MTRR_DEF_TYPE_ENABLE	 (1u << 11)
#define MTRR_DEF_TYPE_WRITE_BACK 6u

/*
 * Memory is write-back by default: there is no firmware to program ranges, and
 * with the reset value Linux would find all RAM uncachable. Everything that
 * KVM writes into guest memory by itself is switched off. A host or a CPUID
 * without one of these refuses it, which is fine.
 */
static const struct kvm_msr_entry reset_msrs[] = {
	{ .index = MSR_MTRR_DEF_TYPE,
	  .data = MTRR_DEF_TYPE_ENABLE | MTRR_DEF_TYPE_WRITE_BACK },
	{ .index = 0x277 /* PAT */, .data = 0x0007040600070406 },
	{ .index = 0x174 /* SYSENTER_CS */ },
	{ .index = 0x175 /* SYSENTER_ESP */ },
	{ .index = 0x176 /* SYSENTER_EIP */ },
	{ .index = 0xc0000081 /* STAR */ },
	{ .index = 0xc0000082 /* LSTAR */ },
	{ .index = 0xc0000083 /* CSTAR */ },
	{ .index = 0xc0000084 /* SFMASK */ },
	{ .index = 0xc0000102 /* KERNEL_GS_BASE */ },
	{ .index = 0xc0000103 /* TSC_AUX */ },
	{ .index = 0x6e0 /* TSC_DEADLINE */ },
	{ .index = MSR_KVM_SYSTEM_TIME_NEW },
	{ .index = MSR_KVM_STEAL_TIME },
	{ .index = MSR_KVM_ASYNC_PF_EN },
	{ .index = MSR_KVM_ASYNC_PF_INT },
	{ .index = MSR_KVM_PV_EOI_EN },
	{ .index = MSR_KVM_POLL_CONTROL, .data = 1 },
	{ .index = 0x48 /* SPEC_CTRL */ },
	{ .index = 0xda0 /* XSS */ },
	{ .index = 0x38f /* PERF_GLOBAL_CTRL */ },
};

static int reset_msr_list(const struct kvm_vcpu *vcpu)
{
	unsigned int done = 0;

	/* KVM stops at the first it refuses: go on behind that one. */
	while (done < ARRAY_SIZE(reset_msrs)) {
		int r = kvm_vcpu_set_msrs(vcpu, reset_msrs + done,
					  ARRAY_SIZE(reset_msrs) - done);

		if (r < 0)
			return r;
		done += (unsigned int)r;
		if (done < ARRAY_SIZE(reset_msrs))
			log_debug("vCPU %u: KVM does not take MSR %#x",
				  vcpu->id, reset_msrs[done].index);
		done++;
	}
	return 0;
}

/* Other bits say what the vPMU lacks; they are KVM's to choose. */
static int enable_fast_strings(const struct kvm_vcpu *vcpu)
{
	const struct kvm_msr_entry wanted = { .index = MSR_MISC_ENABLE };
	_cleanup_free_ struct kvm_msrs *msrs = calloc(
		1, sizeof(*msrs) + sizeof(wanted));
	int r;

	if (!msrs)
		return -ENOMEM;
	msrs->nmsrs = 1;
	msrs->entries[0] = wanted;
	r = kvm_ioctl(vcpu->fd, KVM_GET_MSRS, msrs);
	if (r <= 0)
		return r; /* not readable: nothing to enable */
	msrs->entries[0].data |= MISC_ENABLE_FAST_STRINGS;
	r = kvm_vcpu_set_msrs(vcpu, msrs->entries, 1);
	return r < 0 ? r : 0;
}

static int reset_events(const struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_events events = {
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
			 KVM_VCPUEVENT_VALID_SHADOW,
	};
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0].value = 1 /* x87 */ };
	int r = kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);

	if (r >= 0)
		r = kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug);
	if (r < 0)
		return r;
	r = kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs);
	/* A host CPU without XSAVE has no XCR0 to reset. */
	return r == -EINVAL || r == -ENOTTY ? 0 : MIN(r, 0);
}

#define APIC_BASE_BSP	 (1u << 8)
#define APIC_BASE_ENABLE (1u << 11)

#define APIC_ID		     0x20
#define APIC_VERSION	     0x30
#define APIC_DFR	     0xe0
#define APIC_SVR	     0xf0
#define APIC_SVR_ENABLED     (1u << 8)
#define APIC_LVT_TIMER	     0x320
#define APIC_LVT_THERMAL     0x330
#define APIC_LVT_PERF	     0x340
#define APIC_LVT_LINT0	     0x350
#define APIC_LVT_LINT1	     0x360
#define APIC_LVT_ERROR	     0x370
#define APIC_LVT_CMCI	     0x2f0
#define APIC_LVT_MASKED	     (1u << 16)
#define APIC_LVT_MODE_NMI    (4u << 8)
#define APIC_LVT_MODE_EXTINT (7u << 8)

static void apic_put(struct kvm_lapic_state *apic, unsigned int offset,
		     uint32_t value)
{
	le32_store(apic->regs + offset, value);
}

/*
 * Reset state, then what firmware does to it: the boot CPU in virtual wire mode
 * (the PIC reaches it through LINT0), NMI at LINT1 of all as the MADT says.
 */
static int reset_lapic(const struct kvm_vcpu *vcpu, bool is_boot_cpu)
{
	static const unsigned int masked[] = {
		APIC_LVT_TIMER, APIC_LVT_THERMAL, APIC_LVT_PERF,
		APIC_LVT_LINT0, APIC_LVT_ERROR,	  APIC_LVT_CMCI,
	};
	struct kvm_lapic_state old, apic = { 0 };
	int r = kvm_vcpu_get_lapic(vcpu, &old);

	if (r < 0)
		return r;
	apic_put(&apic, APIC_ID, le32_load(old.regs + APIC_ID));
	apic_put(&apic, APIC_VERSION, le32_load(old.regs + APIC_VERSION));
	apic_put(&apic, APIC_DFR, 0xffffffff);
	apic_put(&apic, APIC_SVR, 0xff);
	for (size_t i = 0; i < ARRAY_SIZE(masked); i++)
		apic_put(&apic, masked[i], APIC_LVT_MASKED);
	apic_put(&apic, APIC_LVT_LINT1, APIC_LVT_MODE_NMI);
	if (is_boot_cpu) {
		apic_put(&apic, APIC_SVR, APIC_SVR_ENABLED | 0xff);
		apic_put(&apic, APIC_LVT_LINT0, APIC_LVT_MODE_EXTINT);
	}
	return kvm_vcpu_set_lapic(vcpu, &apic);
}

/* Out of x2APIC mode first: KVM checks the state to be set against the mode. */
static int reset_apic_base(const struct kvm_vcpu *vcpu, bool is_boot_cpu)
{
	struct kvm_sregs sregs;
	int r = kvm_vcpu_get_sregs(vcpu, &sregs);

	if (r < 0)
		return r;
	sregs.apic_base = LAYOUT_LAPIC | APIC_BASE_ENABLE |
			  (is_boot_cpu ? APIC_BASE_BSP : 0);
	return kvm_vcpu_set_sregs(vcpu, &sregs);
}

int cpu_reset(struct kvm_vcpu *vcpu, bool has_lapic, struct err *err)
{
	bool is_boot_cpu = vcpu->id == 0;
	int r;

	r = reset_events(vcpu);
	if (r < 0)
		return err_errno(err, -r, "resetting events of vCPU %u",
				 vcpu->id);
	if (has_lapic) {
		r = reset_apic_base(vcpu, is_boot_cpu);
		if (r >= 0)
			r = reset_lapic(vcpu, is_boot_cpu);
		if (r >= 0)
			r = kvm_vcpu_set_mp_state(
				vcpu, is_boot_cpu ? KVM_MP_STATE_RUNNABLE
						  : KVM_MP_STATE_UNINITIALIZED);
		if (r < 0)
			return err_errno(err, -r, "resetting LAPIC of vCPU %u",
					 vcpu->id);
	}
	r = reset_msr_list(vcpu);
	if (r >= 0)
		r = enable_fast_strings(vcpu);
	if (r < 0)
		return err_errno(err, -r, "resetting MSRs of vCPU %u",
				 vcpu->id);
	return 0;
}
