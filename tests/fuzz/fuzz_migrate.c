/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer of a migration sends (migrate/wire.c): prefaces, control headers,
 * MACHINE, READY, text, maps of pages, whole data streams (with disks), what
 * follows a VM, and compressed pages. The first byte says which.
 * Checked: what is accepted is within its limits, a range of a stream is in its
 * memory, or its disk, and its own, and what is put again is what was read.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "migrate/pack.h"
#include "migrate/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void preface(const uint8_t *data, size_t size)
{
	uint8_t in[WIRE_PREFACE_BYTES] = { 0 }, out[WIRE_PREFACE_BYTES];
	struct wire_preface p;
	struct err err = ERR_INIT;

	memcpy(in, data, MIN(size, sizeof(in)));
	if (wire_parse_preface(in, &p, &err)) {
		BUG_ON(!err.text[0]);
		return;
	}
	BUG_ON(p.num_streams > WIRE_MAX_STREAMS ||
	       (p.stream > p.num_streams && p.stream != WIRE_URGENT));
	wire_put_preface(out, &p);
	BUG_ON(memcmp(in, out, sizeof(in)) != 0);
}

static void control(const uint8_t *data, size_t size)
{
	uint8_t in[WIRE_CONTROL_BYTES] = { 0 }, out[WIRE_CONTROL_BYTES];
	struct wire_control_header h;
	struct err err = ERR_INIT;

	memcpy(in, data, MIN(size, sizeof(in)));
	for (int wanted = WIRE_MACHINE; wanted <= WIRE_LANDED; wanted++) {
		if (wanted == WIRE_FAILED || wanted == WIRE_ABORT)
			continue;
		if (wire_parse_control(in, (enum wire_control)wanted, &h,
				       &err)) {
			BUG_ON(!err.text[0]);
			continue;
		}
		BUG_ON(h.bytes > WIRE_MAX_STATE);
		BUG_ON((int)h.type != wanted && h.type != WIRE_ABORT &&
		       h.type != WIRE_FAILED);
		wire_put_control(out, h.type, h.bytes);
		BUG_ON(memcmp(in, out, sizeof(in)) != 0);
	}
}

static void machine(const uint8_t *data, size_t size)
{
	static uint8_t out[WIRE_MAX_MACHINE];
	struct wire_machine m;
	struct err err = ERR_INIT;

	if (wire_parse_machine(data, size, &m, &err)) {
		BUG_ON(!err.text[0]);
		return;
	}
	BUG_ON(m.num_regions > RAM_MAX_REGIONS);
	BUG_ON(m.num_devices > VM_MAX_DEVICES);
	for (unsigned int i = 0; i < m.num_devices; i++)
		BUG_ON(!memchr(m.devices[i].id, 0, sizeof(m.devices[i].id)) ||
		       !memchr(m.devices[i].cls, 0, sizeof(m.devices[i].cls)));
	BUG_ON(m.num_disks > m.num_devices);
	for (unsigned int i = 0; i < m.num_disks; i++)
		BUG_ON(m.disks[i].device >= m.num_devices ||
		       !m.disks[i].bytes || m.disks[i].bytes % 512);
	BUG_ON(wire_put_machine(out, &m) != size);
	BUG_ON(memcmp(out, data, size) != 0);
	(void)!wire_machine_compare(&m, &m, &err);
}

static void words(const uint8_t *data, size_t size)
{
	uint8_t in[WIRE_READY_BYTES] = { 0 };
	char text[WIRE_MAX_TEXT + 1];
	struct wire_ready r;

	memcpy(in, data, MIN(size, sizeof(in)));
	(void)!wire_parse_ready(in, &r, NULL);
	wire_parse_text(data, size, text);
	for (const char *c = text; *c; c++)
		BUG_ON((unsigned char)*c < 0x20);
}

static void check_range(const struct wire_stream *s,
			const struct wire_data_header *h)
{
	unsigned int found = 0;

	BUG_ON(!h->len || h->len > WIRE_UNIT_BYTES);
	BUG_ON(h->gpa / WIRE_UNIT_BYTES !=
	       (h->gpa + h->len - 1) / WIRE_UNIT_BYTES);
	BUG_ON(wire_stream_of(h->gpa, s->num) != s->index);
	for (unsigned int i = 0; i < s->num_regions; i++)
		found += h->gpa >= s->regions[i].start &&
			 range_ok(h->gpa - s->regions[i].start, h->len,
				  s->regions[i].len);
	BUG_ON(found != 1);
}

static void check_disk(const struct wire_stream *s,
		       const struct wire_data_header *h)
{
	uint64_t size;

	BUG_ON(h->disk >= s->num_disks || h->packed);
	size = s->disk_bytes[h->disk];
	BUG_ON(!h->len || h->len > WIRE_UNIT_BYTES ||
	       !range_ok(h->gpa, h->len, size));
	BUG_ON(h->gpa % WIRE_CLUSTER_BYTES);
	BUG_ON(h->len % WIRE_CLUSTER_BYTES && h->gpa + h->len != size);
	BUG_ON(h->gpa / WIRE_UNIT_BYTES !=
	       (h->gpa + h->len - 1) / WIRE_UNIT_BYTES);
	BUG_ON(wire_stream_of(h->gpa, s->num) != s->index);
}

static void stream(const uint8_t *data, size_t size)
{
	struct wire_stream s = {
		.num_regions = 2,
		.features = WIRE_FEATURES,
		.regions = { { 0, 9 * WIRE_UNIT_BYTES + 20480 },
			     { 4 * GIB, 5 * WIRE_UNIT_BYTES } },
		.num_disks = 2,
		.disk_bytes = { 9 * WIRE_UNIT_BYTES + WIRE_CLUSTER_BYTES + 1536,
				INT64_MAX / 512 * 512 },
	};
	struct wire_data_header h;
	struct err err = ERR_INIT;

	if (size < 1)
		return;
	s.num = 1 + (data[0] & 7u);
	s.index = 1 + (data[0] >> 3) % s.num;
	for (data++, size--; size >= WIRE_DATA_BYTES;) {
		uint64_t rounds = s.rounds;

		if (wire_parse_data(data, &s, &h, &err)) {
			BUG_ON(!err.text[0]);
			return;
		}
		BUG_ON(s.rounds - rounds > 1);
		if (h.type == WIRE_PAGES || h.type == WIRE_ZERO ||
		    h.type == WIRE_UNIT || h.packed)
			check_range(&s, &h);
		if (h.type == WIRE_DISK || h.type == WIRE_DISK_ZERO)
			check_disk(&s, &h);
		BUG_ON(h.packed && h.packed >= h.len);
		data += WIRE_DATA_BYTES;
		size -= WIRE_DATA_BYTES;
	}
}

/* Into as much as is said and no more; and there and back again. */
static void packed(const uint8_t *data, size_t size)
{
	enum pack_method method = size && data[0] & 1 ? PACK_LZ4 : PACK_ZSTD;
	size_t len = 4096 * (1 + (size ? data[0] >> 4 : 0)), n;
	uint8_t *out = malloc(len), *small = malloc(size + 1);
	struct unpacker *u;
	struct packer *p;

	if (!size || !out || !small || unpacker_new(&u))
		goto out;
	(void)!unpacker_unpack(u, method, data + 1, size - 1, out, len);
	if (!packer_new(&p, method)) {
		n = packer_pack(p, data, size, small, size);
		packer_free(p);
		if (n && size <= len) {
			BUG_ON(unpacker_unpack(u, method, small, n, out, size));
			BUG_ON(memcmp(out, data, size) != 0);
		}
	}
	unpacker_free(u);
out:
	free(out);
	free(small);
}

/* Regions that do not end with a unit, nor with a word of a map. */
static const struct ram memory = {
	.num_regions = 2,
	.regions = { { .base = { 0 }, .size = 2 * WIRE_UNIT_BYTES + 20480 },
		     { .base = { 4 * GIB }, .size = WIRE_UNIT_BYTES } },
};

static void map(const uint8_t *data, size_t size)
{
	struct page_map m;
	struct err err = ERR_INIT;
	uint8_t *out;

	BUG_ON(page_map_init(&m, &memory));
	if (wire_parse_map(data, size, &m, &err)) {
		BUG_ON(!err.text[0]);
	} else {
		BUG_ON(size != wire_map_bytes(&m));
		BUG_ON(page_map_count(&m) > 3 * WIRE_UNIT_PAGES + 5);
		out = malloc(size);
		BUG_ON(!out);
		wire_put_map(out, &m);
		BUG_ON(memcmp(out, data, size) != 0);
		free(out);
	}
	page_map_fini(&m);
}

static void complete(const uint8_t *data, size_t size)
{
	uint8_t in[WIRE_COMPLETE_BYTES] = { 0 }, out[WIRE_COMPLETE_BYTES];
	enum wire_complete how;

	memcpy(in, data, MIN(size, sizeof(in)));
	if (wire_parse_complete(in, &how, NULL))
		return;
	wire_put_complete(out, how);
	BUG_ON(memcmp(in, out, sizeof(in)) != 0);
}

static void again(const uint8_t *data, size_t size)
{
	uint8_t in[WIRE_AGAIN_BYTES] = { 0 }, out[WIRE_AGAIN_BYTES];
	uint64_t features;

	memcpy(in, data, MIN(size, sizeof(in)));
	if (wire_parse_again(in, &features, NULL))
		return;
	BUG_ON(features & ~WIRE_FEATURES_PACKED);
	wire_put_again(out, features);
	BUG_ON(memcmp(in, out, sizeof(in)) != 0);
}

static void follow_one(struct wire_stream *s, struct page_map *pending,
		       struct page_map *asked, const uint8_t *data)
{
	struct wire_data_header h;
	struct err err = ERR_INIT;
	bool ended = s->ended;

	if (wire_parse_follow(data, s, pending, &h, &err)) {
		BUG_ON(!err.text[0]);
	} else if (h.type != WIRE_DONE) {
		BUG_ON(ended || !page_map_has(pending, h.gpa, h.len));
		BUG_ON(h.packed && h.packed >= h.len);
		BUG_ON(h.packed && !s->features);
		if (s->index != WIRE_URGENT)
			check_range(s, &h);
	}
	if (!wire_parse_request(data, pending, asked, &h, &err)) {
		BUG_ON(!page_map_test(pending, h.gpa));
		/* Once. */
		BUG_ON(!wire_parse_request(data, pending, asked, &h, &err));
	}
}

static void follow(const uint8_t *data, size_t size)
{
	struct wire_stream s = { .num_regions = memory.num_regions };
	struct page_map pending, asked;

	if (size < 1)
		return;
	for (unsigned int i = 0; i < memory.num_regions; i++)
		s.regions[i] = (struct wire_range){
			.start = memory.regions[i].base.v,
			.len = memory.regions[i].size,
		};
	s.num = 1 + (data[0] & 3u);
	s.index = data[0] & 4 ? WIRE_URGENT : 1 + (data[0] >> 3) % s.num;
	s.features = data[0] & 0x80 ? WIRE_FEATURES_PACKED : 0;
	BUG_ON(page_map_init(&pending, &memory) ||
	       page_map_init(&asked, &memory));
	page_map_set(&pending, 8 * PAGE_4K, WIRE_UNIT_BYTES);
	page_map_set(&pending, 4 * GIB, PAGE_4K);
	for (data++, size--; size >= WIRE_DATA_BYTES;) {
		follow_one(&s, &pending, &asked, data);
		data += WIRE_DATA_BYTES;
		size -= WIRE_DATA_BYTES;
	}
	page_map_fini(&pending);
	page_map_fini(&asked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const parsers[])(const uint8_t *, size_t) = {
		preface, control, machine,  words, stream,
		packed,	 map,	  complete, again, follow,
	};

	if (size)
		parsers[data[0] % ARRAY_SIZE(parsers)](data + 1, size - 1);
	return 0;
}
