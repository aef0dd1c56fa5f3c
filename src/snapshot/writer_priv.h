/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the writer share. */
#ifndef QUIRE_SNAPSHOT_WRITER_PRIV_H
#define QUIRE_SNAPSHOT_WRITER_PRIV_H

#include "snapshot/dir.h"
#include "snapshot/records.h"
#include "snapshot/writer.h"

/* A file that is written, and not yet durable. */
struct written_file {
	int fd;
	char *name;
};

struct memory_job;

struct snapshot_writer {
	struct snapshot_writer_config cfg;
	struct snapshot_dir dir;
	struct snapshot_manifest manifest;
	struct snapshot_reader *own_parent; /* opened here; or NULL */
	bool replaces_parent;
	struct memory_job *memory; /* prepared, not yet put; or NULL */
	uint64_t *sums; /* of the units, little-endian once written */
	struct written_file *written;
	unsigned int num_written;
};

/*
 * Have it synced by commit, when the guest no longer waits. Takes *fd, on
 * success only.
 */
__must_check int snapshot_writer_keep(struct snapshot_writer *w, int *fd,
				      const char *name, struct err *err);

/* err for a failure to write file; returns error, a negative errno. */
int snapshot_writer_say(const struct snapshot_writer *w, const char *file,
			int error, struct err *err);

__must_check int snapshot_writer_put_records(struct snapshot_writer *w,
					     enum snapshot_file file,
					     const struct records_kind *kind,
					     const void *records, uint64_t num,
					     struct err *err);

#endif
