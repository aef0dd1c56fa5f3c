/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/track.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

static uint64_t num_words(const struct vm_track *t)
{
	uint64_t words = 0;

	for (unsigned int i = 0; i < t->ram->num_regions; i++)
		words += ram_region_words(&t->ram->regions[i]);
	return words;
}

/* t->num: there is none. */
static unsigned int find(const struct vm_track *t, const char *id)
{
	unsigned int i = 0;

	while (i < t->num && strcmp(t->points[i].id, id) != 0)
		i++;
	return i;
}

bool vm_track_has(const struct vm_track *t, const char *id)
{
	return find(t, id) < t->num;
}

static void merge(uint64_t *into, const uint64_t *from, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++)
		into[i] |= from[i];
}

/* All that is logged, into bits. */
static int take_all(struct vm_track *t, uint64_t *bits, struct err *err)
{
	int r = dirty_final(t->dirty, NULL, err);

	for (unsigned int i = 0; !r && i < t->ram->num_regions; i++) {
		const struct ram_region *region = &t->ram->regions[i];
		int64_t n = dirty_take(t->dirty, i, 0, ram_region_pages(region),
				       bits);

		if (n < 0)
			r = err_errno(err, (int)-n,
				      "dirty tracking: memory at %#llx",
				      (unsigned long long)region->base.v);
		bits += ram_region_words(region);
	}
	return r;
}

int vm_track_collect(struct vm_track *t, struct err *err)
{
	_cleanup_free_ uint64_t *bits = NULL;
	int r;

	if (!t->num)
		return 0;
	bits = calloc(num_words(t), sizeof(*bits));
	if (!bits)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	r = take_all(t, bits, err);
	/* Also what was taken before a failure: it is nowhere else now. */
	merge(t->points[t->num - 1].bits, bits, num_words(t));
	return r;
}

int vm_track_since(const struct vm_track *t, const char *id, uint64_t **ret,
		   struct err *err)
{
	unsigned int first = find(t, id);
	uint64_t *bits;

	if (first == t->num)
		return err_set(err, ENOENT, "not tracked since %s", id);
	bits = calloc(num_words(t), sizeof(*bits));
	if (!bits)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	for (unsigned int i = first; i < t->num; i++)
		merge(bits, t->points[i].bits, num_words(t));
	*ret = bits;
	return 0;
}

/* The first point: what counts as dirty from the start is not. */
static int begin(struct vm_track *t, uint64_t *scratch, struct err *err)
{
	int r;

	if (!t->dirty)
		return err_set(err, ENOTSUP,
			       "this KVM cannot log what a guest writes");
	r = dirty_start(t->dirty, t->ram, err);
	if (r)
		return r;
	r = take_all(t, scratch, err);
	if (r)
		dirty_stop(t->dirty);
	/* Dropped: the point begins with nothing. */
	memset(scratch, 0, num_words(t) * sizeof(*scratch));
	return r;
}

static void remove_point(struct vm_track *t, unsigned int i)
{
	free(t->points[i].bits);
	t->num--;
	memmove(&t->points[i], &t->points[i + 1],
		(t->num - i) * sizeof(t->points[0]));
}

int vm_track_add(struct vm_track *t, const char *id, struct err *err)
{
	struct vm_track_point *point;
	uint64_t *bits;
	int r;

	if (t->num == VM_TRACK_POINTS)
		remove_point(t, 0);
	bits = calloc(num_words(t), sizeof(*bits));
	if (!bits)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	r = t->num ? 0 : begin(t, bits, err);
	if (r) {
		free(bits);
		return r;
	}
	point = &t->points[t->num++];
	snprintf(point->id, sizeof(point->id), "%s", id);
	point->bits = bits;
	return 0;
}

void vm_track_drop(struct vm_track *t, const char *id)
{
	unsigned int i = find(t, id);

	if (i == t->num)
		return;
	if (i)
		merge(t->points[i - 1].bits, t->points[i].bits, num_words(t));
	remove_point(t, i);
	if (!t->num)
		dirty_stop(t->dirty);
}

void vm_track_end(struct vm_track *t)
{
	if (!t->num)
		return;
	vm_track_fini(t);
	dirty_stop(t->dirty);
}

void vm_track_fini(struct vm_track *t)
{
	while (t->num)
		remove_point(t, t->num - 1);
}
