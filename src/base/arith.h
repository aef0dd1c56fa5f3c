/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Overflow-checked arithmetic, alignment, and little-endian byte access.
 *
 * range_ok() is the one check for "start and length lie inside a space of this
 * size" and is what guards every guest-chosen offset.
 */
#ifndef QUIRE_BASE_ARITH_H
#define QUIRE_BASE_ARITH_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define GIB (1024ull * MIB)
#define TIB (1024ull * GIB)

#define PAGE_4K (4 * KIB)
#define PAGE_2M (2 * MIB)
#define PAGE_1G GIB

#define MIN(a, b)                                  \
	({                                         \
		__typeof__(a) _min_a = (a);        \
		__typeof__(b) _min_b = (b);        \
		_min_a < _min_b ? _min_a : _min_b; \
	})
#define MAX(a, b)                                  \
	({                                         \
		__typeof__(a) _max_a = (a);        \
		__typeof__(b) _max_b = (b);        \
		_max_a > _max_b ? _max_a : _max_b; \
	})

static inline bool is_pow2(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

/* align is a power of two. align_up wraps to 0 on overflow: check first. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t align)
{
	return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
	return (v & (align - 1)) == 0;
}

static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
	return !__builtin_add_overflow(a, b, ret);
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
	return !__builtin_mul_overflow(a, b, ret);
}

/* Do [start, start + len) and [0, size) nest, without wrapping? */
static inline bool range_ok(uint64_t start, uint64_t len, uint64_t size)
{
	return len <= size && start <= size - len;
}

static inline uint64_t div_round_up(uint64_t n, uint64_t d)
{
	return n / d + (n % d != 0);
}

/* Unaligned little-endian loads and stores. */
#define DEFINE_LE(bits)                                                \
	static inline uint##bits##_t le##bits##_load(const void *p)    \
	{                                                              \
		uint##bits##_t v;                                      \
                                                                       \
		memcpy(&v, p, sizeof(v));                              \
		return le##bits##toh(v);                               \
	}                                                              \
	static inline void le##bits##_store(void *p, uint##bits##_t v) \
	{                                                              \
		v = htole##bits(v);                                    \
		memcpy(p, &v, sizeof(v));                              \
	}
DEFINE_LE(16)
DEFINE_LE(32)
DEFINE_LE(64)
#undef DEFINE_LE

#endif
