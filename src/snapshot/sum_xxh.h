/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH3 itself, compiled twice: for what each x86-64 has (SSE2), and for AVX2,
 * which takes two thirds of the time. The sums are the same.
 */
#ifndef QUIRE_SNAPSHOT_SUM_XXH_H
#define QUIRE_SNAPSHOT_SUM_XXH_H

#include <stddef.h>
#include <stdint.h>

struct sum_code {
	uint64_t (*bytes)(const void *bytes, size_t len);
	/* Of pages in different places; NULL is a page of zeroes. */
	uint64_t (*pages)(const char *const *pages, unsigned int num);
};

extern const struct sum_code sum_code_sse2;
/* Only where the CPU has it. */
extern const struct sum_code sum_code_avx2;

#endif
