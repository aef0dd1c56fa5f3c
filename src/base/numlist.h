/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of small numbers as the kernel writes them for CPUs and nodes: "0-3,8".
 * Any thread; nothing in the text is trusted.
 */
#ifndef QUIRE_BASE_NUMLIST_H
#define QUIRE_BASE_NUMLIST_H

#include <stdbool.h>

/*
 * Walk the list: true with the next range, false at the end or at text that is
 * none. *p advances past what was read, so that **p tells which of the two.
 */
bool numlist_next(const char **p, unsigned int *ret_first,
		  unsigned int *ret_last);

/* How many numbers the list names. */
unsigned int numlist_count(const char *text);

#endif
