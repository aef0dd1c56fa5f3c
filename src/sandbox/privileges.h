/* SPDX-License-Identifier: Apache-2.0 */
/*
 * no_new_privs and capabilities. Of the calling thread and those it creates
 * afterwards.
 *
 * Source: capabilities(7), prctl(2).
 */
#ifndef QUIRE_SANDBOX_PRIVILEGES_H
#define QUIRE_SANDBOX_PRIVILEGES_H

#include <stdint.h>

#include "base/err.h"

/*
 * Effective, permitted, inheritable, ambient and, where this process may, the
 * bounding set: all empty. Root is then a user like others, who owns some
 * files.
 */
__must_check int sandbox_drop_capabilities(struct err *err);

__must_check int sandbox_set_no_new_privs(struct err *err);

/* Make effective what is permitted (setuid cleared it), 0 or -errno. */
__must_check int sandbox_raise_capabilities(void);

#endif
