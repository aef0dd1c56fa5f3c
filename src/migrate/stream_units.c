/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/stream_units.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "migrate/wire.h"

/* Those of a region, behind what is there; without a list they are counted. */
static void add_region(struct stream_units *u, const struct ram_region *r,
		       unsigned int num, unsigned int index)
{
	uint64_t end = r->base.v + r->size;

	for (uint64_t at = r->base.v; at < end; at += WIRE_UNIT_BYTES) {
		uint64_t len = MIN(end - at, WIRE_UNIT_BYTES);

		if (wire_stream_of(at, num) != index)
			continue;
		if (u->list)
			u->list[u->num] = (struct mem_range){
				.start = at,
				.len = len,
			};
		u->num++;
	}
}

static void add_all(struct stream_units *u, const struct ram *ram,
		    unsigned int num, unsigned int index)
{
	u->num = 0;
	for (unsigned int i = 0; i < ram->num_regions; i++)
		add_region(u, &ram->regions[i], num, index);
}

int stream_units_make(struct stream_units *u, const struct ram *ram,
		      unsigned int num, unsigned int index)
{
	u->list = NULL;
	add_all(u, ram, num, index);
	/* There may be none. */
	u->list = calloc(u->num + 1, sizeof(*u->list));
	if (!u->list)
		return -ENOMEM;
	add_all(u, ram, num, index);
	return 0;
}
