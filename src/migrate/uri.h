/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a migration comes in: "tcp:HOST:PORT" ("tcp:[::1]:4444" with IPv6),
 * "unix:PATH". Cloud Hypervisor's "unix:" is the same; "tcp://" and "unix://"
 * are taken, too. Any thread.
 */
#ifndef QUIRE_MIGRATE_URI_H
#define QUIRE_MIGRATE_URI_H

#include <stdbool.h>

#include "base/err.h"
#include "base/unix_socket.h"

enum migrate_uri_kind { MIGRATE_TCP, MIGRATE_UNIX };

struct migrate_uri {
	enum migrate_uri_kind kind;
	char host[256]; /* or the path */
	char port[8];
};

/* -EINVAL, in words that name the text. */
__must_check int migrate_uri_parse(struct migrate_uri *ret, const char *text,
				   struct err *err);

/* A connected socket, close-on-exec. Waits as long as the kernel does. */
__must_check int migrate_uri_connect(const struct migrate_uri *uri, int *ret_fd,
				     struct err *err);

/*
 * Listen there; a Unix socket is its user's alone, and removed with the
 * listener. Before the process is confined.
 */
__must_check int migrate_uri_listen(const struct migrate_uri *uri,
				    struct unix_listener *ret, struct err *err);

#endif
