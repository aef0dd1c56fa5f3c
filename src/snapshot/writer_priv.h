/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the writer share. */
#ifndef QUIRE_SNAPSHOT_WRITER_PRIV_H
#define QUIRE_SNAPSHOT_WRITER_PRIV_H

#include "snapshot/dir.h"
#include "snapshot/records.h"
#include "snapshot/writer.h"

struct snapshot_writer {
	struct snapshot_writer_config cfg;
	struct snapshot_dir dir;
	struct snapshot_manifest manifest;
	uint64_t *sums; /* of the units, little-endian once written */
};

/* err for a failure to write file; returns error, a negative errno. */
int snapshot_writer_say(const struct snapshot_writer *w, const char *file,
			int error, struct err *err);

__must_check int snapshot_writer_put_records(struct snapshot_writer *w,
					     enum snapshot_file file,
					     const struct records_kind *kind,
					     const void *records, uint64_t num,
					     struct err *err);

#endif
