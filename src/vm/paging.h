/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A restored VM's memory that comes while its guest runs: the pager
 * (mem/pager.h), who is told what, and what is kept of it.
 *
 *	vm_paging_start -> vm_paging_let_go_on -> vm_paging_finish or
 *	vm_paging_stop
 *
 * Until the guest goes on, the control thread may be the one that waits for
 * memory (KVM writes its clocks when MSRs are loaded, and the VM generation id
 * is renewed). So a source that fails before is given up: restoring fails.
 * Afterwards the hooks tell the control thread, which pauses the VM; going on
 * is trying again.
 *
 * Control thread, but for what the pager's threads call.
 */
#ifndef QUIRE_VM_PAGING_H
#define QUIRE_VM_PAGING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "mem/pager.h"
#include "mem/working_set.h"

struct keeper;
struct vm_memory_origin;

/*
 * So long a guest stands still for its working set at most, and for the keeper
 * to map it, before it goes on and the rest of the set is brought beside it.
 * While it runs it takes a CPU, and its faults take turns with what is brought
 * ahead: what comes before costs a third of what comes then (docs/snapshot.md).
 */
#define VM_PAGING_AHEAD_NS (100 * NSEC_PER_MSEC)

/* Of one restored machine; times in ns since restoring began. */
struct vm_paging_times {
	uint64_t go_on;	   /* the guest went on: its first instruction */
	uint64_t ahead;	   /* the working set was there; 0: not yet */
	uint64_t complete; /* all of memory was there; 0: not yet */
};

struct vm_paging {
	const char *mode; /* how it was restored; NULL: it was booted */
	uint64_t began_ns;
	struct pager *pager;		 /* NULL: there is none (any more) */
	const struct mem_source *source; /* the pager's */
	bool was_paged, recorded;
	/*
	 * A working set comes first, and the guest stands still for it; it has
	 * come, and what comes behind it is not mapped before the guest goes
	 * on.
	 */
	_Atomic bool is_awaited, has_come;
	bool fed;      /* the source has only what has come */
	bool expected; /* it will be paged; nothing is here yet */
	_Atomic(struct keeper *) keeper; /* maps what has come; may be NULL */
	struct pager_stats last;	 /* when the pager went */
	/* Posts to the control thread; from the pager's threads. */
	void (*event)(void *ctx);
	void *event_ctx;
	pthread_mutex_t lock; /* all below */
	struct vm_paging_times times;
	bool failed;
	struct err error; /* of the last failure */
};

void vm_paging_init(struct vm_paging *p);
/* Stopped. */
void vm_paging_fini(struct vm_paging *p);

/* Begin to page ram, untouched as yet, if origin says so. */
__must_check int vm_paging_start(struct vm_paging *p, struct ram *ram,
				 const struct vm_memory_origin *origin,
				 unsigned int num_vcpus, struct err *err);

/*
 * Before the guest goes on: for the first time, or after a failure, which is
 * then tried again. -EIO: the source failed while the VM was built.
 */
__must_check int vm_paging_let_go_on(struct vm_paging *p, struct err *err);

/* Has the source failed since it was last let go on? ret may be NULL. */
bool vm_paging_failed(struct vm_paging *p, struct err *ret);

/*
 * Has it failed, or is it away? Then who waits for memory may do so for long,
 * and is not to be waited for.
 */
bool vm_paging_is_stuck(struct vm_paging *p);

/* Is memory still to come? */
bool vm_paging_is_active(struct vm_paging *p);

/* If all of memory has come: the pager goes. True: it is gone now. */
bool vm_paging_finish(struct vm_paging *p);

/*
 * What the guest touched so far; ends the recording, upon which the rest is
 * brought. -ENOENT: nothing is recorded.
 */
__must_check int vm_paging_end_recording(struct vm_paging *p,
					 struct working_set *ret);
bool vm_paging_is_recording(const struct vm_paging *p);

/* The pager goes, whatever has come. See pager_free(). */
void vm_paging_stop(struct vm_paging *p);

struct vm_paging_stats {
	const char *mode; /* NULL: the machine was booted */
	bool was_paged;	  /* pager is valid */
	struct vm_paging_times times;
	struct pager_stats pager;
	bool failed;
	struct err error;
};

void vm_paging_read_stats(const struct vm_paging *p,
			  struct vm_paging_stats *ret);

#endif
