/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's process gives up what its VM does not need: which files stay open,
 * which paths stay reachable, which kinds of threads there will be. The
 * mechanism is sandbox/, the policy is here and in the devices' classes.
 */
#ifndef QUIRE_VM_CONFINE_H
#define QUIRE_VM_CONFINE_H

#include "sandbox/sandbox.h"
#include "vm/config.h"

/* What the control thread may do; vm/control.c says why. */
extern const struct thread_class vm_control_class;

/*
 * All kinds of threads that a VM may have, and more, a list that ends with NULL
 * or is NULL. The caller frees.
 */
__must_check int vm_thread_classes(const struct thread_class *const *more,
				   const struct thread_class ***ret,
				   size_t *ret_num);

#define VM_MAX_EXTRAS 16

/* What devices add to the lists of others; returns how many. */
size_t vm_thread_extras(struct sandbox_extra extras[VM_MAX_EXTRAS]);

struct vm_confinement {
	const struct sandbox_config *sandbox;
	struct vm_config *cfg; /* NULL: a VM will come over the API */
	bool expects_more;     /* the API was asked for: devices, or a VM */
	bool comes_back;       /* from a snapshot: needs no kernel to go on */
	/* What the API and the command need besides. */
	const struct sandbox_paths *paths;
	const struct thread_class *const *classes; /* ends with NULL */
};

/*
 * Open what the configuration names and confine the process. Once, on the only
 * thread, before the first machine is built. Unless it says otherwise, sandbox
 * has Landlock on, but not where more is expected and nobody has said what
 * files that may have.
 */
__must_check int vm_confine(const struct vm_confinement *c, struct err *err);

#endif
