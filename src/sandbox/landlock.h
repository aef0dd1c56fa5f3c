/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock: from now on this thread, and those it creates, open no other files
 * than the listed ones, whatever their user may. Source: landlock(7),
 * Documentation/userspace-api/landlock.rst.
 */
#ifndef QUIRE_SANDBOX_LANDLOCK_H
#define QUIRE_SANDBOX_LANDLOCK_H

#include "sandbox/paths.h"

/* The kernel's version of the interface, or -errno where it has none. */
int sandbox_landlock_abi(void);

/*
 * Needs no_new_privs, and an ABI of at least 1. Whatever else the ABI knows is
 * forbidden altogether: TCP (4), other processes' abstract sockets and signals
 * to them (6).
 */
__must_check int sandbox_landlock_enter(int abi,
					const struct sandbox_paths *paths,
					struct err *err);

#endif
