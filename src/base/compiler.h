/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compiler attributes and the one way to stop on a programming bug.
 *
 * BUG_ON aborts in release builds too: it is for conditions that only a defect
 * in quire can cause. It must never be reachable from bytes that a guest, a
 * peer, a file or an API client chose; those get an error instead.
 */
#ifndef QUIRE_BASE_COMPILER_H
#define QUIRE_BASE_COMPILER_H

#include <stdio.h>
#include <stdlib.h>

#define __must_check	   __attribute__((warn_unused_result))
#define __printf_fmt(a, b) __attribute__((format(printf, a, b)))
#define __unused_arg	   __attribute__((unused))
#define __packed_struct	   __attribute__((packed))

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) \
	((type *)((char *)(ptr)-offsetof(type, member)))

#define BUG_ON(cond)                                                        \
	do {                                                                \
		if (unlikely(cond)) {                                       \
			fprintf(stderr, "quire: BUG: %s at %s:%d\n", #cond, \
				__FILE__, __LINE__);                        \
			abort();                                            \
		}                                                           \
	} while (0)

#endif
