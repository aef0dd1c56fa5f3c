/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manifest.json: what a snapshot directory holds. It is written last and has
 * the sizes and checksums of the other files, and its own, so that a directory
 * is checked by starting from it.
 *
 * Plain data, no threads. The text is hostile: whatever it says is checked here
 * and nowhere else. A refusal says which member of the object is wrong, or at
 * which offset the text is no JSON.
 */
#ifndef QUIRE_SNAPSHOT_MANIFEST_H
#define QUIRE_SNAPSHOT_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/ram.h"
#include "mem/unit_job.h"

#define SNAPSHOT_ID_CHARS 36 /* a random UUID in hex */

enum snapshot_layout {
	SNAPSHOT_WHOLE, /* the memory file holds all of memory */
	SNAPSHOT_DELTA, /* only what memory.map says; the rest is the parent's
			 */
};

enum snapshot_file {
	SNAPSHOT_FILE_CONFIG,
	SNAPSHOT_FILE_STATE,
	SNAPSHOT_FILE_SUMS,
	SNAPSHOT_FILE_MAP, /* with SNAPSHOT_DELTA */
};
#define SNAPSHOT_NUM_FILES 4

extern const char *const snapshot_file_names[SNAPSHOT_NUM_FILES];

struct snapshot_file_info {
	bool exists;
	uint64_t bytes;
	uint64_t sum; /* XXH3 */
};

enum snapshot_disk_kind {
	SNAPSHOT_DISK_REFERENCE, /* the disk itself, by path; not in here */
	SNAPSHOT_DISK_CLONE,	 /* shares blocks with it (reflink) */
	SNAPSHOT_DISK_COPY,
};

/* "reference", "clone", "copy". */
extern const char *const snapshot_disk_kind_names[3];

#define SNAPSHOT_MAX_DISKS 256

struct snapshot_disk {
	char *id;   /* the device's */
	char *path; /* where the VM had it */
	char *file; /* in the snapshot directory, "disk-ID"; or NULL */
	enum snapshot_disk_kind kind;
	uint64_t bytes;
};

struct snapshot_manifest {
	char id[SNAPSHOT_ID_CHARS + 1];
	char quire[32];	       /* version that wrote it */
	uint64_t created_unix; /* seconds */
	/* Of the snapshot this one is an increment of; path NULL: of none. */
	char parent_id[SNAPSHOT_ID_CHARS + 1];
	char *parent_path; /* absolute, or relative to the directory */
	enum snapshot_layout layout;
	unsigned int num_ranges;
	struct mem_range ranges[RAM_MAX_REGIONS];
	uint64_t data_bytes; /* in the memory file, zeroes left out */
	struct snapshot_file_info files[SNAPSHOT_NUM_FILES];
	unsigned int num_disks;
	struct snapshot_disk *disks;
};

void snapshot_manifest_init(struct snapshot_manifest *m);
/* Fine on a zeroed one. */
void snapshot_manifest_fini(struct snapshot_manifest *m);

/* Where the last range ends: the size of the memory file. */
uint64_t snapshot_manifest_span(const struct snapshot_manifest *m);

/*
 * Append a disk; strings are copied. -EINVAL: an id that is no file name, or
 * that is there.
 */
__must_check int snapshot_manifest_add_disk(struct snapshot_manifest *m,
					    const struct snapshot_disk *disk,
					    struct err *err);

/* The text, ending in a newline, to be freed. NULL: out of memory. */
char *snapshot_manifest_format(const struct snapshot_manifest *m);

/*
 * Parse and check. ret is untouched on failure: -EBADMSG (no manifest, or
 * damaged), -ENOTSUP (a newer version).
 */
__must_check int snapshot_manifest_parse(struct snapshot_manifest *ret,
					 const char *text, size_t len,
					 struct err *err);

#endif
