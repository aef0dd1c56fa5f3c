/* SPDX-License-Identifier: Apache-2.0 */
/* The memory map handed to the guest, from RAM size and x86/layout.h. */
#ifndef QUIRE_X86_E820_H
#define QUIRE_X86_E820_H

#include <stdint.h>

#include "mem/ram.h"

enum e820_type {
	E820_RAM = 1,
	E820_RESERVED = 2,
};

struct e820_entry {
	uint64_t addr, size;
	uint32_t type; /* enum e820_type */
};

#define E820_MAX_ENTRIES 16

/* Fill entries in ascending order; returns how many. */
unsigned int e820_build(const struct ram *ram,
			struct e820_entry entries[E820_MAX_ENTRIES]);

#endif
