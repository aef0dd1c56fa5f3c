/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take a snapshot of the VM in this process, and bring one back.
 *
 * Taking: the VM is paused, its state and disks are saved, its memory written,
 * and it goes on; all of it is made durable after that. Bringing
 * back: the configuration is that of the snapshot, changed where the caller
 * says so; memory is mapped from its file or read.
 */
#ifndef QUIRE_SNAPSHOT_TAKE_H
#define QUIRE_SNAPSHOT_TAKE_H

#include <jansson.h>

#include "mem/restore.h"
#include "snapshot/disks.h"
#include "snapshot/writer.h"

struct sandbox_paths;
struct vm_config;
struct vmm;

struct snapshot_take_request {
	const char *path;  /* of the directory that is made */
	const char *files; /* see struct snapshot_writer_config; may be NULL */
	bool replace;
	const char *parent; /* path of the one it is an increment of; or NULL */
	/* From here on what the guest writes is noted, for increments of it. */
	bool track;
	bool untrack; /* nor of any other: it ends when this one is done */
	bool live;    /* the guest goes on while memory is written */
	enum snapshot_disk_policy disks;
	unsigned int threads; /* 0: one per CPU */
};

struct snapshot_take_result {
	struct snapshot_memory_result memory;
	uint64_t paused_ns; /* how long the guest stood still; 0: it was paused
			     */
	uint64_t wall_ns;   /* until it was durable */
	char id[SNAPSHOT_ID_CHARS + 1];
	char parent_id[SNAPSHOT_ID_CHARS + 1]; /* or "" */
};

/*
 * Any thread but the control thread. A VM that ran runs again in any case, also
 * after a failure. -ECANCELED: quire is ending, or who makes the files has
 * gone.
 */
__must_check int snapshot_take(struct vmm *v,
			       const struct snapshot_take_request *req,
			       struct snapshot_take_result *ret,
			       struct err *err);

/* What a guest touches first is recorded for so long, unless said otherwise. */
#define SNAPSHOT_RECORD_S     10u
#define SNAPSHOT_MAX_RECORD_S 3600u

struct snapshot_bring_request {
	const char *path;
	enum restore_mode mode;
	/*
	 * LAZY and WORKING_SET: record the working set for so many seconds, and
	 * keep it with the snapshot. 0: LAZY does not; WORKING_SET does where
	 * none was kept, for SNAPSHOT_RECORD_S.
	 */
	unsigned int record_s;
	const char *name; /* of the VM; NULL: none. Not that of the snapshot. */
	/*
	 * {ID: {FIELD: VALUE, ...}, ...}: fields of devices that are others
	 * now; may be NULL.
	 */
	const json_t *devices;
	bool resume;
	/* Asked now and then by what takes long; true: give up. May be NULL. */
	bool (*cancelled)(void *ctx);
	void *ctx;
};

/*
 * Bringing back, in steps: open looks up everything that has a name, begin
 * needs no names any more, so that the process may confine itself in between.
 * load takes long, and is not the control thread's if that has other things to
 * do; without it begin does its work.
 */
struct snapshot_bring;

/*
 * Open the snapshot, read what says what the VM is, and make its disks.
 * -EINVAL: what devices says does not fit. -EEXIST: there is something where a
 * disk is to be. -ECANCELED. *req is not needed afterwards, but for what
 * cancelled needs. One thread at a time.
 */
__must_check int snapshot_bring_open(struct snapshot_bring **ret,
				     const struct snapshot_bring_request *req,
				     struct err *err);
/* Not begun: the disks that were made are removed again. NULL is fine. */
void snapshot_bring_free(struct snapshot_bring *b);

/* Map memory, or with EAGER read it. -ECANCELED. Any thread. */
__must_check int snapshot_bring_load(struct snapshot_bring *b, struct err *err);

/* For vm_confine(), which opens what is in it. */
struct vm_config *snapshot_bring_config(struct snapshot_bring *b);
/* What has to be reached by name later. */
__must_check int snapshot_bring_paths(const struct snapshot_bring *b,
				      struct sandbox_paths *paths,
				      struct err *err);

/*
 * Control thread; vmm has no VM. It is PAUSED then, or with resume RUNNING; the
 * guest has been told that it may be a copy. -EEXIST: there is a VM. Takes b in
 * any case.
 */
__must_check int snapshot_bring_begin(struct vmm *v, struct snapshot_bring *b,
				      struct err *err);

#endif
