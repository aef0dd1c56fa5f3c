/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The content of one regular file into another, an empty one. A clone (FICLONE)
 * takes no time and no room, on file systems that share blocks; a copy takes
 * both. Holes stay holes. Offsets of descriptors are not used by copying, but
 * that of from may be moved. Any thread.
 */
#ifndef QUIRE_SNAPSHOT_CLONE_H
#define QUIRE_SNAPSHOT_CLONE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct clone_request {
	int from, to;
	uint64_t bytes; /* that from has */
	bool may_copy;
	/* Asked now and then while it copies; true: give up. May be NULL. */
	bool (*cancelled)(void *ctx);
	void *ctx;
};

/*
 * 1: cloned, 0: copied; not synced. -EOPNOTSUPP: cannot be cloned, and may not
 * be copied. -ENODATA: the file ends before bytes. -ECANCELED. Other negative
 * errno.
 */
__must_check int clone_file(const struct clone_request *req);

#endif
