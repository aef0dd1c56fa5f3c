/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Write a snapshot: a directory that appears whole, durable and checked, or not
 * at all.
 *
 *	snapshot_writer_new -> put_config, put_state, put_memory, add_disk, ...
 *		-> snapshot_writer_commit -> snapshot_writer_free
 *
 * In any order, each once (disks: as many as there are); the first three must
 * be there. free without commit leaves no trace. A process that dies leaves a
 * directory ".NAME.tmp-*" beside the place, which the next writer at that place
 * removes; what was at the place before is untouched until commit.
 *
 * Threads: one at a time; put_memory() starts its own.
 *
 * Errors: negative errno, with words that name file and offset. -ENOSPC and
 * -EDQUOT among them: everything written is removed by free.
 */
#ifndef QUIRE_SNAPSHOT_WRITER_H
#define QUIRE_SNAPSHOT_WRITER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/populate.h"
#include "mem/ram.h"
#include "mem/window.h"
#include "snapshot/manifest.h"

struct snapshot_reader;
struct snapshot_writer;
struct thread_class;

/* Threads of snapshot_writer_put_memory(); and those with a window. */
extern const struct thread_class snapshot_thread_class,
	snapshot_window_thread_class;

struct snapshot_writer_config {
	const char *path;
	bool replace; /* the snapshot that is there, once this one is done */
	/*
	 * NULL, or the socket of a process that makes the files and puts them
	 * in their place (snapshot/handed.h). path is for people then, and
	 * replace says what he will do.
	 */
	const char *files;
	/*
	 * Make it an increment of this one, which outlives the writer; NULL:
	 * complete. It must be of the same memory.
	 */
	const struct snapshot_reader *parent;
	/*
	 * The same, by its path, which is opened here; with files, its files
	 * are handed over as well. Absolute and without links then, as path is:
	 * only so can it be seen whether both are in one directory.
	 */
	const char *parent_path;
	/*
	 * With parent: always a delta, also where the file system could share
	 * the parent's blocks with a whole file. For tests and for backups.
	 */
	bool delta;
};

__must_check int snapshot_writer_new(struct snapshot_writer **ret,
				     const struct snapshot_writer_config *cfg,
				     struct err *err);
/* NULL is fine. */
void snapshot_writer_free(struct snapshot_writer *w);

/* Who makes the files has gone: there is no use in going on. Any thread. */
bool snapshot_writer_is_over(const struct snapshot_writer *w);

/* Its id, a UUID, valid as long as w. */
const char *snapshot_writer_id(const struct snapshot_writer *w);

/* That of the parent; NULL: there is none. */
const char *snapshot_writer_parent_id(const struct snapshot_writer *w);

/* The configuration of the VM (VmConfig in docs/config.md); borrowed. */
__must_check int snapshot_writer_put_config(struct snapshot_writer *w,
					    const json_t *config,
					    struct err *err);

/* The saved state of vCPUs and devices, as layer state/ made it. */
__must_check int snapshot_writer_put_state(struct snapshot_writer *w,
					   const void *bytes, size_t len,
					   struct err *err);

struct snapshot_memory_request {
	/* Nobody writes to it meanwhile, or only through an armed window. */
	const struct ram *ram;
	struct write_window *window; /* NULL: nobody */
	unsigned int threads; /* 0: one per CPU; with a window, for two */
	/*
	 * Past the page cache (O_DIRECT), where the file system can. Without,
	 * the file is in the page cache afterwards: good for forks, which share
	 * it, bad for a host that is short of memory.
	 */
	bool direct;
	/*
	 * With a parent: for each region one bit per 4K page, set where the
	 * page may differ from the parent's. NULL: all may.
	 */
	const uint64_t *dirty[RAM_MAX_REGIONS];
	const struct populate_watch *watch; /* progress, cancel; may be NULL */
};

struct snapshot_memory_result {
	uint64_t total_bytes; /* of memory */
	uint64_t data_bytes;  /* written */
	uint64_t zero_bytes;  /* found, or known, to be zero, among the dirty */
	uint64_t wall_ns;
	unsigned int threads;
	enum snapshot_layout layout;
	bool reflinked; /* the parent's blocks are shared */
	/* With a window: units that somebody waited for. */
	uint64_t waited_units;
};

/*
 * What put_memory() would begin with, to be done before the pause: the file,
 * and with a window, which is needed then, threads that serve it and protection
 * ahead. The window stays served until put_memory() or drop_memory() returned.
 * Of put_memory()'s request only the watch counts then, of this all else.
 */
__must_check int
snapshot_writer_prepare_memory(struct snapshot_writer *w,
			       const struct snapshot_memory_request *req,
			       struct err *err);
/*
 * What is dirty, a pointer for each region as in the request, when that is only
 * known at the instant: before the guest goes on.
 */
void snapshot_writer_set_dirty(struct snapshot_writer *w,
			       const uint64_t *const *dirty);
/* It will not be put. Fine also where nothing is prepared. */
void snapshot_writer_drop_memory(struct snapshot_writer *w);

/*
 * Write memory. Pages that are not there are not faulted in: they are zero, or
 * read from ram->behind. ret may be NULL. -ECANCELED: the watch gave up.
 */
__must_check int
snapshot_writer_put_memory(struct snapshot_writer *w,
			   const struct snapshot_memory_request *req,
			   struct snapshot_memory_result *ret, struct err *err);

struct snapshot_disk_request {
	const char *id;	  /* the device's; becomes the name of a file */
	const char *path; /* of the image, quiet meanwhile */
	int fd;		  /* of the same, if it is open already; else -1 */
	bool reference;	  /* only note it: neither cloned nor copied */
	bool may_copy;	  /* where it cannot be cloned */
	bool (*cancelled)(void *ctx); /* see snapshot/clone.h; may be NULL */
	void *ctx;
};

/*
 * A disk, with the content it has now. -EOPNOTSUPP: it cannot be cloned, and
 * may not be copied. -ECANCELED.
 */
__must_check int
snapshot_writer_add_disk(struct snapshot_writer *w,
			 const struct snapshot_disk_request *req,
			 struct err *err);

/*
 * Everything durable, then visible. After a failure nothing is there (or what
 * was before). Called once, last.
 */
__must_check int snapshot_writer_commit(struct snapshot_writer *w,
					struct err *err);

#endif
