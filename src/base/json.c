/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/histogram.h"

json_int_t json_int_u64(uint64_t value)
{
	return (json_int_t)MIN(value, (uint64_t)INT64_MAX);
}

json_t *json_text(const char *text)
{
	json_t *value = json_string(text);
	char *copy;

	if (value)
		return value;
	copy = strdup(text);
	for (char *c = copy; c && *c; c++)
		if ((unsigned char)*c >= 0x80)
			*c = '?';
	value = copy ? json_string(copy) : NULL;
	free(copy);
	return value;
}

const char *json_scalar_text(const json_t *value, char buf[32])
{
	if (json_is_string(value))
		return json_string_value(value);
	if (json_is_boolean(value))
		return json_is_true(value) ? "on" : "off";
	if (!json_is_integer(value))
		return NULL;
	snprintf(buf, 32, "%lld", (long long)json_integer_value(value));
	return buf;
}

json_t *json_histogram(const struct histogram_snapshot *h)
{
	json_t *buckets = json_array();

	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		if (h->buckets[i])
			json_array_append_new(
				buckets,
				json_pack("{s:I, s:I}", "le_ns",
					  json_int_u64(histogram_bucket_max(i)),
					  "count",
					  json_int_u64(h->buckets[i])));
	}
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "count",
			 json_int_u64(h->count), "min_ns", json_int_u64(h->min),
			 "mean_ns",
			 json_int_u64(h->count ? h->sum / h->count : 0),
			 "p50_ns", json_int_u64(histogram_percentile(h, 50)),
			 "p99_ns", json_int_u64(histogram_percentile(h, 99)),
			 "max_ns", json_int_u64(h->max), "buckets", buckets);
}
