/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox of a process that runs a VM. docs/sandbox.md says against whom.
 *
 * In this order: whatever needs privilege or a path is opened by the caller;
 * sandbox_enter() then, on the control thread and while it is the only one,
 * enters the jail (if asked for), sets no_new_privs, drops all capabilities,
 * enters Landlock, starts the thread that starts others, and puts its own
 * filter on. Each later thread gets the filter of its class (base/thread.h).
 * There is no way back.
 *
 * It comes before the first machine is built, not after: a guest's reboot
 * builds another one in the same process, and both are to find the same world.
 * So the control thread's list holds what building a machine takes.
 */
#ifndef QUIRE_SANDBOX_SANDBOX_H
#define QUIRE_SANDBOX_SANDBOX_H

#include <sys/types.h>

#include "sandbox/filter.h"
#include "sandbox/paths.h"

enum sandbox_landlock {
	SANDBOX_LANDLOCK_AUTO, /* for the caller to decide, see there */
	SANDBOX_LANDLOCK_ON,
	SANDBOX_LANDLOCK_OFF,
};

struct sandbox_config {
	enum sandbox_seccomp seccomp;
	enum sandbox_landlock landlock;
	struct sandbox_paths rules; /* --landlock-rules: for hot-plug */
	bool jail;
	bool has_uid, has_gid;
	uid_t uid; /* default: nobody's for root, else who we are */
	gid_t gid;
	char *chroot; /* where the jail's root is mounted; NULL: /tmp */
};

/* Defaults: everything on but the jail; Landlock is AUTO. */
void sandbox_config_init(struct sandbox_config *cfg);
void sandbox_config_fini(struct sandbox_config *cfg);

/* "on|log|off", "auto|on|off", "path=P,access=r|w|rw", "[on|off][,uid=...]". */
__must_check int sandbox_set_seccomp(struct sandbox_config *cfg,
				     const char *text, struct err *err);
__must_check int sandbox_set_landlock(struct sandbox_config *cfg,
				      const char *text, struct err *err);
__must_check int sandbox_add_landlock_rules(struct sandbox_config *cfg,
					    const char *text, struct err *err);
__must_check int sandbox_set_jail(struct sandbox_config *cfg, const char *text,
				  struct err *err);

/* Threads of cls may do what more may, too. */
struct sandbox_extra {
	const struct thread_class *cls, *more;
};

struct sandbox_plan {
	const struct sandbox_config *cfg;
	const struct sandbox_paths *paths;	   /* besides cfg->rules */
	const struct thread_class *control;	   /* of the calling thread */
	const struct thread_class *const *classes; /* of all threads to come */
	size_t num_classes;
	const struct sandbox_extra *extras;
	size_t num_extras;
	void (*dying)(void); /* see sandbox_trap_init(); may be NULL */
};

/*
 * Everything in *plan is copied or compiled; nothing is kept but the classes.
 * A failure leaves the process confined in part: end it.
 */
__must_check int sandbox_enter(const struct sandbox_plan *plan,
			       struct err *err);

/*
 * For who failed with r (negative errno) to open what was named later: what of
 * the confinement may be why, and what to do, to be appended; NULL: none of it.
 */
const char *sandbox_explain(int r);

#endif
