/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What memory this host can give a guest just now: available memory, hugetlb
 * pools, whether transparent huge pages are to be had. For a refusal before
 * anything is taken, which says more than a failing population half way
 * through; others may take the memory in between, so it promises nothing.
 *
 * Source: Documentation/filesystems/proc.rst (meminfo),
 * Documentation/admin-guide/mm/hugetlbpage.rst and transhuge.rst.
 *
 * Any thread.
 */
#ifndef QUIRE_MEM_HOSTMEM_H
#define QUIRE_MEM_HOSTMEM_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/ram.h"

/* A hugetlb pool, in its pages. All zero when the host has none of the size. */
struct hostmem_pool {
	bool exists;
	uint64_t total;
	uint64_t idle;	 /* free and not reserved */
	uint64_t growth; /* how many more it may take from available memory */
};

struct hostmem {
	uint64_t available_bytes; /* UINT64_MAX: not known */
	bool thp_never;
	struct hostmem_pool pool_2m, pool_1g;
};

/* root is put before /proc and /sys: normally "". */
void hostmem_read(struct hostmem *ret, const char *root);

/*
 * Can bytes of guest RAM in this kind of page be filled? -ENOMEM with what is
 * needed, what there is and what to do.
 */
__must_check int hostmem_check(const struct hostmem *host, enum ram_page page,
			       uint64_t bytes, struct err *err);

#endif
