/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said when a thread makes a call that its class has not: which thread,
 * which call, what to do. The process then dies of SIGSYS (status 128 + 31).
 */
#ifndef QUIRE_SANDBOX_TRAP_H
#define QUIRE_SANDBOX_TRAP_H

#include "base/err.h"

/*
 * Once, from sandbox_enter(). dying, which may be NULL, is called after the
 * message, in the signal handler of the thread at fault, with its filter on.
 */
__must_check int sandbox_trap_init(void (*dying)(void), struct err *err);

/* "openat", or NULL for a number that has no name here. Static. */
const char *sandbox_call_name(int nr);

#endif
