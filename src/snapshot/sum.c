/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/sum.h"

/* Its state on the stack, and no call for each page. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "base/zero.h"

static const char zero_page[PAGE_4K];

uint64_t sum_bytes(const void *bytes, size_t len)
{
	return XXH3_64bits(bytes, len);
}

static uint64_t not_zero(uint64_t sum)
{
	return sum ? sum : 1;
}

uint64_t sum_unit(const void *bytes, size_t len)
{
	return zero_is_all(bytes, len) ? 0 : not_zero(sum_bytes(bytes, len));
}

uint64_t sum_unit_pages(const char *const *pages, unsigned int num)
{
	XXH3_state_t state;
	bool any = false;

	XXH3_64bits_reset(&state);
	for (unsigned int i = 0, next; i < num; i = next) {
		next = i + 1;
		while (next < num && pages[i] && pages[next] &&
		       pages[next] == pages[i] + (next - i) * PAGE_4K)
			next++;
		XXH3_64bits_update(&state, pages[i] ? pages[i] : zero_page,
				   (next - i) * PAGE_4K);
		any |= pages[i] != NULL;
	}
	return any ? not_zero(XXH3_64bits_digest(&state)) : 0;
}
