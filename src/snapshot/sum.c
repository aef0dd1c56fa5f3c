/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/sum.h"

#include "base/compiler.h"
#include "base/zero.h"
#include "snapshot/sum_xxh.h"

static const struct sum_code *code(void)
{
	return __builtin_cpu_supports("avx2") ? &sum_code_avx2 : &sum_code_sse2;
}

uint64_t sum_bytes(const void *bytes, size_t len)
{
	return code()->bytes(bytes, len);
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
	for (unsigned int i = 0; i < num; i++) {
		if (pages[i])
			return not_zero(code()->pages(pages, num));
	}
	return 0;
}
