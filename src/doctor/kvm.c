/* SPDX-License-Identifier: Apache-2.0 */
/* Probes of KVM itself: may we, does it run, what does it offer. */
#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"
#include "kvm/irq.h"
#include "kvm/stats.h"
#include "x86/cpu.h"

void doctor_probe_access(struct doctor *doc, const struct doctor_check *check)
{
	const char *then = "no guest can run";
	struct err err = ERR_INIT;
	int r = kvm_open(&doc->kvm, doc->env->kvm_path, &err);

	if (!r) {
		doctor_say(doc, check->name, DOCTOR_OK, "",
			   "%s opened for reading and writing, API version %d",
			   doc->env->kvm_path,
			   kvm_ioctl_val(doc->kvm.fd, KVM_GET_API_VERSION, 0));
		return;
	}
	if (r == -EACCES || r == -EPERM)
		then = "no guest can run; where group kvm owns the device: "
		       "usermod -aG kvm USER, then log in again";
	doctor_say(doc, check->name, DOCTOR_MISSING, then, "%s", err.text);
	doctor_block(doc, DOCTOR_BLOCKS_RUN);
}

void doctor_probe_required(struct doctor *doc, const struct doctor_check *check)
{
	static const struct {
		unsigned int cap;
		const char *name;
	} required[] = {
		{ KVM_CAP_USER_MEMORY, "USER_MEMORY" },
		{ KVM_CAP_SYNC_MMU, "SYNC_MMU" },
		{ KVM_CAP_EXT_CPUID, "EXT_CPUID" },
		{ KVM_CAP_MP_STATE, "MP_STATE" },
		{ KVM_CAP_IRQ_ROUTING, "IRQ_ROUTING" },
		{ KVM_CAP_IRQFD, "IRQFD" },
		{ KVM_CAP_IOEVENTFD, "IOEVENTFD" },
		{ KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI" },
		{ KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT" },
	};
	char lacking[160] = "";
	size_t used = 0;

	for (size_t i = 0; i < ARRAY_SIZE(required); i++)
		if (!kvm_cap(doc->kvm.fd, required[i].cap))
			used += (size_t)snprintf(lacking + used,
						 sizeof(lacking) - used, " %s",
						 required[i].name);
	if (!used) {
		doctor_say(doc, check->name, DOCTOR_OK, "", "all %zu present",
			   ARRAY_SIZE(required));
		return;
	}
	doctor_say(doc, check->name, DOCTOR_MISSING,
		   "no guest can run; this KVM is too old or too reduced",
		   "lacking:%s", lacking);
	doctor_block(doc, DOCTOR_BLOCKS_RUN);
}

void doctor_probe_machine(struct doctor *doc, const struct doctor_check *check)
{
	struct err err = ERR_INIT;
	uint64_t start = clock_now_ns();
	const char *chip;

	if (trial_start(&doc->machine, &doc->kvm, &err)) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no guest can run: this is what every VM needs",
			   "%s", err.text);
		doctor_block(doc, DOCTOR_BLOCKS_RUN);
		return;
	}
	doc->have_machine = true;
	chip = irq_router_kind(doc->machine.router) == IRQCHIP_KERNEL
		       ? "in-kernel"
		       : "split";
	doctor_say(
		doc, check->name, DOCTOR_OK, "",
		"VM, %s irqchip, memory slot, vCPU and CPU model (%u address "
		"bits) set up in %.1f ms",
		chip, cpu_model_phys_bits(doc->machine.model),
		clock_ns_to_s(clock_now_ns() - start) * 1e3);
}

/* Below this share of user-mode speed, somebody interprets the kernel. */
#define MODE_EMULATED_SHARE 0.1
/* Without a user-mode figure to compare with. */
#define MODE_HARDWARE_PER_S 50e6

/* "1240 million instructions/s", or why there is no such figure. */
static const char *rate_text(int result, double per_s, char *buf, size_t size)
{
	if (result)
		snprintf(buf, size, "not measured (%s)", strerror(-result));
	else
		snprintf(buf, size, "%.4g million instructions/s", per_s / 1e6);
	return buf;
}

static bool looks_emulated(int r_kernel, double kernel, int r_user, double user)
{
	return r_kernel || kernel < (r_user ? MODE_HARDWARE_PER_S
					    : user * MODE_EMULATED_SHARE);
}

void doctor_probe_mode(struct doctor *doc, const struct doctor_check *check)
{
	char kernel_text[64], user_text[64];
	double kernel = 0, again = 0, user = 0;
	int r_user = trial_rate(&doc->machine, 3, &user);
	int r_kernel = trial_rate(&doc->machine, 0, &kernel);

	/* Much hangs on this answer, and a busy host could fake it. */
	if (looks_emulated(r_kernel, kernel, r_user, user) &&
	    !trial_rate(&doc->machine, 0, &again)) {
		r_kernel = 0;
		kernel = MAX(kernel, again);
	}
	rate_text(r_kernel, kernel, kernel_text, sizeof(kernel_text));
	rate_text(r_user, user, user_text, sizeof(user_text));
	if (r_kernel && r_user) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no guest can run; the kernel log may say why",
			   "a loop started in 64-bit mode does not end: CPL0 "
			   "%s, CPL3 %s",
			   kernel_text, user_text);
		doctor_block(doc, DOCTOR_BLOCKS_RUN);
	} else if (!looks_emulated(r_kernel, kernel, r_user, user)) {
		doctor_say(doc, check->name, DOCTOR_OK, "Linux guests run",
			   "in hardware: CPL0 %s, CPL3 %s", kernel_text,
			   user_text);
	} else {
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   r_user ? "Linux guests do not boot in useful time; "
				    "use lab/run or another host for them"
				  : "Linux guests do not boot in useful time; "
				    "use lab/run or another host for them. The "
				    "probe guest (quire bench) runs in user "
				    "mode, at full speed",
			   "emulated: CPL0 %s, CPL3 %s", kernel_text,
			   user_text);
		doctor_block(doc, DOCTOR_BLOCKS_LINUX);
	}
}

void doctor_probe_irqchip(struct doctor *doc, const struct doctor_check *check)
{
	bool kernel = kvm_cap(doc->kvm.fd, KVM_CAP_IRQCHIP) &&
		      kvm_cap(doc->kvm.fd, KVM_CAP_PIT2);
	bool split = kvm_cap(doc->kvm.fd, KVM_CAP_SPLIT_IRQCHIP);

	if (kernel)
		doctor_say(doc, check->name, DOCTOR_OK, "",
			   "PIC, IOAPIC, PIT and LAPIC in the kernel; split "
			   "irqchip %s",
			   split ? "too" : "not offered");
	else if (split)
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "the IOAPIC is emulated by quire: wired interrupts "
			   "cost an exit, MSI-X does not",
			   "LAPIC in the kernel only (split irqchip)");
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "guests get no interrupts", "none in the kernel");
}

void doctor_probe_vcpus(struct doctor *doc, const struct doctor_check *check)
{
	unsigned int max = kvm_max_vcpus(&doc->kvm);
	int advised = kvm_cap(doc->kvm.fd, KVM_CAP_NR_VCPUS);
	int ids = kvm_cap(doc->kvm.fd, KVM_CAP_MAX_VCPU_ID);
	char then[80];

	snprintf(then, sizeof(then), "--cpus boot= takes up to %u%s",
		 MIN(max, CPU_MAX_VCPUS),
		 max > CPU_MAX_VCPUS ? ", quire's own limit" : "");
	doctor_say(doc, check->name, DOCTOR_OK, then,
		   "at most %u per VM, %d advised, APIC ids below %u", max,
		   advised, ids > 0 ? (unsigned int)ids : max);
}

void doctor_probe_stats(struct doctor *doc, const struct doctor_check *check)
{
	struct kvm_stats *stats;
	int r = kvm_stats_open(doc->machine.vm.fd, &stats);

	if (r) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "no exact counts of faults and mapped pages in "
			   "statistics and quire bench",
			   "KVM_GET_STATS_FD: %s", strerror(-r));
		return;
	}
	kvm_stats_close(stats);
	doctor_say(doc, check->name, DOCTOR_OK,
		   "faults and mapped pages are counted exactly",
		   "read from a VM");
}

/* One row for each feature: what the guest gains, or has to do without. */
void doctor_probe_pv(struct doctor *doc, const struct doctor_check *check)
{
	uint32_t eax;
	int r = cpu_pv_supported(&doc->kvm, &eax);

	if (r) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "guests see no KVM clock, locks or wake-ups; they "
			   "fall back to what bare metal has",
			   "cannot be read: %s", strerror(-r));
		return;
	}
	for (unsigned int i = 0; i < num_cpu_pv_features; i++) {
		const struct cpu_pv_feature *f = &cpu_pv_features[i];
		bool offered = eax & 1u << f->bit;
		char then[160];

		snprintf(then, sizeof(then), "%s%s",
			 offered ? "" : "guests lack: ", f->buys);
		doctor_say(doc, f->name, offered ? DOCTOR_OK : DOCTOR_MISSING,
			   then, "bit %u %s", f->bit,
			   offered ? "offered" : "not offered");
	}
}
