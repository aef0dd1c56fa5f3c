/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who connects to a destination: all of them at once, until each has said who
 * it is (TLS, where there are credentials, and its preface). One that says
 * nothing, or the wrong thing, holds up nobody: it is told, let go and logged.
 *
 * One thread.
 */
#ifndef QUIRE_MIGRATE_GREET_H
#define QUIRE_MIGRATE_GREET_H

#include "migrate/tls.h"
#include "migrate/wire.h"

struct greeter;

struct greeting {
	int fd;
	struct tls *tls; /* NULL: plain */
	struct wire_preface preface;
};

/* listen_fd is non-blocking; it and tls (NULL: none) stay the caller's. */
__must_check int greeter_new(struct greeter **ret, int listen_fd,
			     const struct tls_credentials *tls,
			     struct err *err);
/* Closes all that have not been given out. NULL is fine. */
void greeter_free(struct greeter *g);

/*
 * Wait for a short time. 1: *ret is the caller's. 0: nobody. Or an errno of
 * the listener. wants_control: of control; data streams that come too early
 * are kept for a while.
 */
__must_check int greeter_next(struct greeter *g, bool wants_control,
			      struct greeting *ret);

#endif
