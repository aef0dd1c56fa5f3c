/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pager: guest memory that is not there yet, brought when it is touched and
 * behind, from any source (mem/source.h), by userfaultfd.
 *
 *	ram_init -> pager_new -> memslots, state, the guest runs -> pager_free
 *
 * Three priorities: what somebody waits for, page by page; a working set that
 * was recorded; the rest. Faults have threads of their own (handlers), which
 * sleep while there are none; the other two share threads (fillers) that stand
 * back while a fault is served.
 *
 * RAM is cut into blocks, which take turns over several userfaultfds, so that
 * vCPUs do not meet at one queue. A block with all its data leaves userfaultfd,
 * its 4K pages are made 2M ones where RAM is transparent huge pages, and the
 * caller is told, who may then fill the second stage. A block that the source
 * has no data of never enters it; neither stays what is zero once somebody
 * touches it.
 *
 * While the pager is there, ram->behind is its source.
 *
 * When a source fails, whoever touched that memory waits, the caller is told
 * once, and the fillers stand still until pager_retry(). Nothing is lost. When
 * nobody is to wait any longer there is pager_abandon(). ram->paged and
 * ram->lost say as much to who takes bytes out of guest memory (mem_await()).
 *
 * Not to be discarded while the pager is at work (balloon, reporting): a page
 * that goes before it was settled comes back with what the source has.
 *
 * Threads: any, but pager_new and pager_free, which are the control thread's.
 */
#ifndef QUIRE_MEM_PAGER_H
#define QUIRE_MEM_PAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/histogram.h"
#include "mem/ram.h"
#include "mem/source.h"
#include "mem/working_set.h"

struct pager;
struct thread_class;
struct uffd_opener;

/* Its threads, and those whose work the source's read is. */
extern const struct thread_class pager_handler_thread_class;
extern const struct thread_class pager_filler_thread_class;

enum pager_priority {
	PAGER_FAULT,
	PAGER_WORKING_SET,
	PAGER_SWEEP,
	PAGER_PUT, /* pushed by pager_put() */
};
#define PAGER_NUM_PRIORITIES 4

/* "fault", "working-set", "sweep", "put". */
extern const char *const pager_priority_names[PAGER_NUM_PRIORITIES];

#define PAGER_MAX_THREADS 64 /* of each kind */

struct pager_config {
	struct ram *ram; /* nobody touched it yet; outlives the pager */
	const struct mem_source *source; /* outlives the pager */
	struct uffd_opener *opener;	 /* see uffd_open(); may be NULL */
	unsigned int handlers;		 /* 0: one per CPU, 2 to 4 */
	unsigned int fillers;		 /* 0: one per CPU, at most 4 */
	unsigned int uffds;		 /* 0: one per handler */
	/* Abandon it at the first failure, until pager_be_patient(). */
	bool impatient;
	bool sweep; /* bring the rest, too */
	/* Fillers that do so at once; 0: as many as pager_sweepers() says. */
	unsigned int sweepers;
	unsigned int num_vcpus;	    /* that run beside it; may be 0 */
	uint64_t sweep_bytes_per_s; /* 0: as fast as it goes */
	/* Bring these ahead, in their order; copied. NULL: there are none. */
	const struct working_set *ahead;
	/*
	 * Where of that set is kept what need not be read page by page, or
	 * NULL. Outlives the pager. What it cannot give the source does.
	 */
	const struct working_set_store *store;
	/*
	 * Note what is touched. The sweep waits for pager_end_recording(): what
	 * is there already is not seen being touched.
	 */
	bool record;
	/*
	 * All NULL if not wanted; on any of the pager's threads; must not block
	 * nor call the pager, but for pager_retry().
	 */
	/* Host pages of [gpa, gpa + len) are complete: second stage, please. */
	void (*filled)(void *ctx, struct gpa gpa, uint64_t len);
	/* The source failed, for the first time or since the last retry. */
	void (*failed)(void *ctx, const struct err *err);
	/* The working set is there; all of memory is there. Once each. */
	void (*ahead_done)(void *ctx);
	void (*all_done)(void *ctx);
	void *ctx;
};

/*
 * How many threads should bring the rest beside a guest: those CPUs that its
 * vCPUs leave, and one at least. With a thread on each CPU the guest's first
 * steps, in which most memory accesses are faults of KVM's, take twice as long.
 */
unsigned int pager_sweepers(unsigned int cpus, unsigned int vcpus);

/*
 * -EPERM, -ENOTSUP with words: no userfaultfd, or 1G pages, which nobody should
 * wait for. From here on whoever touches RAM waits for the source.
 */
__must_check int pager_new(struct pager **ret, const struct pager_config *cfg,
			   struct err *err);

/*
 * Ends the threads, as pager_free() does, which still has to come. Only then is
 * all counted in the statistics: a thread that brought bytes may find that
 * another was faster to say so, and has yet to add its number.
 */
void pager_end(struct pager *p);

/*
 * Ends the threads, and userfaultfd; abandons memory that is not there: either
 * all is there, or the VM is at its end, and its vCPUs have been told not to
 * enter the guest again. Never hangs, provided that reads of the source end;
 * source->ops->abort sees to it. NULL is fine.
 */
void pager_free(struct pager *p);

/*
 * Give up: what is not there reads as zeroes from now on, also to those that
 * wait, and ram->lost is set, unless all was there. The VM must not run any
 * more. Any thread, once or more.
 */
void pager_abandon(struct pager *p);

/* From now on a failure lets wait who waits. */
void pager_be_patient(struct pager *p);

/* After failed(): try again what failed and go on. */
void pager_retry(struct pager *p);

/*
 * For sources that are fed: [gpa, gpa + len), whole pages of RAM's kind, has
 * come. buf NULL: it is zero, and the source says so by now. Who waits for it
 * goes on. May block for memory only.
 */
__must_check int pager_put(struct pager *p, struct gpa gpa, const void *buf,
			   uint64_t len);

/* Has all of memory come? Then the pager has nothing more to do. */
bool pager_is_complete(struct pager *p);

/*
 * Wait for the working set, or for all of memory. -ETIMEDOUT; -EIO: the source
 * failed (failed() has the words).
 */
__must_check int pager_wait_ahead(struct pager *p, uint64_t timeout_ns);
__must_check int pager_wait_complete(struct pager *p, uint64_t timeout_ns);

/*
 * What was touched since the start, up to now, in the order of first touches;
 * ret is the caller's to free. Without cfg.record it is empty. -ENOMEM.
 */
__must_check int pager_end_recording(struct pager *p, struct working_set *ret);

struct pager_stats {
	uint64_t total_bytes; /* of RAM */
	uint64_t zero_bytes;  /* that the source has no data of: never asked */
	uint64_t settled_bytes;		      /* there, or found to be zero */
	uint64_t bytes[PAGER_NUM_PRIORITIES]; /* that were brought */
	uint64_t faults;		      /* served, all kinds */
	uint64_t zero_faults;		      /* of them, on zeroes */
	uint64_t late_faults;	 /* of them, on what had come meanwhile */
	uint64_t failures;	 /* of the source */
	uint64_t released_units; /* zero, taken out of userfaultfd by a touch */
	uint64_t collapsed_units; /* made one 2M page */
	uint64_t blocks, blocks_done;
	unsigned int handlers, fillers, uffds;
	/* From when a fault was read to when it was resolved. */
	struct histogram_snapshot service;
};

void pager_read_stats(struct pager *p, struct pager_stats *ret);

#endif
