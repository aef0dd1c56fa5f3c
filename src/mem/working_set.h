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

#define WORKING_SET_WORDS 8 /* a bit for each 4K page of 2 MiB */

struct working_set_unit {
	uint64_t gpa; /* multiple of 2 MiB */
	uint64_t pages[WORKING_SET_WORDS];
};

struct working_set {
	uint64_t num;
	struct working_set_unit *units; /* each at most once */
};

static inline void working_set_fini(struct working_set *set)
{
	free(set->units);
	set->units = NULL;
	set->num = 0;
}

static inline uint64_t working_set_pages(const struct working_set *set)
{
	uint64_t pages = 0;

	for (uint64_t i = 0; i < set->num; i++)
		for (unsigned int w = 0; w < WORKING_SET_WORDS; w++)
			pages += (uint64_t)__builtin_popcountll(
				set->units[i].pages[w]);
	return pages;
}

#endif
