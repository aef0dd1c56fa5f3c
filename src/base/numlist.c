/* SPDX-License-Identifier: Apache-2.0 */
#include "base/numlist.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

static bool list_number(const char **p, unsigned int *ret)
{
	unsigned long v;
	char *end;

	if (!isdigit((unsigned char)**p))
		return false;
	errno = 0;
	v = strtoul(*p, &end, 10);
	if (errno || v >= UINT_MAX)
		return false;
	*p = end;
	*ret = (unsigned int)v;
	return true;
}

bool numlist_next(const char **p, unsigned int *ret_first,
		  unsigned int *ret_last)
{
	const char *at = *p;
	unsigned int first, last;

	if (!list_number(&at, &first))
		return false;
	last = first;
	if (*at == '-') {
		at++;
		if (!list_number(&at, &last) || last < first)
			return false;
	}
	if (*at == ',')
		at++;
	*p = at;
	*ret_first = first;
	*ret_last = last;
	return true;
}

unsigned int numlist_count(const char *text)
{
	unsigned int first, last, count = 0;

	while (numlist_next(&text, &first, &last))
		count += last - first + 1;
	return count;
}
