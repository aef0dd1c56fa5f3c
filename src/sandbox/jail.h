/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jail: another user, namespaces of its own, and a root that holds nothing
 * but the paths given. Source: namespaces(7), user_namespaces(7),
 * mount_setattr(2), pivot_root(2).
 *
 * As root it becomes the unprivileged uid first, so that both ways lead through
 * the same steps. Files and sockets that are open stay open, in the network
 * namespace they came from.
 */
#ifndef QUIRE_SANDBOX_JAIL_H
#define QUIRE_SANDBOX_JAIL_H

#include "sandbox/sandbox.h"

/* The only thread; for good. */
__must_check int sandbox_jail_enter(const struct sandbox_config *cfg,
				    const struct sandbox_paths *paths,
				    struct err *err);

#endif
