/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory that stands for the host's root, for what reads /proc and /sys:
 * each test that is set up with it starts from an empty one.
 */
#ifndef QUIRE_TESTS_HOST_TREE_H
#define QUIRE_TESTS_HOST_TREE_H

#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

struct host_tree {
	char root[64];
};

static inline int host_tree_remove(const char *path, const struct stat *st,
				   int type, struct FTW *ftw)
{
	return remove(path);
}

static inline int host_tree_setup(void **state)
{
	struct host_tree *t = calloc(1, sizeof(*t));

	strcpy(t->root, "/tmp/quire-test-XXXXXX");
	if (!mkdtemp(t->root))
		return -1;
	*state = t;
	return 0;
}

static inline int host_tree_teardown(void **state)
{
	struct host_tree *t = *state;
	int r = nftw(t->root, host_tree_remove, 8, FTW_DEPTH | FTW_PHYS);

	free(t);
	return r;
}

/* Write a file below the root, with the folders it needs. */
static inline void host_tree_put(const struct host_tree *t, const char *path,
				 const char *text)
{
	char full[512];
	int fd;

	snprintf(full, sizeof(full), "%s%s", t->root, path);
	for (char *p = full + strlen(t->root) + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		assert_true(!mkdir(full, 0700) || errno == EEXIST);
		*p = '/';
	}
	fd = open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
	close(fd);
}

#endif
