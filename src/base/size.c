/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/arith.h"

static int parse_number(const char *text, const char **ret_end, uint64_t *ret)
{
	unsigned long long v;
	char *end;

	/* strtoull takes signs and blanks; a size has neither. */
	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, text[0] == '0' && text[1] == 'x' ? 16 : 10);
	if (errno == ERANGE)
		return -ERANGE;
	*ret_end = end;
	*ret = v;
	return 0;
}

static uint64_t unit_of(char c)
{
	switch (c) {
	case 'k':
	case 'K':
		return KIB;
	case 'm':
	case 'M':
		return MIB;
	case 'g':
	case 'G':
		return GIB;
	case 't':
	case 'T':
		return TIB;
	default:
		return 0;
	}
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
	uint64_t v, unit = 1;
	const char *p;
	int r;

	r = parse_number(text, &p, &v);
	if (r)
		return r;
	if (*p) {
		unit = unit_of(*p);
		if (!unit)
			return -EINVAL;
		p++;
		if (*p && strcmp(p, "B") != 0 && strcmp(p, "iB") != 0)
			return -EINVAL;
	}
	if (!mul_u64(v, unit, &v))
		return -ERANGE;
	*ret_bytes = v;
	return 0;
}

int size_parse_u64(const char *text, uint64_t *ret)
{
	const char *end;
	uint64_t v;
	int r;

	r = parse_number(text, &end, &v);
	if (r)
		return r;
	if (*end)
		return -EINVAL;
	*ret = v;
	return 0;
}

const char *size_format(uint64_t bytes, char *buf, size_t buf_size)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes;
	size_t i = 0;

	while (v >= 1024.0 && i + 1 < ARRAY_SIZE(units)) {
		v /= 1024.0;
		i++;
	}
	if (v == (double)(uint64_t)v)
		snprintf(buf, buf_size, "%.0f %s", v, units[i]);
	else
		snprintf(buf, buf_size, "%.1f %s", v, units[i]);
	return buf;
}
