/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: one thread that does a running VM's memory work in the
 * background, at a rate that is set.
 *
 *	KEEPER_REPAIR	 something zapped the second stage: map again what the
 *			 host still has
 *	KEEPER_POPULATE	 host pages and second stage, as before a start
 *	KEEPER_COALESCE	 make 2M pages of 4K ones (MADV_COLLAPSE), then map
 *			 these in the second stage
 *
 * Work is asked for by range, in units of 2 MiB, and done in this order of
 * kinds. With watch set the keeper also looks at KVM's counts of mapped pages
 * every second and repairs by itself when they fell: much of what zaps
 * (compaction, khugepaged, NUMA balancing, a move by an administrator) tells
 * nobody.
 *
 * While memory is tracked for changes nothing is mapped ahead (mem/populate.h);
 * work waits for the end of it.
 *
 * Threads: all calls from any.
 */
#ifndef QUIRE_MEM_KEEPER_H
#define QUIRE_MEM_KEEPER_H

#include "mem/populate.h"

struct keeper;
struct kvm_stats;

enum keeper_work {
	KEEPER_REPAIR,
	KEEPER_POPULATE,
	KEEPER_COALESCE,
};
#define KEEPER_NUM_WORKS 3

extern const struct thread_class keeper_thread_class;

/* "repair", "populate", "coalesce". */
extern const char *const keeper_work_names[KEEPER_NUM_WORKS];

struct keeper_config {
	const struct ram *ram;
	/* Ports nobody else uses. NULL: host pages only. */
	const struct second_stage_filler *second_stage;
	int vm_fd;		   /* for KVM's statistics */
	unsigned int threads;	   /* for each piece of work; 0: one per CPU */
	uint64_t rate_bytes_per_s; /* 0: as fast as it goes */
	bool watch;
	/* Seconds from one pass of COALESCE over all RAM to the next; 0: off */
	unsigned int coalesce_every_s;
	/*
	 * Called on the keeper's thread each time that it has done all there
	 * was; must not block or call the keeper. May be NULL.
	 */
	void (*idle)(void *ctx);
	void *idle_ctx;
};

/* Counts since the start; one kind of work each. */
struct keeper_work_stats {
	uint64_t runs, bytes, ns, failed_bytes;
};

struct keeper_stats {
	struct keeper_work_stats works[KEEPER_NUM_WORKS];
	uint64_t zaps_seen;    /* times the watch saw coverage fall */
	uint64_t zapped_bytes; /* by how much in all */
	/* By COALESCE, 2 MiB each, counted in every pass: */
	uint64_t coalesced_units; /* made one page (before 6.7: or were one) */
	uint64_t large_units;	  /* found to be one page */
	uint64_t refused_units;	  /* by the kernel; tried once */
	uint64_t sparse_units;	  /* left alone: less than half was there */
};

__must_check int keeper_new(struct keeper **ret,
			    const struct keeper_config *cfg, struct err *err);
/* Stops what runs, forgets what waits. NULL is fine. */
void keeper_free(struct keeper *k);

/*
 * Ask for work on [gpa, gpa + len), widened to 2 MiB units; what is outside RAM
 * is ignored. Cheap, never fails; asking twice is asking once.
 */
void keeper_request(struct keeper *k, enum keeper_work work, struct gpa gpa,
		    uint64_t len);

/* Wait until nothing is left to do, or to REPAIR. -ETIMEDOUT. */
__must_check int keeper_wait_idle(struct keeper *k, uint64_t timeout_ns);
__must_check int keeper_wait_repaired(struct keeper *k, uint64_t timeout_ns);

void keeper_read_stats(struct keeper *k, struct keeper_stats *ret);

#endif
