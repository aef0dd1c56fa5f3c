/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes as people write them: "512M", "4G", "64KiB", "4096". Binary units
 * (K, M, G, T, optionally followed by "iB" or "B"); no unit means bytes.
 */
#ifndef QUIRE_BASE_SIZE_H
#define QUIRE_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* -EINVAL: not a size. -ERANGE: does not fit 64 bits. *ret untouched then. */
__must_check int size_parse(const char *text, uint64_t *ret_bytes);

/* A whole decimal or 0x-hexadecimal number, nothing after it; as above. */
__must_check int size_parse_u64(const char *text, uint64_t *ret);

/* "1.5 GiB", "64 MiB", "100 B". Returns buf. */
const char *size_format(uint64_t bytes, char *buf, size_t buf_size);

#endif
