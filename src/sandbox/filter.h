/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thread classes as seccomp filters: compiled once, while the process is still
 * alone and unconfined, installed by each new thread on itself.
 *
 * Cost: the kernel remembers per filter which calls it lets pass whatever their
 * arguments are, and does not run it for those. Only calls with a rule on an
 * argument (ioctl, fcntl, mmap) run the program, which libseccomp lays out as a
 * binary tree over call numbers.
 *
 * Source: seccomp(2), seccomp_rule_add(3), seccomp_attr_set(3).
 */
#ifndef QUIRE_SANDBOX_FILTER_H
#define QUIRE_SANDBOX_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>

#include "base/err.h"
#include "base/thread_class.h"

enum sandbox_seccomp {
	SANDBOX_SECCOMP_ON,  /* a forbidden call ends the process */
	SANDBOX_SECCOMP_LOG, /* is carried out, and told to the kernel's log */
	SANDBOX_SECCOMP_OFF,
};

extern const char *const sandbox_seccomp_names[3]; /* "on", "log", "off" */

struct sandbox_filter {
	struct sock_fprog prog; /* owns prog.filter */
};

/*
 * The filter that lets pass what any of the classes needs. with_prepare: what
 * their threads do before they are confined, too. mode is not OFF. The caller
 * frees with sandbox_filter_free().
 */
__must_check int sandbox_filter_build(struct sandbox_filter *ret,
				      const struct thread_class *const *classes,
				      size_t num_classes, bool with_prepare,
				      enum sandbox_seccomp mode,
				      struct err *err);
void sandbox_filter_free(struct sandbox_filter *filter);

/*
 * On the calling thread, for good. no_new_privs has to be set. Async-signal
 * safe. 0 or -errno.
 */
__must_check int sandbox_filter_install(const struct sandbox_filter *filter);

#endif
