/* SPDX-License-Identifier: Apache-2.0 */
/* How many bytes of guest RAM the host has provided, for tests. */
#ifndef QUIRE_TESTS_RAM_PRESENT_H
#define QUIRE_TESTS_RAM_PRESENT_H

#include "cmocka_all.h"

#include "mem/pagemap.h"

static inline uint64_t ram_present(const struct ram *ram, uint64_t gpa,
				   uint64_t len)
{
	struct pagemap pm;
	uint64_t bytes = 0;

	assert_int_equal(pagemap_open(&pm), 0);
	assert_int_equal(pagemap_count_present(&pm, ram, GPA(gpa), len, &bytes),
			 0);
	pagemap_close(&pm);
	return bytes;
}

#endif
