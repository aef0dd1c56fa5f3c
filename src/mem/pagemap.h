/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of guest RAM are in the host's page table, from
 * /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst; bit 63, which
 * every process may read of itself). Eight bytes are read for each 4K page.
 * One thread at a time per reader.
 */
#ifndef QUIRE_MEM_PAGEMAP_H
#define QUIRE_MEM_PAGEMAP_H

#include "mem/ram.h"

#define PAGEMAP_BATCH 512 /* entries read at once: 2 MiB of guest memory */

struct pagemap {
	int fd;
	uint64_t first; /* page number of entries[0] */
	unsigned int num;
	uint64_t entries[PAGEMAP_BATCH];
};

__must_check int pagemap_open(struct pagemap *pm);
void pagemap_close(struct pagemap *pm);

/*
 * The first run of present pages in [gpa, gpa + len), at most as long as what
 * is left of it. Returns 1 with the run, 0 when there is none, or -errno.
 */
__must_check int pagemap_next_present(struct pagemap *pm, const struct ram *ram,
				      struct gpa gpa, uint64_t len,
				      struct gpa *ret_gpa, uint64_t *ret_len);

/*
 * The same for pages that have content of their own: present, swapped out, or
 * being moved by the kernel just now. With own_only clean pages of a file that
 * is mapped privately do not count.
 */
__must_check int pagemap_next_held(struct pagemap *pm, const struct ram *ram,
				   struct gpa gpa, uint64_t len, bool own_only,
				   struct gpa *ret_gpa, uint64_t *ret_len);

/*
 * All runs of held pages in [gpa, gpa + len), in order; adjacent ones may come
 * as two. With present_only what is swapped out or being moved does not count,
 * nor does a mark that the kernel left where nothing is (it looks the same).
 * Where the kernel can say it by runs (6.7) that is some times faster than
 * reading entries. run makes no change to the mapping. 0 or -errno.
 */
__must_check int
pagemap_each_held(struct pagemap *pm, const struct ram *ram, struct gpa gpa,
		  uint64_t len, bool present_only,
		  void (*run)(void *ctx, struct gpa gpa, uint64_t len),
		  void *ctx);

/*
 * Runs of held pages that userfaultfd does not protect from being written.
 * -ENOTTY: this kernel cannot tell (before 6.7).
 */
__must_check int pagemap_each_unprotected(
	struct pagemap *pm, const struct ram *ram, struct gpa gpa, uint64_t len,
	void (*run)(void *ctx, struct gpa gpa, uint64_t len), void *ctx);

/* How many bytes of [gpa, gpa + len) are present. */
__must_check int pagemap_count_present(struct pagemap *pm,
				       const struct ram *ram, struct gpa gpa,
				       uint64_t len, uint64_t *ret_bytes);

/*
 * Is all of [gpa, gpa + len), one or more times 2 MiB, mapped by entries of 2
 * MiB or more? 1, 0, or -errno: -ENOTTY, the kernel cannot tell (before 6.7).
 */
__must_check int pagemap_is_huge(const struct pagemap *pm,
				 const struct ram *ram, struct gpa gpa,
				 uint64_t len);

#endif
