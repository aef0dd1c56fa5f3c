/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the probes share: the state of one run and the way to add a row.
 *
 * A check is one entry of doctor_checks[] (doctor.c). Its probe adds one row,
 * or one for each member of a family (userfaultfd features, hugetlb sizes).
 * Checks run in table order: the machine check sets up the tiny VM that later
 * ones try things on.
 */
#ifndef QUIRE_DOCTOR_DOCTOR_PRIV_H
#define QUIRE_DOCTOR_DOCTOR_PRIV_H

#include <stdint.h>
#include <sys/types.h>

#include "doctor/doctor.h"
#include "kvm/kvm.h"
#include "stage2/trial.h"

/* Newer than Debian 12's headers; api.rst. */
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP /* 6.2 */
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif

struct doctor {
	const struct doctor_env *env;
	struct doctor_report *report;
	const char *group; /* of the check that runs */
	size_t rows_allocated;
	bool out_of_memory;
	struct kvm kvm; /* fd -1 when it could not be opened */
	struct trial machine;
	bool have_machine;
};

/* What a probe cannot do without; lacking that, its row says so. */
enum doctor_needs {
	DOCTOR_NEEDS_NOTHING,
	DOCTOR_NEEDS_KVM,
	DOCTOR_NEEDS_MACHINE,
};

struct doctor_check {
	const char *group;
	const char *name; /* of its row, or of the family */
	enum doctor_needs needs;
	bool decides; /* the verdicts need it */
	void (*probe)(struct doctor *doc, const struct doctor_check *check);
};

extern const struct doctor_check doctor_checks[];
extern const size_t num_doctor_checks;

/* Add a row. then ("" when nothing follows) is taken as it is. */
void doctor_say(struct doctor *doc, const char *name, enum doctor_status status,
		const char *then, const char *fact, ...) __printf_fmt(5, 6);

/* The row added last makes this impossible. */
void doctor_block(struct doctor *doc, enum doctor_blocks blocks);

/* Compute the verdicts and the reason from the rows. */
void doctor_judge(struct doctor_report *report);

/* Probes, by file. */
void doctor_probe_access(struct doctor *, const struct doctor_check *);
void doctor_probe_required(struct doctor *, const struct doctor_check *);
void doctor_probe_machine(struct doctor *, const struct doctor_check *);
void doctor_probe_mode(struct doctor *, const struct doctor_check *);
void doctor_probe_irqchip(struct doctor *, const struct doctor_check *);
void doctor_probe_vcpus(struct doctor *, const struct doctor_check *);
void doctor_probe_stats(struct doctor *, const struct doctor_check *);
void doctor_probe_pv(struct doctor *, const struct doctor_check *);

void doctor_probe_tdp(struct doctor *, const struct doctor_check *);
void doctor_probe_prefault(struct doctor *, const struct doctor_check *);
void doctor_probe_slots(struct doctor *, const struct doctor_check *);
void doctor_probe_slot_zap(struct doctor *, const struct doctor_check *);
void doctor_probe_fault_info(struct doctor *, const struct doctor_check *);
void doctor_probe_dirty_ring(struct doctor *, const struct doctor_check *);
void doctor_probe_dirty_clear(struct doctor *, const struct doctor_check *);

void doctor_probe_uffd(struct doctor *, const struct doctor_check *);

void doctor_probe_populate(struct doctor *, const struct doctor_check *);
void doctor_probe_collapse(struct doctor *, const struct doctor_check *);
void doctor_probe_pagemap(struct doctor *, const struct doctor_check *);
void doctor_probe_memlock(struct doctor *, const struct doctor_check *);
void doctor_probe_thp(struct doctor *, const struct doctor_check *);
void doctor_probe_shmem_thp(struct doctor *, const struct doctor_check *);
void doctor_probe_thp_defrag(struct doctor *, const struct doctor_check *);
void doctor_probe_hugetlb(struct doctor *, const struct doctor_check *);
void doctor_probe_ksm(struct doctor *, const struct doctor_check *);
void doctor_probe_numa_balancing(struct doctor *, const struct doctor_check *);
void doctor_probe_memcg(struct doctor *, const struct doctor_check *);
void doctor_probe_swap(struct doctor *, const struct doctor_check *);

void doctor_probe_cpus(struct doctor *, const struct doctor_check *);
void doctor_probe_numa(struct doctor *, const struct doctor_check *);
void doctor_probe_hypervisor(struct doctor *, const struct doctor_check *);
void doctor_probe_cgroup(struct doctor *, const struct doctor_check *);
void doctor_probe_psi(struct doctor *, const struct doctor_check *);
void doctor_probe_io_uring(struct doctor *, const struct doctor_check *);
void doctor_probe_reflink(struct doctor *, const struct doctor_check *);
void doctor_probe_landlock(struct doctor *, const struct doctor_check *);
void doctor_probe_seccomp(struct doctor *, const struct doctor_check *);

#endif
