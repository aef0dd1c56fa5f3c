/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open a snapshot and give what is in it, checked.
 *
 * Every byte is hostile. Opening checks the manifest, all sizes, and the
 * checksums of configuration, state, sums and map, and the same of every
 * snapshot that this one is a delta upon. Memory is checked where it is read:
 * the source of snapshot_reader_memory() reads a unit of 2 MiB whole, and
 * compares its checksum, before it gives the first byte of it. What is mapped
 * (snapshot_reader_map()) is not checked: snapshot_reader_verify() does so.
 *
 * The files must not change while the reader is there; they may be renamed or
 * unlinked, for they stay open.
 *
 * Threads: after opening all is constant, and the source may be used from any
 * thread. Errors: negative errno, with words that name file and offset.
 */
#ifndef QUIRE_SNAPSHOT_READER_H
#define QUIRE_SNAPSHOT_READER_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "mem/populate.h"
#include "mem/ram.h"
#include "mem/source.h"
#include "snapshot/manifest.h"

struct snapshot_reader;
struct thread_class;

/* Threads of snapshot_reader_verify(). */
extern const struct thread_class snapshot_verify_thread_class;

__must_check int snapshot_reader_open(struct snapshot_reader **ret,
				      const char *path, struct err *err);
/*
 * Of what another process hands over (snapshot/handed.h) on asked_fd, only what
 * an increment needs: manifest, sums, and memory if it is whole. path is
 * remembered. Nothing is there of configuration, state, memory's source, and
 * the snapshots below it.
 */
__must_check int snapshot_reader_open_handed(struct snapshot_reader **ret,
					     const char *path, int asked_fd,
					     struct err *err);

/* After whoever uses its source or is mapped from it by behind. NULL is fine.
 */
void snapshot_reader_free(struct snapshot_reader *r);

/* All of these are the reader's. */
const char *snapshot_reader_path(const struct snapshot_reader *r);
const struct snapshot_manifest *
snapshot_reader_manifest(const struct snapshot_reader *r);
const json_t *snapshot_reader_config(const struct snapshot_reader *r);
const void *snapshot_reader_state(const struct snapshot_reader *r,
				  size_t *ret_len);
/* One for each unit of the manifest's ranges, in order. */
const uint64_t *snapshot_reader_sums(const struct snapshot_reader *r);
/* The memory file, if it has all of memory; -1: it is a delta. */
int snapshot_reader_whole_fd(const struct snapshot_reader *r);
/*
 * May another rest upon it? -ELOOP: it rests on too many itself. (Of one that
 * was handed over only who did that knows.)
 */
__must_check int snapshot_reader_check_depth(const struct snapshot_reader *r,
					     struct err *err);
/*
 * Does it rest upon the snapshot in this directory, or is it that one? Whose
 * place another takes is not there for them any more. (Of one that was handed
 * over only who did that knows.)
 */
bool snapshot_reader_rests_upon(const struct snapshot_reader *r,
				const struct stat *dir);
/* The directory, to open disks in; -1: it was handed over. */
int snapshot_reader_dir_fd(const struct snapshot_reader *r);

/*
 * Another of its files, read whole; at most max bytes can be. ret is the
 * caller's to free.
 */
__must_check int snapshot_reader_read_file(const struct snapshot_reader *r,
					   const char *name, uint64_t max,
					   void **ret, uint64_t *ret_len,
					   struct err *err);

/*
 * Open another of its files to read: a regular one, no link. A descriptor, the
 * caller's, or a negative errno (-ENOENT).
 */
__must_check int snapshot_reader_open_file(const struct snapshot_reader *r,
					   const char *name, uint64_t *ret_len,
					   struct err *err);

/* Memory: offset is guest-physical address; only inside the ranges. */
const struct mem_source *
snapshot_reader_memory(const struct snapshot_reader *r);

/* Are the regions of ram those of the snapshot? -EINVAL says how they differ.
 */
__must_check int snapshot_reader_check_ram(const struct snapshot_reader *r,
					   const struct ram *ram,
					   struct err *err);

/*
 * Map memory privately (ram_map_file()) over all of ram, and set ram->behind.
 * Pieces of deltas that are too small or too many to be mapped are read.
 * -ENOTSUP: this RAM cannot be mapped. Control thread, before memslots.
 */
__must_check int snapshot_reader_map(const struct snapshot_reader *r,
				     struct ram *ram, struct err *err);

/* Read all of memory and compare all checksums. */
__must_check int snapshot_reader_verify(const struct snapshot_reader *r,
					unsigned int threads,
					const struct populate_watch *watch,
					struct err *err);

#endif
