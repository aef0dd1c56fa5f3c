/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The paths that a process still has to open by name once it is confined.
 * Whatever is open already is not among them. Landlock makes rules of them, the
 * jail mounts.
 */
#ifndef QUIRE_SANDBOX_PATHS_H
#define QUIRE_SANDBOX_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum {
	SANDBOX_READ = 1,   /* files and directories */
	SANDBOX_WRITE = 2,  /* existing files */
	SANDBOX_MAKE = 4,   /* files, sockets: made, renamed and removed */
	SANDBOX_IOCTL = 8,  /* on device files */
	SANDBOX_RMDIR = 16, /* empty directories in it are removed */
	/*
	 * Files in it, at the end. Not worth a hole in a jail, which leaves
	 * them behind.
	 */
	SANDBOX_REMOVE = 32,
	SANDBOX_MKDIR = 64, /* directories in it are made and renamed */
};

struct sandbox_path {
	char *path;
	unsigned int access;
	/* Not to be reached is no error here: who opens it says so better. */
	bool optional;
};

struct sandbox_paths {
	struct sandbox_path *list;
	size_t num;
};

/*
 * path is copied, access joins what it has already. A directory stands for all
 * that is in it.
 */
__must_check int sandbox_paths_add(struct sandbox_paths *paths,
				   const char *path, unsigned int access,
				   bool optional, struct err *err);
/* The directory that path is in, of a file that is going to be made. */
__must_check int sandbox_paths_add_parent(struct sandbox_paths *paths,
					  const char *path, unsigned int access,
					  bool optional, struct err *err);
/* All of from, which may be NULL. */
__must_check int sandbox_paths_join(struct sandbox_paths *paths,
				    const struct sandbox_paths *from,
				    struct err *err);
void sandbox_paths_fini(struct sandbox_paths *paths);

/* May this process, as it is now, do that? Names the path that it may not. */
__must_check int sandbox_paths_check(const struct sandbox_paths *paths,
				     struct err *err);

#endif
