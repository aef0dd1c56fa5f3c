/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/unit_out.h"

#include <string.h>

#include "base/arith.h"
#include "base/zero.h"

void unit_out_clear(struct unit_out *u)
{
	u->pages.pagemap.fd = -1;
}

int unit_out_init(struct unit_out *u, enum pack_method pack)
{
	int r = stream_out_init(&u->stream, pack);

	if (!r && u->disks->num)
		r = disk_unit_init(&u->disk);
	return r ? r : unit_pages_init(&u->pages, u->ram, NULL, NULL);
}

void unit_out_fini(struct unit_out *u)
{
	unit_pages_fini(&u->pages);
	disk_unit_fini(&u->disk);
	stream_out_fini(&u->stream);
}

/* ---- memory ---- */

static bool follows(const char *a, const char *b, uint64_t distance)
{
	return a ? b == a + distance : !b;
}

static bool has_bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

/* pages[i]: where page i of the unit is to be read; NULL: it is zero. */
static int put_runs(struct stream_out *o, uint64_t start, const uint64_t *bits,
		    const char *const *pages, unsigned int num, bool zeroes,
		    struct err *err)
{
	unsigned int i = 0, next;
	int r = 0;

	for (; !r && i < num; i = next) {
		next = i + 1;
		if (!has_bit(bits, i) || (!pages[i] && !zeroes))
			continue;
		while (next < num && has_bit(bits, next) &&
		       follows(pages[i], pages[next], (next - i) * PAGE_4K))
			next++;
		r = stream_out_put_pages(o, start + i * PAGE_4K, pages[i],
					 (next - i) * PAGE_4K, err);
	}
	return r;
}

/* What was written is there, and read where it is. */
static void look_at(const struct ram *ram, const struct mem_range *where,
		    const uint64_t *bits, const char **pages)
{
	for (unsigned int i = 0; i < where->len / PAGE_4K; i++) {
		const char *at = ram->base + where->start + i * PAGE_4K;

		pages[i] = has_bit(bits, i) && !zero_is_all(at, PAGE_4K) ? at
									 : NULL;
	}
}

/*
 * In the first round alone: what is dirty later was written since, and so is in
 * use again. The log began before, so nothing falls in between.
 */
static void leave_out_unused(struct unit_out *u, const struct mem_range *where,
			     uint64_t bits[WIRE_UNIT_PAGES / 64])
{
	uint64_t unused[WIRE_UNIT_PAGES / 64] = { 0 };
	uint64_t left_out = 0;

	if (!u->hints)
		return;
	u->hints->unused(u->hints->ctx, GPA(where->start), where->len, unused);
	for (size_t w = 0; w < ARRAY_SIZE(unused); w++) {
		left_out += (uint64_t)__builtin_popcountll(bits[w] & unused[w]);
		bits[w] &= ~unused[w];
	}
	atomic_fetch_add(&u->unused_bytes, left_out * PAGE_4K);
}

static int put_first(struct unit_out *u, const struct mem_range *where,
		     const uint64_t *dirty, struct err *err)
{
	unsigned int num = (unsigned int)(where->len / PAGE_4K);
	const struct wire_data_header all = { .type = WIRE_UNIT,
					      .gpa = where->start,
					      .len = where->len };
	uint64_t bits[WIRE_UNIT_PAGES / 64] = { 0 };
	int r;

	memcpy(bits, dirty, div_round_up(num, 64) * sizeof(bits[0]));
	leave_out_unused(u, where, bits);
	r = unit_pages_load(&u->pages, where, err);
	if (!r)
		r = put_runs(&u->stream, where->start, bits, u->pages.pages,
			     num, false, err);
	if (!r && !stream_out_is_empty(&u->stream))
		stream_out_put(&u->stream, &all, NULL, 0);
	return r;
}

int unit_out_memory(struct unit_out *u, const struct mem_range *where,
		    const uint64_t *bits, bool first, struct err *err)
{
	unsigned int num = (unsigned int)(where->len / PAGE_4K);
	const char *pages[WIRE_UNIT_PAGES];
	int r;

	stream_out_begin(&u->stream);
	if (first) {
		r = put_first(u, where, bits, err);
	} else {
		look_at(u->ram, where, bits, pages);
		r = put_runs(&u->stream, where->start, bits, pages, num, true,
			     err);
	}
	return r || stream_out_is_empty(&u->stream)
		       ? r
		       : stream_out_flush(&u->stream, err);
}

/* ---- disks ---- */

void unit_out_next_disk(struct unit_out *u)
{
	disk_unit_forget(&u->disk);
}

int unit_out_disk(struct unit_out *u, unsigned int disk, uint64_t start,
		  uint32_t bits, struct err *err)
{
	int r = disk_unit_read(&u->disk, u->disks->list[disk], start, bits,
			       err);

	if (r)
		return r;
	stream_out_begin(&u->stream);
	for (unsigned int i = 0; i < u->disk.num_runs; i++) {
		const struct disk_run *run = &u->disk.runs[i];
		const struct wire_data_header h = {
			.type = run->data ? WIRE_DISK : WIRE_DISK_ZERO,
			.gpa = run->offset,
			.len = run->len,
			.disk = disk,
		};

		atomic_fetch_add(run->data ? &u->disk_bytes
					   : &u->disk_zero_bytes,
				 run->len);
		stream_out_put(&u->stream, &h, run->data,
			       run->data ? run->len : 0);
	}
	return stream_out_flush(&u->stream, err);
}
