/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where running VMs are found by name: a folder with one folder for each.
 *
 *	NAME/lock	the process's id; locked (flock) for as long as it lives
 *	NAME/api.sock	where its API listens, or a link to that
 *
 * The lock decides, not the id: it goes with the process, however that ends.
 * An entry that nobody locks is stale; whoever meets it removes it.
 *
 * The folder is, of these, the first that applies: $QUIRE_RUNTIME_DIR;
 * /run/quire for root; $XDG_RUNTIME_DIR/quire; /run/user/UID/quire;
 * /tmp/quire-UID. It has to belong to the user and be closed to others (0700),
 * since to connect to a socket in it is to own the VM.
 *
 * One thread.
 */
#ifndef QUIRE_API_RUNDIR_H
#define QUIRE_API_RUNDIR_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "vm/config.h"

#define RUNDIR_MAX_PATH 108 /* of a socket, its end included */

/* A name that a VM can have: vm_config_check_name(). */
bool rundir_name_ok(const char *name);

struct rundir_claim;

/*
 * Have name for this process; NULL: "vm-PID". -EEXIST: a VM of that name runs.
 * -EINVAL: not a name.
 */
__must_check int rundir_claim(struct rundir_claim **ret, const char *name,
			      struct err *err);
/* For api_server_start(). */
const char *rundir_claim_socket(const struct rundir_claim *c);
const char *rundir_claim_name(const struct rundir_claim *c);
/* The socket is, or is to be, elsewhere: leave a link to it. */
__must_check int rundir_claim_link(struct rundir_claim *c, const char *path,
				   struct err *err);
/* The entry goes. NULL is fine. */
void rundir_release(struct rundir_claim *c);

struct rundir_entry {
	char name[VM_MAX_NAME];
	pid_t pid; /* 0: not known yet */
	char socket[RUNDIR_MAX_PATH];
};

/*
 * Every VM that runs, ordered by name; *ret is the caller's to free. Stale
 * entries are removed on the way. No folder is no VM.
 */
__must_check int rundir_list(struct rundir_entry **ret, size_t *ret_num,
			     struct err *err);

/* The entry called name. -ENOENT: none; the err lists those that there are. */
__must_check int rundir_find(const char *name, struct rundir_entry *ret,
			     struct err *err);

#endif
