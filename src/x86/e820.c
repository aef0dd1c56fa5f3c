/* SPDX-License-Identifier: Apache-2.0 */
#include "x86/e820.h"

#include <string.h>

#include "base/compiler.h"
#include "x86/layout.h"

struct e820_map {
	struct e820_entry *entries;
	unsigned int num;
};

/* Insert [start, end) in ascending order; nothing when it is empty. */
static void add(struct e820_map *map, uint64_t start, uint64_t end,
		enum e820_type type)
{
	unsigned int i = map->num;

	if (start >= end)
		return;
	/* RAM_MAX_REGIONS and the fixed ranges below fit. */
	BUG_ON(map->num == E820_MAX_ENTRIES);
	for (; i > 0 && map->entries[i - 1].addr > start; i--)
		map->entries[i] = map->entries[i - 1];
	map->entries[i] = (struct e820_entry){
		.addr = start,
		.size = end - start,
		.type = type,
	};
	map->num++;
}

/*
 * The last KiB below 640K is reserved as on a PC: kernels put their own
 * start-up code right under it. Between 640K and 1M is RAM too, but only the
 * ACPI area has a meaning; it is plain reserved, since the guest writes there
 * (FACS) and methods read there for as long as it runs.
 */
unsigned int e820_build(const struct ram *ram,
			struct e820_entry entries[E820_MAX_ENTRIES])
{
	struct e820_map map = { .entries = entries };

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t start = ram->regions[i].base.v;
		uint64_t end = start + ram->regions[i].size;

		add(&map, start, MIN(end, LAYOUT_EBDA), E820_RAM);
		add(&map, MAX(start, LAYOUT_HIGH_RAM), end, E820_RAM);
	}
	add(&map, LAYOUT_EBDA, 0xa0000, E820_RESERVED);
	add(&map, LAYOUT_ACPI_START, LAYOUT_ACPI_END, E820_RESERVED);
	/* Linux uses ECAM only if the map or ACPI reserves it. */
	add(&map, LAYOUT_ECAM_START, LAYOUT_ECAM_START + LAYOUT_ECAM_SIZE,
	    E820_RESERVED);
	/* KVM's own pages on Intel hosts (identity map and task state). */
	add(&map, LAYOUT_KVM_IDENTITY, LAYOUT_KVM_TSS + 3 * PAGE_4K,
	    E820_RESERVED);
	return map.num;
}
