/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory that appears whole or not at all.
 *
 * It is made beside its place, in the same directory, as ".NAME.tmp-XXXXXX",
 * filled, and renamed. Who makes it holds a flock(2) on it; so one that is not
 * locked was left by a process that died, and the next who writes at the same
 * place removes it.
 *
 * One thread.
 */
#ifndef QUIRE_SNAPSHOT_DIR_H
#define QUIRE_SNAPSHOT_DIR_H

#include <stdbool.h>

#include "base/err.h"

struct snapshot_dir {
	char *path;    /* as asked for, for people */
	char *name;    /* of the directory in its parent */
	char *tmp;     /* name it has until it is done; NULL: has none */
	int parent_fd; /* -1: closed */
	int fd;	       /* of the new directory */
	/*
	 * -1, or where its files are asked for (snapshot/handed.h): it is
	 * another process's then, which puts it in its place, and all above
	 * but path is closed or NULL.
	 */
	int asked_fd;
};

/*
 * Make the temporary directory for path. -EEXIST: something is there already,
 * and replace is not set or it is no snapshot.
 */
__must_check int snapshot_dir_create(struct snapshot_dir *dir, const char *path,
				     bool replace, struct err *err);

/*
 * The same, the directory being that of a process that listens at socket. path
 * is for people.
 */
__must_check int snapshot_dir_borrow(struct snapshot_dir *dir, const char *path,
				     const char *socket, struct err *err);

/*
 * A new file in it, for reading and writing; the descriptor, or -errno. direct:
 * past the page cache, where that can be.
 */
__must_check int snapshot_dir_make_file(struct snapshot_dir *dir,
					const char *name, bool direct);

/* Who makes the files has gone: nobody wants it any more. */
bool snapshot_dir_is_over(const struct snapshot_dir *dir);

/*
 * Make it durable and put it in its place; with replace, in exchange for what
 * is there, which is removed then. The files in it are the caller's to sync.
 * Nothing to do for one that is borrowed.
 */
__must_check int snapshot_dir_commit(struct snapshot_dir *dir, bool replace,
				     struct err *err);

/* Remove what is not committed. Fine on a half-made or committed one. */
void snapshot_dir_fini(struct snapshot_dir *dir);

/* The descriptor of the directory path, for reading; or -errno. */
__must_check int snapshot_dir_open(const char *path, struct err *err);

/*
 * Remove a directory and the files in it; one that has another directory in it
 * stays, for it is no snapshot. 0 or -errno. For snapshots of the caller's own.
 */
int snapshot_dir_remove(const char *path);

#endif
