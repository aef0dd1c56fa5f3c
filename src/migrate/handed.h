/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration's connections, opened by another process: quire that is confined
 * makes no network connections, so who asks for the migration makes them, with
 * rights of his own, and hands them over.
 *
 * He listens on a Unix socket (SOCK_STREAM). quire connects, and gets one
 * message: two little-endian 32 bit numbers with as many descriptors beside
 * them (SCM_RIGHTS): connected stream sockets, the first of which is for
 * control; and with TLS the files of migrate/tls.h, which are 3, or else 0.
 * quire writes progress to it, a line of JSON each time, as fast as it is read.
 * When he closes it the migration is not wanted any more.
 *
 * Neither trusts the other: what arrives has to be such sockets. Both are of
 * one user, so the key of a certificate is nothing the one has from the other.
 */
#ifndef QUIRE_MIGRATE_HANDED_H
#define QUIRE_MIGRATE_HANDED_H

#include "migrate/tls.h"
#include "migrate/wire.h"

/* Of control, of data, and the urgent one. */
#define MIGRATE_MAX_CONNECTIONS (WIRE_MAX_STREAMS + 2)

/*
 * Connect to path and take the sockets: fds, which are the caller's, has room
 * for MIGRATE_MAX_CONNECTIONS. *ret_fd is the connection itself. files are the
 * caller's if *ret_has_files.
 */
__must_check int migrate_handed_take(const char *path, int *ret_fd, int *fds,
				     unsigned int *ret_num,
				     int files[TLS_NUM_FILES],
				     bool *ret_has_files, struct err *err);

/* Give num sockets, and files unless NULL, to who connected to fd. 0 or -errno.
 */
__must_check int migrate_handed_give(int fd, const int *fds, unsigned int num,
				     const int *files);

#endif
