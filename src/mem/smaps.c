/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/smaps.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"

struct smaps_field {
	const char *name;
	bool resident, huge;
};

/* Hugetlb pages are not part of Rss. */
static const struct smaps_field fields[] = {
	{ "Rss:", true, false },
	{ "AnonHugePages:", false, true },
	{ "ShmemPmdMapped:", false, true },
	{ "Shared_Hugetlb:", true, true },
	{ "Private_Hugetlb:", true, true },
};

static void add_field(struct smaps_usage *usage, bool guest, const char *name,
		      uint64_t bytes)
{
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		if (strcmp(fields[i].name, name) != 0)
			continue;
		if (fields[i].resident && guest)
			usage->guest_resident_bytes += bytes;
		if (fields[i].resident && !guest)
			usage->other_resident_bytes += bytes;
		if (fields[i].huge && guest)
			usage->guest_huge_bytes += bytes;
	}
}

int smaps_read(const struct ram *ram, struct smaps_usage *ret)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/smaps", "re");
	uintptr_t ram_start = (uintptr_t)ram->base;
	struct smaps_usage usage = { 0 };
	bool guest = false;
	char line[512];

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		unsigned long start, end, kib;
		char name[32];

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			guest = start >= ram_start &&
				end <= ram_start + ram->span;
		else if (sscanf(line, "%31s %lu kB", name, &kib) == 2)
			add_field(&usage, guest, name, kib * KIB);
	}
	if (ferror(f))
		return -EIO;
	*ret = usage;
	return 0;
}
