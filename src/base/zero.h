/* SPDX-License-Identifier: Apache-2.0 */
/* Is memory all zero? */
#ifndef QUIRE_BASE_ZERO_H
#define QUIRE_BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * len is a multiple of 8, p aligned to 8. Eight words a turn, for the compiler
 * to make vectors of.
 */
static inline bool zero_is_all(const void *p, size_t len)
{
	const uint64_t *word = p, *end = word + len / sizeof(*word);

	for (; end - word >= 8; word += 8) {
		if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] |
		    word[6] | word[7])
			return false;
	}
	for (; word < end; word++) {
		if (*word)
			return false;
	}
	return true;
}

#endif
