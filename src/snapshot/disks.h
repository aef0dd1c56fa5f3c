/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of a VM in its snapshot. Memory and disks belong together: a guest that
 * goes on with an older memory and a newer disk destroys its file systems. So a
 * disk that is written to is cloned or copied while the VM is paused, or the
 * snapshot is refused; one that is only read is named by its path.
 *
 * One thread at a time.
 */
#ifndef QUIRE_SNAPSHOT_DISKS_H
#define QUIRE_SNAPSHOT_DISKS_H

#include <jansson.h>

#include "snapshot/reader.h"
#include "snapshot/writer.h"
#include "vm/vmm.h"

/* What is done with a disk that the guest can write to. */
enum snapshot_disk_policy {
	SNAPSHOT_DISKS_CLONE, /* share blocks, or fail where that cannot be */
	SNAPSHOT_DISKS_COPY,  /* share blocks, or copy them */
	SNAPSHOT_DISKS_REFERENCE, /* name it: the caller keeps it as it is */
};

/* "clone", "copy", "reference". */
extern const char *const snapshot_disk_policy_names[3];

struct snapshot_disks_request {
	const json_t *config; /* a VmConfig; borrowed */
	enum snapshot_disk_policy policy;
	/* Of disks that need not be opened by their path; borrowed. */
	const struct vmm_image *images;
	unsigned int num_images;
	bool (*cancelled)(void *ctx); /* see snapshot/clone.h; may be NULL */
	void *ctx;
};

/*
 * Put the disks of a VM into the snapshot, as they are now. The VM is paused.
 * -EOPNOTSUPP: no clones on this file system.
 */
__must_check int
snapshot_writer_put_disks(struct snapshot_writer *w,
			  const struct snapshot_disks_request *req,
			  struct err *err);

/* Files that were made for a VM that comes back. Zeroed: none. */
struct snapshot_placed {
	char **paths;
	unsigned int num;
	/* Set before; see snapshot/clone.h. May be NULL. */
	bool (*cancelled)(void *ctx);
	void *ctx;
};

/*
 * Make config's disks those of the VM that comes back. A disk that is in the
 * snapshot stays in it as it is; the VM gets a clone or a copy, which is made
 * at the path that config has for it. What was made, also by a call that fails,
 * is in placed. -EEXIST: something is there, -EINVAL: config has no disk of
 * that id. -ECANCELED.
 */
__must_check int snapshot_reader_place_disks(const struct snapshot_reader *r,
					     const json_t *config,
					     struct snapshot_placed *placed,
					     struct err *err);
/* One of the two ends it: they stay, or they are removed. */
void snapshot_placed_keep(struct snapshot_placed *placed);
void snapshot_placed_undo(struct snapshot_placed *placed);

#endif
