/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The model is the host's KVM_GET_SUPPORTED_CPUID table
 * after the edits of cpuid.c, made once per VM. Applying it to a vCPU copies
 * the table, fills in the APIC id and loads it; KVM keeps up what follows the
 * guest's own state (OSXSAVE, XSAVE sizes).
 */
#include "x86/cpu.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "x86/cpuid.h"

/* More physical bits would need a five-level second stage. */
#define CPU_MAX_PHYS_BITS 48u
/* Below this the PCI window above 4 GiB has no place (x86/layout.h). */
#define CPU_MIN_PHYS_BITS 37u

/* KVM has returned at most this many entries so far; 80 before Linux 5.11. */
#define CPUID_FIRST_TRY 256
#define CPUID_LAST_TRY	4096

struct cpu_model {
	struct cpuid_table table;
	struct cpuid_topology topo;
	unsigned int phys_bits;
};

/*
 * The features quire passes on when the host has them. Not here: MMU_OP (gone
 * from the kernel), ASYNC_PF_VMEXIT (for nested hypervisors) and the two that
 * serve encrypted guests.
 */
const struct cpu_pv_feature cpu_pv_features[] = {
	{ KVM_FEATURE_CLOCKSOURCE2, "kvmclock",
	  "time without exits, correct after a move to another host" },
	{ KVM_FEATURE_CLOCKSOURCE_STABLE_BIT, "kvmclock-stable",
	  "time in user space (vDSO), equal on all vCPUs" },
	{ KVM_FEATURE_CLOCKSOURCE, "kvmclock-v1",
	  "the same for kernels before 2.6.35" },
	{ KVM_FEATURE_NOP_IO_DELAY, "nop-io-delay",
	  "no exits for delays between port accesses" },
	{ KVM_FEATURE_STEAL_TIME, "steal-time",
	  "the guest knows when its vCPUs wait for host CPUs" },
	{ KVM_FEATURE_PV_UNHALT, "pv-unhalt",
	  "spinlock waiters halt instead of burning their time slice" },
	{ KVM_FEATURE_PV_SCHED_YIELD, "pv-sched-yield",
	  "an IPI sender yields to the vCPU it waits for" },
	{ KVM_FEATURE_PV_SEND_IPI, "pv-send-ipi",
	  "one exit for an IPI to many vCPUs" },
	{ KVM_FEATURE_PV_TLB_FLUSH, "pv-tlb-flush",
	  "no TLB flush IPIs to vCPUs that are not running" },
	{ KVM_FEATURE_PV_EOI, "pv-eoi", "interrupts end without an exit" },
	{ KVM_FEATURE_ASYNC_PF, "async-pf",
	  "the guest runs another task while a host page is fetched" },
	{ KVM_FEATURE_ASYNC_PF_INT, "async-pf-int",
	  "the page-ready message comes as an interrupt (Linux 5.8 on)" },
	{ KVM_FEATURE_POLL_CONTROL, "poll-control",
	  "a guest that polls before it halts switches the host's polling "
	  "off" },
};
const unsigned int num_cpu_pv_features = ARRAY_SIZE(cpu_pv_features);

static int get_supported(const struct kvm *kvm, struct kvm_cpuid2 **ret)
{
	for (unsigned int n = CPUID_FIRST_TRY; n <= CPUID_LAST_TRY; n *= 2) {
		struct kvm_cpuid2 *cpuid;
		int r;

		cpuid = calloc(1,
			       sizeof(*cpuid) + n * sizeof(cpuid->entries[0]));
		if (!cpuid)
			return -ENOMEM;
		cpuid->nent = n;
		r = kvm_ioctl(kvm->fd, KVM_GET_SUPPORTED_CPUID, cpuid);
		if (r >= 0) {
			*ret = cpuid;
			return 0;
		}
		free(cpuid);
		if (r != -E2BIG)
			return r;
	}
	return -E2BIG;
}

static int fetch_table(const struct kvm *kvm, struct cpuid_table *table)
{
	_cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
	int r = get_supported(kvm, &cpuid);

	if (r < 0)
		return r;
	return cpuid_table_init(table, cpuid->entries, cpuid->nent);
}

static int check_config(const struct cpu_config *cfg, struct err *err)
{
	if (cfg->num_cpus == 0)
		return err_set(err, EINVAL, "a VM needs at least one CPU");
	if (cfg->threads_per_core != 1 && cfg->threads_per_core != 2)
		return err_set(err, EINVAL,
			       "%u threads per core: only 1 and 2 are possible",
			       cfg->threads_per_core);
	if (cfg->num_cpus % cfg->threads_per_core)
		return err_set(err, EINVAL,
			       "%u CPUs do not divide into cores of %u threads",
			       cfg->num_cpus, cfg->threads_per_core);
	return 0;
}

static uint32_t pv_features(const struct cpuid_table *table,
			    const struct cpu_config *cfg)
{
	uint32_t have = cpuid_get(table, CPUID_KVM_FEATURES, 0, CPUID_EAX);
	uint32_t want = 0;

	for (unsigned int i = 0; i < num_cpu_pv_features; i++)
		want |= 1u << cpu_pv_features[i].bit;
	/* With a host CPU each, a waiter that spins gets its lock sooner. */
	if (cfg->dedicated && !cfg->overcommitted)
		want &= ~(1u << KVM_FEATURE_PV_UNHALT);
	want &= have;
	/* This one the VMM provides, KVM does not list it. */
	if (cfg->msi_ext_dest_id)
		want |= 1u << KVM_FEATURE_MSI_EXT_DEST_ID;
	return want;
}

static int set_phys_bits(struct cpu_model *model, const struct cpu_config *cfg,
			 struct err *err)
{
	unsigned int host = cpuid_phys_bits(&model->table);
	unsigned int bits = MIN(host, CPU_MAX_PHYS_BITS);

	if (cfg->phys_bits > bits)
		return err_set(err, EINVAL,
			       "phys_bits=%u: this host gives a guest %u "
			       "physical address bits at most",
			       cfg->phys_bits, bits);
	if (cfg->phys_bits && cfg->phys_bits < CPU_MIN_PHYS_BITS)
		return err_set(err, EINVAL,
			       "phys_bits=%u: a guest needs at least %u "
			       "physical address bits",
			       cfg->phys_bits, CPU_MIN_PHYS_BITS);
	if (cfg->phys_bits)
		bits = cfg->phys_bits;
	cpuid_set_phys_bits(&model->table, bits);
	model->phys_bits = bits;
	return 0;
}

static int build(struct cpu_model *model, const struct kvm *kvm,
		 const struct cpu_config *cfg, struct err *err)
{
	struct kvm_cpuid_entry2 *e;
	uint32_t hints = 0;
	int r = fetch_table(kvm, &model->table);

	if (r < 0)
		return err_errno(err, -r, "KVM_GET_SUPPORTED_CPUID");
	e = cpuid_find(&model->table, CPUID_FEATURES, 0);
	if (!e)
		return err_set(err, EIO,
			       "KVM_GET_SUPPORTED_CPUID returned no leaf 1");

	cpuid_drop_features(&model->table);
	/* KVM emulates it; older kernels list it as a capability only. */
	if (kvm_cap(kvm->fd, KVM_CAP_TSC_DEADLINE_TIMER))
		e->ecx |= CPUID_1_ECX_TSC_DEADLINE;
	if (cfg->num_cpus > 255 && !(e->ecx & CPUID_1_ECX_X2APIC))
		return err_set(err, EINVAL,
			       "%u CPUs: this KVM has no x2APIC, which more "
			       "than 255 need",
			       cfg->num_cpus);
	if (cfg->dedicated && !cfg->overcommitted)
		hints |= 1u << KVM_HINTS_REALTIME;
	cpuid_set_kvm(&model->table, pv_features(&model->table, cfg), hints);
	cpuid_set_topology(&model->table, &model->topo);
	return set_phys_bits(model, cfg, err);
}

int cpu_model_new(struct cpu_model **ret, const struct kvm *kvm,
		  const struct cpu_config *cfg, struct err *err)
{
	struct cpu_model *model;
	int r = check_config(cfg, err);

	if (r < 0)
		return r;
	model = calloc(1, sizeof(*model));
	if (!model)
		return err_set(err, ENOMEM, "out of memory");
	model->topo.num_cpus = cfg->num_cpus;
	model->topo.threads_per_core = cfg->threads_per_core;
	r = build(model, kvm, cfg, err);
	if (r < 0) {
		cpu_model_free(model);
		return r;
	}
	*ret = model;
	return 0;
}

void cpu_model_free(struct cpu_model *model)
{
	if (!model)
		return;
	cpuid_table_fini(&model->table);
	free(model);
}

unsigned int cpu_model_phys_bits(const struct cpu_model *model)
{
	return model->phys_bits;
}

int cpu_model_apply(const struct cpu_model *model, struct kvm_vcpu *vcpu,
		    bool has_lapic, struct err *err)
{
	struct cpuid_table table = { .cpuid = NULL };
	int r;

	if (vcpu->id >= model->topo.num_cpus)
		return err_set(err, EINVAL, "vCPU %u of a VM with %u CPUs",
			       vcpu->id, model->topo.num_cpus);
	r = cpuid_table_init(&table, model->table.cpuid->entries,
			     model->table.cpuid->nent);
	if (r < 0)
		return err_set(err, -r, "out of memory");
	cpuid_set_apic_id(&table, &model->topo, vcpu->id);
	if (!has_lapic)
		cpuid_drop_lapic(&table);
	r = kvm_vcpu_set_cpuid(vcpu, table.cpuid);
	cpuid_table_fini(&table);
	if (r < 0)
		return err_errno(err, -r, "KVM_SET_CPUID2 of vCPU %u",
				 vcpu->id);
	return cpu_reset(vcpu, has_lapic, err);
}

int cpu_model_apply_idle(const struct cpu_model *model, struct kvm_vcpu *vcpu,
			 struct err *err)
{
	int r = kvm_vcpu_set_cpuid(vcpu, model->table.cpuid);

	return r < 0 ? err_errno(err, -r, "KVM_SET_CPUID2 of vCPU %u", vcpu->id)
		     : 0;
}

int cpu_pv_supported(const struct kvm *kvm, uint32_t *ret_eax)
{
	struct cpuid_table table = { .cpuid = NULL };
	int r = fetch_table(kvm, &table);

	if (r < 0)
		return r;
	*ret_eax = cpuid_get(&table, CPUID_KVM_FEATURES, 0, CPUID_EAX);
	cpuid_table_fini(&table);
	return 0;
}
