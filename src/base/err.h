/* SPDX-License-Identifier: Apache-2.0 */
/*
 * struct err: what went wrong, in words, at the borders a person reads
 * (command line, configuration, files, control API).
 *
 * The caller owns the struct (no allocation); the callee fills it once, at the
 * place that knows most, and returns the negative errno. A message names what
 * was asked, what failed and, where something can be done, what to do:
 * "/dev/kvm: permission denied; add yourself to group kvm".
 */
#ifndef QUIRE_BASE_ERR_H
#define QUIRE_BASE_ERR_H

#include "base/compiler.h"

struct err {
	int code; /* positive errno; 0 when nothing went wrong */
	char text[480];
};

#define ERR_INIT          \
	{                 \
		.code = 0 \
	}

/*
 * Fill err (which may be NULL) and return -code, so that one line does both:
 *	return err_set(err, EINVAL, "--memory size=%s: not a size", s);
 * code is a positive errno.
 */
int err_set(struct err *err, int code, const char *fmt, ...) __printf_fmt(3, 4);

/* As err_set, with ": <strerror(code)>" appended. */
int err_errno(struct err *err, int code, const char *fmt, ...)
	__printf_fmt(3, 4);

/* Put "<prefix>: " in front of the text that is there. */
void err_prefix(struct err *err, const char *fmt, ...) __printf_fmt(2, 3);

/* Put "; <more>" behind it. */
void err_append(struct err *err, const char *more);

#endif
