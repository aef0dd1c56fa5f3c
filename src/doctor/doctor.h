/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this host can do for quire: every capability probed, none assumed from a
 * version number.
 *
 * A run yields a report of rows (capability, state, measured fact, what follows
 * from it) and two verdicts. A probe that fails is a row, never an abort;
 * probes leave nothing behind and need no privilege. A whole run takes well
 * under a second.
 *
 * Threads: a run uses the calling thread only and shares nothing, but takes
 * over SIGALRM of that thread while it measures.
 */
#ifndef QUIRE_DOCTOR_DOCTOR_H
#define QUIRE_DOCTOR_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/err.h"

enum doctor_status {
	DOCTOR_OK,
	DOCTOR_DEGRADED, /* works, with less than the full effect */
	DOCTOR_MISSING,
};

/* "ok", "degraded", "missing", indexed by enum doctor_status. */
extern const char *const doctor_status_names[3];

/* What a finding makes impossible. */
enum doctor_blocks {
	DOCTOR_BLOCKS_NOTHING,
	DOCTOR_BLOCKS_LINUX, /* Linux guests; the probe guest still runs */
	DOCTOR_BLOCKS_RUN,   /* every guest */
};

struct doctor_row {
	const char *group;
	char name[40];
	enum doctor_status status;
	enum doctor_blocks blocks;
	char fact[240];
	char consequence[400];
};

struct doctor_report {
	struct doctor_row *rows;
	size_t num_rows;
	bool can_run;	    /* VM, vCPU, interrupts, user memory: any guest */
	bool can_run_linux; /* and kernel mode runs in hardware */
	char reason[480];   /* of the first verdict that is "no"; else empty */
};

struct doctor_env {
	const char *kvm_path;  /* normally KVM_DEVICE_PATH */
	const char *directory; /* where reflinks are tried: "." */
	const char *root;      /* put before /proc and /sys: normally "" */
};

/* The host as it is, reflinks tried in the current directory. */
extern const struct doctor_env doctor_env_host;

/* Probe everything. Fails only for lack of memory. */
__must_check int doctor_run(struct doctor_report **ret,
			    const struct doctor_env *env);
void doctor_report_free(struct doctor_report *report);

/*
 * The verdict alone, from the few probes that decide it: true when Linux guests
 * can run here in useful time. Otherwise reterr_reason (may be NULL) says why.
 */
bool doctor_can_run_linux(struct err *reterr_reason);

/*
 * The report for people: width columns, long texts wrapped, colours if asked.
 * The last line is the verdict.
 */
void doctor_print_table(FILE *out, const struct doctor_report *report,
			unsigned int width, bool colour);

/*
 * The report as one JSON object: {"checks": [{"group", "name", "status",
 * "fact", "consequence"}], "can_run": bool, "can_run_linux": bool}. 0 or
 * -errno.
 */
__must_check int doctor_print_json(FILE *out,
				   const struct doctor_report *report);

#endif
