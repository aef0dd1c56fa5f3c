/* SPDX-License-Identifier: Apache-2.0 */
/* What JSON output shares, on top of jansson. Any thread. */
#ifndef QUIRE_BASE_JSON_H
#define QUIRE_BASE_JSON_H

#include <jansson.h>
#include <stdint.h>

struct histogram_snapshot;

/* JSON integers are signed here: what does not fit becomes the largest. */
json_int_t json_int_u64(uint64_t value);

/*
 * A string. File names may be in any encoding and JSON is UTF-8: bytes above
 * 0x7f of what is not UTF-8 become '?'.
 */
json_t *json_text(const char *text);

/*
 * A string, an integer or a boolean as an option's text ("on", "off"); buf is
 * for numbers. NULL: something else. Valid as long as value and buf.
 */
const char *json_scalar_text(const json_t *value, char buf[32]);

/*
 * count, min_ns, mean_ns, p50_ns, p99_ns, max_ns, and `buckets`, each {le_ns,
 * count} that is not empty. NULL: out of memory.
 */
json_t *json_histogram(const struct histogram_snapshot *histogram);

#endif
