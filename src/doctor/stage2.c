/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Probes of guest memory in KVM: two-dimensional paging, pre-faulting, memory
 * slots, dirty tracking. What a bit promises is tried where a try is cheap.
 */
#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "doctor/doctor_priv.h"
#include "doctor/sysfs.h"
#include "stage2/detect.h"

/*
 * The try settles it: capability numbers of unmerged series have clashed with
 * this one in vendor kernels, and a present ioctl still refuses shadow paging.
 */
void doctor_probe_prefault(struct doctor *doc, const struct doctor_check *check)
{
	static const char stub[] =
		"the second stage fills by guest faults, or by a short touch "
		"loop that each vCPU runs before its real start";
	struct trial *m = &doc->machine;
	int cap;

	trial_prefault(m);
	cap = kvm_cap(m->vm.fd, KVM_CAP_PRE_FAULT_MEMORY);
	if (m->prefault_result > 0) {
		doctor_say(doc, check->name, DOCTOR_OK,
			   "guest memory can be ready in both tables before "
			   "the guest touches it",
			   "tried: %d pages in %.2f ms (%.0f ns each)",
			   m->prefault_result, (double)m->prefault_ns / 1e6,
			   (double)m->prefault_ns / m->prefault_result);
	} else if (m->prefault_result == -EOPNOTSUPP) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "shadow paging cannot be populated ahead: only the "
			   "host page table is",
			   "the ioctl exists but refuses this MMU");
	} else if (cap) {
		doctor_say(doc, check->name, DOCTOR_MISSING, stub,
			   "capability %d answers %d, but the ioctl says: %s",
			   KVM_CAP_PRE_FAULT_MEMORY, cap,
			   strerror(-m->prefault_result));
	} else {
		doctor_say(doc, check->name, DOCTOR_MISSING, stub,
			   "no KVM_PRE_FAULT_MEMORY here (tried: %s)",
			   strerror(-m->prefault_result));
	}
}

/* Append a statement, if there is one. */
static size_t state(char *buf, size_t size, size_t used, const char *what)
{
	if (what)
		used += (size_t)snprintf(buf + used, size - used, "%s%s",
					 used ? ", " : "", what);
	return used;
}

static void describe_tdp(const struct second_stage_evidence *ev, char *buf,
			 size_t size)
{
	static const char *const prefault[] = {
		[SECOND_STAGE_TDP] = "pre-fault works",
		[SECOND_STAGE_SHADOW] = "pre-fault refused",
	};
	static const char *const faults[] = {
		[SECOND_STAGE_TDP] = "a guest page fault needs no exit",
		[SECOND_STAGE_SHADOW] = "a guest page fault exits to KVM",
	};
	char module[32];
	size_t used;

	buf[0] = '\0';
	used = state(buf, size, 0, prefault[ev->prefault]);
	used = state(buf, size, used, faults[ev->faults]);
	if (ev->module == SECOND_STAGE_UNKNOWN)
		return;
	snprintf(module, sizeof(module), "%s=%c", ev->parameter,
		 ev->module == SECOND_STAGE_TDP ? 'Y' : 'N');
	state(buf, size, used, module);
}

/* The parallel MMU and EPT's accessed bits decide how well TDP serves us. */
static const char *tdp_shortcoming(struct doctor *doc)
{
	if (sysfs_read_flag(doc->env, "/sys/module/kvm/parameters/tdp_mmu") ==
	    0)
		return "tdp_mmu=N: faults and pre-faults of one VM wait for "
		       "each other; load kvm with tdp_mmu=Y";
	if (sysfs_read_flag(doc->env,
			    "/sys/module/kvm_intel/parameters/eptad") == 0)
		return "no accessed/dirty bits in EPT: the first touch of a "
		       "pre-faulted page still exits, without taking a lock";
	return NULL;
}

void doctor_probe_tdp(struct doctor *doc, const struct doctor_check *check)
{
	struct second_stage_evidence ev;
	const char *shortcoming;
	enum second_stage stage;
	char seen[160];

	second_stage_gather(&doc->machine, doc->env->root, &ev);
	describe_tdp(&ev, seen, sizeof(seen));
	stage = second_stage_judge(&ev);
	shortcoming = tdp_shortcoming(doc);
	if (stage == SECOND_STAGE_UNKNOWN)
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "quire assumes shadow paging and does not promise "
			   "second-stage population",
			   "cannot be told on this kernel");
	else if (stage == SECOND_STAGE_SHADOW)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "shadow paging: KVM follows each guest page table; "
			   "the second stage is filled by faults only",
			   "off (%s)", seen);
	else
		doctor_say(doc, check->name,
			   shortcoming ? DOCTOR_DEGRADED : DOCTOR_OK,
			   shortcoming ? shortcoming
				       : "the second stage depends on the host "
					 "only and can be filled ahead",
			   "on (%s)", seen);
}

void doctor_probe_slots(struct doctor *doc, const struct doctor_check *check)
{
	int slots = kvm_cap(doc->kvm.fd, KVM_CAP_NR_MEMSLOTS);

	if (slots >= RAM_MAX_REGIONS)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "quire uses few large ones", "%d", slots);
	else
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "large guests may not fit; this KVM is unusual",
			   "%d, a guest may need %d", slots, RAM_MAX_REGIONS);
}

void doctor_probe_slot_zap(struct doctor *doc, const struct doctor_check *check)
{
	int quirks = kvm_cap(doc->kvm.fd, KVM_CAP_DISABLE_QUIRKS2);

	if (quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL)
		doctor_say(doc, check->name, DOCTOR_OK,
			   "removing one memory slot need not empty the second "
			   "stage of all",
			   "the quirk can be disabled");
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "removing a slot empties the second stage of all; "
			   "quire never removes one from a populated VM",
			   "no control (quirks 0x%x)", (unsigned int)quirks);
}

void doctor_probe_fault_info(struct doctor *doc,
			     const struct doctor_check *check)
{
	if (kvm_cap(doc->kvm.fd, KVM_CAP_MEMORY_FAULT_INFO))
		doctor_say(doc, check->name, DOCTOR_OK,
			   "the kernel tells the address of a failing guest "
			   "access; quire ends the VM and names the RIP only",
			   "KVM_EXIT_MEMORY_FAULT offered");
	else
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "a failing guest access ends the VM; its RIP is "
			   "known, its address is not",
			   "no KVM_EXIT_MEMORY_FAULT");
}

/* Enable cap on a VM made for that; dirty rings want one without vCPUs. */
static int try_enable(const struct doctor *doc, unsigned int cap, uint64_t arg)
{
	struct kvm_vm vm = { .fd = -1 };
	int r;

	r = kvm_vm_create(&vm, &doc->kvm, NULL);
	if (r)
		return r;
	r = kvm_vm_enable_cap(&vm, cap, arg, 0);
	kvm_vm_close(&vm);
	return r < 0 ? r : 0;
}

void doctor_probe_dirty_ring(struct doctor *doc,
			     const struct doctor_check *check)
{
	int acq_rel = kvm_cap(doc->kvm.fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
	int plain = kvm_cap(doc->kvm.fd, KVM_CAP_DIRTY_LOG_RING);
	int bytes = acq_rel ? acq_rel : plain;
	int r;

	if (!bytes) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "dirty pages are harvested from bitmaps instead",
			   "not offered");
		return;
	}
	r = try_enable(doc,
		       acq_rel ? KVM_CAP_DIRTY_LOG_RING_ACQ_REL
			       : KVM_CAP_DIRTY_LOG_RING,
		       (uint64_t)bytes);
	if (r) {
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "dirty pages are harvested from bitmaps instead",
			   "offered, but enabling it fails: %s", strerror(-r));
		return;
	}
	doctor_say(doc, check->name, DOCTOR_OK,
		   "dirty pages can be harvested per vCPU while the guest runs",
		   "enabled: up to %zu entries per vCPU%s%s",
		   (size_t)bytes / sizeof(struct kvm_dirty_gfn),
		   acq_rel ? ", acquire/release" : "",
		   kvm_cap(doc->kvm.fd, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP)
			   ? ", with bitmap"
			   : "");
}

void doctor_probe_dirty_clear(struct doctor *doc,
			      const struct doctor_check *check)
{
	const int initially_set = KVM_DIRTY_LOG_INITIALLY_SET;
	int flags = kvm_cap(doc->kvm.fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	int r = flags ? try_enable(doc, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				   (uint64_t)flags)
		      : -ENOTSUP;

	if (r)
		doctor_say(doc, check->name, DOCTOR_MISSING,
			   "each harvest write-protects all of memory at once "
			   "and holds the guest up",
			   "KVM_CLEAR_DIRTY_LOG: %s", strerror(-r));
	else if (!(flags & initially_set))
		doctor_say(doc, check->name, DOCTOR_DEGRADED,
			   "switching dirty logging on costs in proportion to "
			   "memory size",
			   "enabled, without INITIALLY_SET");
	else
		doctor_say(doc, check->name, DOCTOR_OK,
			   "re-protection is spread over small pieces",
			   "enabled, with INITIALLY_SET");
}
