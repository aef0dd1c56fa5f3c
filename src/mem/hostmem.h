/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What memory this host can give a guest just now: available memory, what the
 * memory cgroups leave, hugetlb pools, whether transparent huge pages are to be
 * had. For a refusal before anything is taken, which says more than a failing
 * population half way through; others may take the memory in between, so it
 * promises nothing, and whoever fills memory goes on asking
 * (mem/hostmem_guard.h).
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

/* The memory cgroup that leaves least (mem/memcg.h). */
struct hostmem_cgroup {
	uint64_t left_bytes; /* UINT64_MAX: nothing limits */
	uint64_t limit_bytes;
	char file[256]; /* "/sys/fs/cgroup/a/memory.max", or its end */
};

struct hostmem {
	uint64_t total_bytes;	  /* 0: not known */
	uint64_t available_bytes; /* UINT64_MAX: not known */
	struct hostmem_cgroup cgroup;
	bool thp_never;
	struct hostmem_pool pool_2m, pool_1g;
};

/* root is put before /proc and /sys: normally "". */
void hostmem_read(struct hostmem *ret, const char *root);

/*
 * Can bytes of guest RAM in this kind of page be filled? -ENOMEM with what is
 * needed, what there is, which file limits it and what to do. Hugetlb pages are
 * the pool's matter alone: memory cgroups do not count them.
 */
__must_check int hostmem_check(const struct hostmem *host, enum ram_page page,
			       uint64_t bytes, struct err *err);

/*
 * What a filled guest leaves to others: 64 MiB, or 1/128 of memory_bytes (of a
 * host, of a node) where that is more.
 */
uint64_t hostmem_reserve(uint64_t memory_bytes);

/*
 * What filling bytes takes in all: with page tables of both levels, if all of
 * it were 4K pages.
 */
uint64_t hostmem_cost(uint64_t bytes);

/* "key  N kB" of a meminfo text, in bytes. False: it is not there. */
bool hostmem_field(const char *text, const char *key, uint64_t *ret_bytes);

#endif
