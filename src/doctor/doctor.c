/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. doctor_checks[] is walked in order. The first checks
 * open KVM and build a tiny VM (stage2/trial.h) on which later ones try what
 * a capability bit only promises. Rows say what they block, and the verdicts
 * are computed from that alone, so a new check cannot forget to take part.
 */
#include "doctor/doctor_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const struct doctor_env doctor_env_host = {
	.kvm_path = KVM_DEVICE_PATH,
	.directory = ".",
	.root = "",
};

const char *const doctor_status_names[3] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_DEGRADED] = "degraded",
	[DOCTOR_MISSING] = "missing",
};

static const char kvm_group[] = "KVM";
static const char stage2_group[] = "Guest memory in KVM";
static const char pv_group[] = "Paravirtual features for guests";
static const char uffd_group[] = "userfaultfd";
static const char memory_group[] = "Host memory";
static const char host_group[] = "Host";

/* The machine check comes before those that try something on its VM. */
#define CHECK(g, n, need, fn)                                       \
	{                                                           \
		g, n, DOCTOR_NEEDS_##need, false, doctor_probe_##fn \
	}
#define DECIDING_CHECK(g, n, need, fn)                             \
	{                                                          \
		g, n, DOCTOR_NEEDS_##need, true, doctor_probe_##fn \
	}

const struct doctor_check doctor_checks[] = {
	DECIDING_CHECK(kvm_group, "KVM access", NOTHING, access),
	DECIDING_CHECK(kvm_group, "required features", KVM, required),
	DECIDING_CHECK(kvm_group, "virtual machine", KVM, machine),
	DECIDING_CHECK(kvm_group, "kernel mode", MACHINE, mode),
	CHECK(kvm_group, "interrupt controller", KVM, irqchip),
	CHECK(kvm_group, "vCPUs", KVM, vcpus),
	CHECK(kvm_group, "binary statistics", MACHINE, stats),

	CHECK(stage2_group, "TDP", MACHINE, tdp),
	CHECK(stage2_group, "pre-fault ioctl", MACHINE, prefault),
	CHECK(stage2_group, "memory slots", KVM, slots),
	CHECK(stage2_group, "slot zap control", KVM, slot_zap),
	CHECK(stage2_group, "memory fault exits", KVM, fault_info),
	CHECK(stage2_group, "dirty ring", KVM, dirty_ring),
	CHECK(stage2_group, "manual dirty clear", KVM, dirty_clear),

	CHECK(pv_group, "paravirtual leaf", KVM, pv),

	CHECK(uffd_group, "access", NOTHING, uffd),

	CHECK(memory_group, "MADV_POPULATE_WRITE", NOTHING, populate),
	CHECK(memory_group, "THP, private memory", NOTHING, thp),
	CHECK(memory_group, "THP, shared memory", NOTHING, shmem_thp),
	CHECK(memory_group, "THP defrag", NOTHING, thp_defrag),
	CHECK(memory_group, "MADV_COLLAPSE", NOTHING, collapse),
	CHECK(memory_group, "hugetlb", NOTHING, hugetlb),
	CHECK(memory_group, "PAGEMAP_SCAN", NOTHING, pagemap),
	CHECK(memory_group, "memory cgroup limit", NOTHING, memcg),
	CHECK(memory_group, "memlock limit", NOTHING, memlock),
	CHECK(memory_group, "NUMA balancing", NOTHING, numa_balancing),
	CHECK(memory_group, "KSM", NOTHING, ksm),
	CHECK(memory_group, "swap", NOTHING, swap),

	CHECK(host_group, "CPUs", NOTHING, cpus),
	CHECK(host_group, "NUMA nodes", NOTHING, numa),
	CHECK(host_group, "bare metal", NOTHING, hypervisor),
	CHECK(host_group, "cgroup v2", NOTHING, cgroup),
	CHECK(host_group, "PSI", NOTHING, psi),
	CHECK(host_group, "io_uring", NOTHING, io_uring),
	CHECK(host_group, "reflink", NOTHING, reflink),
	CHECK(host_group, "landlock", NOTHING, landlock),
	CHECK(host_group, "seccomp", NOTHING, seccomp),
};
const size_t num_doctor_checks = ARRAY_SIZE(doctor_checks);

static struct doctor_row *row_new(struct doctor *doc)
{
	struct doctor_report *report = doc->report;

	if (report->num_rows == doc->rows_allocated) {
		size_t num = doc->rows_allocated ? doc->rows_allocated * 2 : 64;
		struct doctor_row *rows = reallocarray(report->rows, num,
						       sizeof(*rows));

		if (!rows) {
			doc->out_of_memory = true;
			return NULL;
		}
		report->rows = rows;
		doc->rows_allocated = num;
	}
	return memset(&report->rows[report->num_rows++], 0,
		      sizeof(struct doctor_row));
}

/*
 * Facts quote what the host says (group paths, device names): keep terminals
 * and JSON readers safe from it.
 */
static void make_printable(char *text)
{
	for (; *text; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}

void doctor_say(struct doctor *doc, const char *name, enum doctor_status status,
		const char *then, const char *fact, ...)
{
	struct doctor_row *row = row_new(doc);
	va_list ap;

	if (!row)
		return;
	row->group = doc->group;
	row->status = status;
	snprintf(row->name, sizeof(row->name), "%s", name);
	snprintf(row->consequence, sizeof(row->consequence), "%s", then);
	va_start(ap, fact);
	vsnprintf(row->fact, sizeof(row->fact), fact, ap);
	va_end(ap);
	make_printable(row->fact);
	make_printable(row->consequence);
}

void doctor_block(struct doctor *doc, enum doctor_blocks blocks)
{
	struct doctor_report *report = doc->report;

	if (report->num_rows)
		report->rows[report->num_rows - 1].blocks = blocks;
}

static void run_check(struct doctor *doc, const struct doctor_check *check)
{
	doc->group = check->group;
	if (check->needs >= DOCTOR_NEEDS_KVM && doc->kvm.fd < 0)
		doctor_say(doc, check->name, DOCTOR_MISSING, "",
			   "not probed: no KVM");
	else if (check->needs >= DOCTOR_NEEDS_MACHINE && !doc->have_machine)
		doctor_say(doc, check->name, DOCTOR_MISSING, "",
			   "not probed: no virtual machine");
	else
		check->probe(doc, check);
}

/* What stops more comes first; among equals the first found is the cause. */
void doctor_judge(struct doctor_report *report)
{
	const struct doctor_row *cause = NULL;

	for (size_t i = 0; i < report->num_rows; i++) {
		const struct doctor_row *row = &report->rows[i];

		if (row->blocks >
		    (cause ? cause->blocks : DOCTOR_BLOCKS_NOTHING))
			cause = row;
	}
	report->can_run = !cause || cause->blocks < DOCTOR_BLOCKS_RUN;
	report->can_run_linux = !cause;
	report->reason[0] = '\0';
	if (cause)
		snprintf(report->reason, sizeof(report->reason), "%s: %s",
			 cause->name, cause->fact);
}

static int run_checks(struct doctor_report **ret, const struct doctor_env *env,
		      bool all)
{
	struct doctor doc = {
		.env = env,
		.report = calloc(1, sizeof(*doc.report)),
		.kvm.fd = -1,
	};

	if (!doc.report)
		return -ENOMEM;
	for (size_t i = 0; i < num_doctor_checks; i++) {
		if (all || doctor_checks[i].decides)
			run_check(&doc, &doctor_checks[i]);
	}
	if (doc.have_machine)
		trial_stop(&doc.machine);
	kvm_close(&doc.kvm);
	if (doc.out_of_memory) {
		doctor_report_free(doc.report);
		return -ENOMEM;
	}
	doctor_judge(doc.report);
	*ret = doc.report;
	return 0;
}

int doctor_run(struct doctor_report **ret, const struct doctor_env *env)
{
	return run_checks(ret, env, true);
}

void doctor_report_free(struct doctor_report *report)
{
	if (!report)
		return;
	free(report->rows);
	free(report);
}

bool doctor_can_run_linux(struct err *reterr_reason)
{
	struct doctor_report *report;
	bool can;
	int r;

	r = run_checks(&report, &doctor_env_host, false);
	if (r) {
		(void)err_errno(reterr_reason, -r, "probing this host");
		return false;
	}
	can = report->can_run_linux;
	if (!can)
		(void)err_set(reterr_reason, ENOTSUP, "%s", report->reason);
	doctor_report_free(report);
	return can;
}
