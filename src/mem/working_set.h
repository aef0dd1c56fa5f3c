/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages a guest touches first: for each unit of 2 MiB the set of its
 * pages, and the order in which units were first touched. The set is much the
 * same from one run to the next, the order of single pages is not; so that is
 * not kept.
 *
 * Plain data. snapshot/working_set.h has the file.
 */
#ifndef QUIRE_MEM_WORKING_SET_H
#define QUIRE_MEM_WORKING_SET_H

#include <stdint.h>
#include <stdlib.h>

struct err;

#define WORKING_SET_WORDS 8 /* a bit for each 4K page of 2 MiB */

struct working_set_unit {
	uint64_t gpa; /* multiple of 2 MiB */
	uint64_t pages[WORKING_SET_WORDS];
};

struct working_set {
	uint64_t num;
	struct working_set_unit *units; /* each at most once */
};

/* Content of a set's pages that is kept by itself, unit by unit. */
struct working_set_store {
	/*
	 * Copy what is kept of the set's i-th unit into buf, 2 MiB: pages one
	 * behind the other, those of ret_pages, ascending. The unit's other
	 * pages of the set are zero. 1; 0: this unit is not kept; or a negative
	 * errno, and err says more. Any thread.
	 */
	int (*read)(void *ctx, uint64_t i, void *buf,
		    uint64_t ret_pages[WORKING_SET_WORDS], struct err *err);
	void *ctx;
};

static inline void working_set_fini(struct working_set *set)
{
	free(set->units);
	set->units = NULL;
	set->num = 0;
}

/* How many bits are set. */
static inline unsigned int
working_set_count(const uint64_t pages[WORKING_SET_WORDS])
{
	unsigned int num = 0;

	for (unsigned int w = 0; w < WORKING_SET_WORDS; w++)
		num += (unsigned int)__builtin_popcountll(pages[w]);
	return num;
}

static inline uint64_t working_set_pages(const struct working_set *set)
{
	uint64_t pages = 0;

	for (uint64_t i = 0; i < set->num; i++)
		pages += working_set_count(set->units[i].pages);
	return pages;
}

#endif
