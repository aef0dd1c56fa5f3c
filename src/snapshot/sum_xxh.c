/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/sum_xxh.h"

/* Its state on the stack, and no call for each page. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/arith.h"

/* The build names the other one, with -mavx2. */
#ifndef SUM_CODE
#define SUM_CODE sum_code_sse2
#endif

static const char zero_page[PAGE_4K];

static uint64_t of_bytes(const void *bytes, size_t len)
{
	return XXH3_64bits(bytes, len);
}

static uint64_t of_pages(const char *const *pages, unsigned int num)
{
	XXH3_state_t state;

	XXH3_64bits_reset(&state);
	for (unsigned int i = 0, next; i < num; i = next) {
		next = i + 1;
		while (next < num && pages[i] && pages[next] &&
		       pages[next] == pages[i] + (next - i) * PAGE_4K)
			next++;
		XXH3_64bits_update(&state, pages[i] ? pages[i] : zero_page,
				   (next - i) * PAGE_4K);
	}
	return XXH3_64bits_digest(&state);
}

const struct sum_code SUM_CODE = { .bytes = of_bytes, .pages = of_pages };
