/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The content of one unit of guest memory, page by page, without faulting in
 * what is not there: private pages that are missing are zero, or what the
 * source behind RAM has; those of a memfd are what the file has.
 *
 * One thread per object. Guest memory does not change meanwhile; or, with a
 * window, the unit was not released yet.
 */
#ifndef QUIRE_SNAPSHOT_UNIT_PAGES_H
#define QUIRE_SNAPSHOT_UNIT_PAGES_H

#include "mem/pagemap.h"
#include "mem/ram.h"
#include "mem/unit_job.h"
#include "mem/window.h"
#include "snapshot/sum.h"

struct unit_pages {
	const struct ram *ram;
	const struct write_window *window; /* NULL: nobody writes */
	struct pagemap pagemap;
	char *scratch; /* a unit, for what had to be read */
	bool scratch_used;
	unsigned int num;
	/* In RAM or in scratch; NULL: all zero. Good until the next load. */
	const char *pages[SUM_UNIT_PAGES];
};

__must_check int unit_pages_init(struct unit_pages *u, const struct ram *ram,
				 const struct write_window *window,
				 struct err *err);
/* Fine on a zeroed one whose pagemap.fd is -1. */
void unit_pages_fini(struct unit_pages *u);

/* Have the pages of where, a unit of RAM. */
__must_check int unit_pages_load(struct unit_pages *u,
				 const struct mem_range *where,
				 struct err *err);

/*
 * Copy what is in RAM, which may be written then. There is a window. -ESTALE:
 * it was written before, by a fault of the kernel.
 */
__must_check int unit_pages_detach(struct unit_pages *u,
				   const struct mem_range *where,
				   struct err *err);

#endif
