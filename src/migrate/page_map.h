/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bit for each 4K page of guest memory, by guest-physical address: what is
 * still to come, what was sent. Ranges are whole pages of one region.
 *
 * Threads: any, at once, but for init and fini; each bit is changed by one of
 * those that try at once.
 */
#ifndef QUIRE_MIGRATE_PAGE_MAP_H
#define QUIRE_MIGRATE_PAGE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/ram.h"

struct page_map_region {
	uint64_t start, pages;
	_Atomic uint64_t *words;
};

struct page_map {
	unsigned int num_regions;
	struct page_map_region regions[RAM_MAX_REGIONS];
};

/* All clear. -ENOMEM. */
__must_check int page_map_init(struct page_map *m, const struct ram *ram);
/* Fine on a zeroed one, and twice. */
void page_map_fini(struct page_map *m);

bool page_map_test(const struct page_map *m, uint64_t gpa);
/* Are all of these set? Not RAM: no. */
bool page_map_has(const struct page_map *m, uint64_t gpa, uint64_t len);
/* Is any of these set, but not in other? other is of the same RAM. */
bool page_map_has_more(const struct page_map *m, const struct page_map *other,
		       uint64_t gpa, uint64_t len);
/* Returns how many pages were not as wanted before. */
uint64_t page_map_set(struct page_map *m, uint64_t gpa, uint64_t len);
uint64_t page_map_clear(struct page_map *m, uint64_t gpa, uint64_t len);
/* As much of [gpa, gpa + len) as is alike, and whether it is set. */
uint64_t page_map_run(const struct page_map *m, uint64_t gpa, uint64_t len,
		      bool *ret_set);
uint64_t page_map_count(const struct page_map *m);

/* A word for each 64 pages of a region, the last one not whole. */
static inline uint64_t page_map_words(const struct page_map_region *r)
{
	return (r->pages + 63) / 64;
}

#endif
