/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest-physical address: a one-member struct, so that a host address or an
 * offset in its place does not compile.
 */
#ifndef QUIRE_MEM_GPA_H
#define QUIRE_MEM_GPA_H

#include <stdint.h>

struct gpa {
	uint64_t v;
};

#define GPA(x) ((struct gpa){ .v = (x) })

static inline struct gpa gpa_add(struct gpa a, uint64_t offset)
{
	return GPA(a.v + offset);
}

#endif
