/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a VM in this process: build, run, restart on reboot, stop on
 * request, account for it. Runs on the calling (control) thread, which must be
 * the process's only one on entry; it takes over SIGINT, SIGTERM and SIGHUP.
 */
#ifndef QUIRE_VM_SESSION_H
#define QUIRE_VM_SESSION_H

#include "vm/config.h"
#include "vm/machine.h"
#include "vm/summary.h"

struct vm_result {
	enum machine_end end;
	unsigned int code; /* of MACHINE_END_DEBUG_EXIT */
	int signal;	   /* stopped by this signal; 0: not */
	bool quit;	   /* stopped from the terminal (Ctrl-A x) */
	char text[200];	   /* what happened, for CRASH and ERROR */
};

/*
 * Run cfg until it ends for good. summary may be NULL. Returns 0 with *ret
 * filled, or a negative errno with err when the VM could not be built.
 *
 * SIGTERM presses the power button and stops the VM shutdown_timeout_s later
 * if it is still there; a second SIGTERM, SIGINT or SIGHUP stops it at once.
 */
__must_check int vm_session_run(struct vm_config *cfg,
				struct vm_summary *summary,
				struct vm_result *ret, struct err *err);

#endif
