/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of a migration: whole transfers that end when nothing moves
 * for too long, or when the migration is given up; and on the control
 * connection, messages. With a TLS session (migrate/tls.h) all of it goes
 * through that.
 *
 * One thread sends and one receives at a time. Errors: -EPIPE, the other closed
 * it (in the middle or before); -ETIMEDOUT; -ECANCELED, given up; those of
 * migrate/tls.h; or of the socket. err is filled by the functions for messages.
 */
#ifndef QUIRE_MIGRATE_LINK_H
#define QUIRE_MIGRATE_LINK_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "migrate/tls.h"
#include "migrate/wire.h"

struct link {
	int fd;
	struct tls *tls; /* of fd; NULL: plain. Stays the caller's */
	/* A record of TLS is half sent: nothing can follow it. */
	bool is_stuck;
	/* Nothing moved for so long: -ETIMEDOUT. May change at any time. */
	_Atomic uint64_t patience_ns;
	/* When it ends in any case, whatever moves; 0: never. */
	uint64_t until_ns;
	/* Asked some times a second in a transfer; NULL: never. */
	bool (*given_up)(void *ctx);
	void *ctx;
};

/* The handshake of its session, within the patience. Fills err. */
__must_check int link_handshake(struct link *l, struct err *err);

/* All of iov, which is used up on the way. */
__must_check int link_send(struct link *l, struct iovec *iov, unsigned int num);
/* What there is, up to size, at least a byte. Returns how many. */
__must_check ssize_t link_recv_some(struct link *l, void *buf, size_t size);
__must_check int link_recv(struct link *l, void *buf, size_t len);

/* Wait until it can be read, or an end. 0, or as above. */
__must_check int link_wait(struct link *l);
/* Is there something to read (or an end)? Does not wait. */
bool link_is_readable(const struct link *l);
/* Will nothing come after what there is to read? Does not wait. */
bool link_is_closed(const struct link *l);

/* ---- messages of the control connection ---- */

__must_check int link_put(struct link *l, enum wire_control type,
			  const void *payload, size_t bytes, struct err *err);
/*
 * The same without a payload, and without waiting. Whatever it fails with, the
 * other never gets the message.
 */
__must_check int link_put_at_once(struct link *l, enum wire_control type,
				  struct err *err);
/*
 * The same, with a descriptor: only over a Unix socket without TLS, -ENOTSUP
 * otherwise. It stays the caller's.
 */
__must_check int link_put_fd(struct link *l, enum wire_control type, int fd,
			     struct err *err);
/*
 * Tell the other why it is over, if he still listens; type is FAILED or ABORT.
 */
void link_put_failure(struct link *l, enum wire_control type,
		      const struct err *why);
/*
 * Wait for the message wanted: its payload is *ret (the caller's to free; NULL:
 * none) of *ret_bytes. -ECONNABORTED: the other gave up, err has his words.
 */
__must_check int link_get(struct link *l, enum wire_control wanted,
			  uint8_t **ret, size_t *ret_bytes, struct err *err);
/* The same for one without a payload that comes with one descriptor. */
__must_check int link_get_fd(struct link *l, enum wire_control wanted,
			     int *ret_fd, struct err *err);

#endif
