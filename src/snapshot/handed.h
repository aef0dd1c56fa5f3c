/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot's files, made by another process: quire that is confined may make
 * none, so who asks for the snapshot makes them, with rights of his own, and
 * hands them over.
 *
 * He listens on a Unix socket (SOCK_STREAM). quire connects, and asks for each
 * file by its name, 128 bytes padded with zeroes; the answer is a little-endian
 * 32 bit errno, 0 with the open file beside it (SCM_RIGHTS), an empty one, for
 * reading and writing. With "parent/" before the name it is a file of the
 * snapshot that the new one is an increment of, for reading. When either closes
 * the connection, the snapshot is not wanted any more.
 *
 * Neither trusts the other: names are flat and become files in one new
 * directory; what arrives has to be an empty regular file, in time. Of a parent
 * only the files are given that an increment needs, and what arrives is hostile
 * as any file.
 */
#ifndef QUIRE_SNAPSHOT_HANDED_H
#define QUIRE_SNAPSHOT_HANDED_H

#include <stdbool.h>

#include "base/err.h"

#define HANDED_NAME_BYTES 128 /* with its padding, at least one zero */

/* ---- who is handed files; any thread ---- */

/* A connection to path; err names it. */
__must_check int handed_connect(const char *path, int *ret_fd, struct err *err);

/*
 * Ask for the file called name. Returns its descriptor, the caller's, or what
 * it could not be made for: -EEXIST, -ENOSPC, ...; -EPIPE: the other has gone,
 * -ETIMEDOUT: he does not answer, -EPROTO: or not what he should.
 */
__must_check int handed_ask(int fd, const char *name);

/* The same for the parent's file of that name. -ENOENT: there is no parent. */
__must_check int handed_ask_parent(int fd, const char *name);

/* Has the other gone? */
bool handed_is_over(int fd);

/* ---- who makes them ---- */

/*
 * Answer one request on fd, which is readable: make the file in the directory
 * dir_fd, or open it in parent_fd (-1: there is none). Does not block. 0, also
 * where there is no file to give; -EPIPE: the other has closed; -EPROTO: what
 * he wants is no name.
 */
__must_check int handed_serve(int fd, int dir_fd, int parent_fd);

#endif
