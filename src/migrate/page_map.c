/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

int page_map_init(struct page_map *m, const struct ram *ram)
{
	memset(m, 0, sizeof(*m));
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		struct page_map_region *r = &m->regions[i];

		r->start = ram->regions[i].base.v;
		r->pages = ram->regions[i].size / PAGE_4K;
		r->words = calloc(page_map_words(r), sizeof(*r->words));
		if (!r->words) {
			page_map_fini(m);
			return -ENOMEM;
		}
		m->num_regions++;
	}
	return 0;
}

void page_map_fini(struct page_map *m)
{
	for (unsigned int i = 0; i < m->num_regions; i++)
		free((void *)m->regions[i].words);
	memset(m, 0, sizeof(*m));
}

static const struct page_map_region *find(const struct page_map *m,
					  uint64_t gpa, uint64_t len)
{
	for (unsigned int i = 0; i < m->num_regions; i++) {
		const struct page_map_region *r = &m->regions[i];

		if (gpa >= r->start &&
		    range_ok(gpa - r->start, len, r->pages * PAGE_4K))
			return r;
	}
	return NULL;
}

/* Up to 64 pages that are in one word: which bits, and how many. */
static uint64_t mask_at(uint64_t page, uint64_t left, uint64_t *ret_num)
{
	*ret_num = MIN(left, 64 - page % 64);
	return (*ret_num == 64 ? UINT64_MAX : (1ull << *ret_num) - 1)
	       << (page % 64);
}

bool page_map_has(const struct page_map *m, uint64_t gpa, uint64_t len)
{
	const struct page_map_region *r = find(m, gpa, len);
	uint64_t page, left = len / PAGE_4K, num;

	if (!r)
		return false;
	for (page = (gpa - r->start) / PAGE_4K; left;
	     page += num, left -= num) {
		uint64_t mask = mask_at(page, left, &num);

		if ((atomic_load(&r->words[page / 64]) & mask) != mask)
			return false;
	}
	return true;
}

bool page_map_test(const struct page_map *m, uint64_t gpa)
{
	return page_map_has(m, gpa, PAGE_4K);
}

bool page_map_has_more(const struct page_map *m, const struct page_map *other,
		       uint64_t gpa, uint64_t len)
{
	const struct page_map_region *r = find(m, gpa, len);
	const struct page_map_region *o = find(other, gpa, len);
	uint64_t page, left = len / PAGE_4K, num;

	BUG_ON(!r || !o);
	for (page = (gpa - r->start) / PAGE_4K; left;
	     page += num, left -= num) {
		uint64_t mask = mask_at(page, left, &num);

		if (atomic_load(&r->words[page / 64]) &
		    ~atomic_load(&o->words[page / 64]) & mask)
			return true;
	}
	return false;
}

static uint64_t change(struct page_map *m, uint64_t gpa, uint64_t len, bool set)
{
	const struct page_map_region *r = find(m, gpa, len);
	uint64_t page, left = len / PAGE_4K, num, sum = 0;

	BUG_ON(!r);
	for (page = (gpa - r->start) / PAGE_4K; left;
	     page += num, left -= num) {
		_Atomic uint64_t *word = &r->words[page / 64];
		uint64_t mask = mask_at(page, left, &num);
		uint64_t old = set ? ~atomic_fetch_or(word, mask)
				   : atomic_fetch_and(word, ~mask);

		sum += (uint64_t)__builtin_popcountll(old & mask);
	}
	return sum;
}

uint64_t page_map_set(struct page_map *m, uint64_t gpa, uint64_t len)
{
	return change(m, gpa, len, true);
}

uint64_t page_map_clear(struct page_map *m, uint64_t gpa, uint64_t len)
{
	return change(m, gpa, len, false);
}

uint64_t page_map_run(const struct page_map *m, uint64_t gpa, uint64_t len,
		      bool *ret_set)
{
	const struct page_map_region *r = find(m, gpa, len);
	uint64_t first, page, end;

	BUG_ON(!r || !len);
	first = page = (gpa - r->start) / PAGE_4K;
	end = first + len / PAGE_4K;
	*ret_set = atomic_load(&r->words[page / 64]) >> (page % 64) & 1;
	while (page < end) {
		uint64_t word = atomic_load(&r->words[page / 64]);
		uint64_t other = (*ret_set ? ~word : word) >> (page % 64);

		if (other) {
			page += (uint64_t)__builtin_ctzll(other);
			break;
		}
		page = align_down(page, 64) + 64;
	}
	/* What ran may have changed under it: one page at least. */
	page = MAX(MIN(page, end), first + 1);
	return (page - first) * PAGE_4K;
}

uint64_t page_map_count(const struct page_map *m)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < m->num_regions; i++) {
		const struct page_map_region *r = &m->regions[i];

		for (uint64_t w = 0; w < page_map_words(r); w++)
			sum += (uint64_t)__builtin_popcountll(
				atomic_load(&r->words[w]));
	}
	return sum;
}
