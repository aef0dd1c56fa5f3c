/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the pager share; pager.c has the theory of operation. */
#ifndef QUIRE_MEM_PAGER_PRIV_H
#define QUIRE_MEM_PAGER_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "mem/pagemap.h"
#include "mem/pager.h"
#include "mem/restore.h"

#define UNIT_BYTES MEM_UNIT_BYTES
#define UNIT_PAGES (MEM_UNIT_BYTES / 4096)

/* What a handler's epoll says for the stop; others are indices of uffds. */
#define PAGER_STOP UINT32_MAX

enum unit_kind {
	UNIT_NONE, /* between regions */
	UNIT_DATA,
	UNIT_ZERO,
	UNIT_RELEASED, /* zero, and not in userfaultfd any more */
};

struct pager_unit {
	_Atomic uint8_t kind;
	_Atomic uint8_t touched; /* is in the order of touches */
	_Atomic uint16_t left;	 /* pages that are not settled */
};

/* A stretch of units with one userfaultfd. */
struct pager_block {
	struct mem_range range;	     /* of RAM */
	struct mem_range registered; /* len 0: nothing */
	unsigned int uffd;	     /* index */
	_Atomic uint32_t left;	     /* units that are not settled */
	_Atomic bool done;	     /* out of userfaultfd */
	struct pager_block *next_finish;
};

/* A thread's own; made on the control thread, for the sandbox allows little. */
struct pager_thread {
	struct pager *pager;
	pthread_t thread;
	char *buf;    /* a unit; of a handler a page, if not by_unit */
	int epoll_fd; /* handler: all userfaultfds, and the stop */
	struct pagemap pagemap; /* filler */
};

struct pager {
	struct pager_config cfg;
	uint64_t page;	    /* that a fault brings: 4K or 2M */
	uint64_t num_units; /* of the span */
	struct pager_unit *units;
	_Atomic uint64_t *settled; /* a bit per 4K page of the span */
	_Atomic uint64_t *touched; /* likewise, with cfg.record; or NULL */
	struct pager_block *blocks;
	unsigned int num_blocks;
	uint64_t block_bytes;
	uint32_t *block_of; /* unit to block */
	int *uffds;
	unsigned int num_uffds;
	struct working_set ahead;
	uint64_t *ahead_place; /* of each in the set that was given */
	uint64_t zero_bytes;
	const char *zeroes; /* a page of them */

	int stop_fd; /* eventfd: readable once the handlers shall end */
	struct pager_thread *handlers, *fillers; /* as many as cfg says */
	unsigned int num_handlers, num_fillers;	 /* that run */
	_Atomic bool stop;
	_Atomic bool abandoned;
	_Atomic bool impatient;
	_Atomic bool recording;
	_Atomic unsigned int serving; /* faults, just now */
	_Atomic unsigned int splits;  /* of mappings, by releasing zeroes */
	_Atomic bool collapse_off;    /* this kernel cannot */
	_Atomic bool store_off;	      /* cfg.store failed once */

	pthread_mutex_t lock; /* all below; the last lock taken */
	pthread_cond_t changed;
	bool failed;
	struct pager_block *finish; /* complete, to be taken out */
	uint64_t blocks_left;
	uint64_t next_ahead, next_sweep; /* units to be taken */
	unsigned int filling_ahead;	 /* threads at work on it */
	unsigned int sweeping;		 /* threads that bring the rest */
	bool ahead_done, all_done;
	uint64_t *order; /* units in the order of touches */
	uint64_t num_order;
	uint64_t sweep_began_ns;

	_Atomic uint64_t bytes[PAGER_NUM_PRIORITIES];
	_Atomic uint64_t settled_bytes, faults, zero_faults, late_faults;
	_Atomic uint64_t failures, released_units, collapsed_units;
	struct histogram service;
};

struct pager_block *pager_block_at(const struct pager *p, uint64_t gpa);
int pager_uffd_at(const struct pager *p, uint64_t gpa);

/* What fillers and others tell when the source fails. */
void pager_fail(struct pager *p, const struct err *err);

/* [gpa, gpa + len) is there, or is zero and needs no page. */
void pager_settle(struct pager *p, uint64_t gpa, uint64_t len);
bool pager_is_settled(const struct pager *p, uint64_t gpa);

/*
 * Install bytes that came with this priority, and settle. 1: some were new; 0:
 * all was there already, and nobody was woken; or a negative errno.
 */
__must_check int pager_install(struct pager *p, uint64_t gpa, const void *buf,
			       uint64_t len, enum pager_priority priority);

/*
 * The same for bytes of one unit that came at once, where they are not settled;
 * zeroes get no page. Returns 0 or 1, or a negative errno.
 */
__must_check int pager_install_runs(struct pager *p, uint64_t gpa,
				    const char *buf, uint64_t len,
				    enum pager_priority priority);

/* Main functions of the threads; arg is a struct pager_thread. */
void *pager_handler(void *arg);
void *pager_filler(void *arg);

#endif
